import { Reactor } from "../../../src/io/reactor.ts";
import { domainSuite } from "../../../src/testing/domain-suite.ts";
import { EmbeddedMachine } from "../../../src/xen/embedded/index.ts";

domainSuite("embedded domains", {
  async open() {
    const machine = await EmbeddedMachine.create({ reactor: new Reactor(), memoryPages: 4096 });
    const path = "/tool/test";
    const back = await machine.createDomain(0);
    const front = await machine.createDomain(5);
    await back.store.mkdir(path);
    await back.store.setPermissions(path, [{ domid: 5, access: "both" }]);
    return { front, back, path, [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose]() };
  },
});
