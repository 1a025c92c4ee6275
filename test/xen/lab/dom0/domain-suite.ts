/** Run in dom0: the suite of the hypervisor port on this Xen, dom0 being both of its domains. */
import { Reactor } from "../../../../src/io/reactor.ts";
import { domainSuite } from "../../../../src/testing/index.ts";
import { openHost } from "../../../../src/xen/host/index.ts";

const path = "/tool/domain-suite";

domainSuite("dom0", {
  async open() {
    const reactor = new Reactor();
    await using undo = new AsyncDisposableStack();
    const front = undo.use(await openHost({ reactor }));
    const back = undo.use(await openHost({ reactor }));
    undo.defer(() => front.store.remove(path));
    const ends = undo.move();
    return { front, back, path, [Symbol.asyncDispose]: () => ends.disposeAsync() };
  },
});
