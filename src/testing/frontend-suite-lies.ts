/** A backend that lies, goes away, or says nothing: what a frontend makes of each. */
import assert from "node:assert/strict";
import { RSP_PROD } from "../wire/shared-ring.ts";
import type { FrontendBench, FrontendTest } from "./frontend-suite.ts";
import type { RequestRunner } from "./requests.ts";

const lies: readonly (readonly [
  rows: string[],
  what: string,
  lie: (bench: FrontendBench) => void,
])[] = [
  [["2.14"], "an id that is not in flight", ({ backend }) => backend.ring.respond(31, 0, 0, 0)],
  [
    ["2.14"],
    "an id beyond every request",
    ({ backend }) => backend.ring.respond(2 ** 32 - 1, 0, 0, 0),
  ],
  [["2.14"], "an id with another high half", ({ backend }) => backend.ring.respond(0, 7, 0, 0)],
  [
    ["2.14", "1.17"],
    "another operation",
    ({ backend }) => {
      const { idLow, idHigh } = backend.seen.at(-1)!;
      backend.ring.respond(idLow, idHigh, 1, 0);
    },
  ],
  [
    ["2.14"],
    "an impossible index",
    ({ backend }) => {
      const { buffer, byteOffset } = backend.mapping.bytes;
      Atomics.store(new Int32Array(buffer, byteOffset, 4), RSP_PROD, 77_000);
      backend.channel.notify();
    },
  ],
  [
    ["2.14"],
    "an index that goes back",
    ({ backend }) => {
      const { buffer, byteOffset } = backend.mapping.bytes;
      Atomics.sub(new Int32Array(buffer, byteOffset, 4), RSP_PROD, 1);
      backend.channel.notify();
    },
  ],
];

/** Requests that wait at once. */
const MANY = 100;

export function frontendLies(register: FrontendTest): void {
  for (const [rows, what, lie] of lies) {
    register(
      rows,
      `ends its disk with an error, and nothing else, after ${what}`,
      async (bench) => {
        const runner = await bench.connect();
        assert.equal(await read(runner), 0);
        bench.backend.onrequest = () => lie(bench);
        assert.notEqual(await read(runner), 0);
        assert.notEqual(await read(runner), 0);
      },
    );
  }
  register(["2.14", "4.1.9"], "does not take an answer twice", async (bench) => {
    const { backend } = bench;
    const runner = await bench.connect();
    let held: (() => void) | undefined;
    backend.onrequest = (request, queue) => {
      if (held === undefined) {
        held = () => backend.answer(request, 0, queue);
        bench.serve(request, queue);
      } else held();
    };
    assert.equal(await read(runner), 0);
    const [first, second] = await Promise.all([read(runner), read(runner)]);
    assert.ok(first !== 0 || second !== 0);
  });
  register(
    ["4.6.5"],
    "ends everything that waits when its backend goes to Closing",
    async (bench) => {
      const runner = await bench.connect();
      bench.backend.onrequest = () => {};
      const reads = Array.from({ length: MANY }, () => read(runner));
      await bench.backend.become(5);
      for (const status of await Promise.all(reads)) assert.notEqual(status, 0);
      assert.notEqual(await runner.run({ operation: "flush" }), 0);
    },
  );
  register(
    ["4.6.7"],
    "ends everything that waits when its backend's directory vanishes",
    async (bench) => {
      const runner = await bench.connect();
      bench.backend.onrequest = () => {};
      const reads = Array.from({ length: MANY }, () => read(runner));
      await bench.opened.backendDomain.store.remove(bench.opened.paths.backend);
      for (const status of await Promise.all(reads)) assert.notEqual(status, 0);
    },
  );
  register(
    ["4.7.1"],
    "lets more requests than fit wait for their turn, and ends each once",
    async (bench) => {
      const runner = await bench.connect();
      const all = Array.from({ length: 500 }, (_, i) =>
        runner.submit({ operation: "read", offset: (i % 128) * 4096, length: 8192 }),
      );
      for (const watched of all) assert.equal(await watched.ended, 0);
      for (const { completions } of all) assert.equal(completions, 1);
    },
  );
  for (const [keys, what] of [
    [{ sectors: "0" }, "no sectors"],
    [{ "sector-size": "0" }, "sectors of no bytes"],
    [{ "sector-size": "100" }, "sectors of 100 bytes"],
    [{ sectors: "99999999999999999999" }, "more sectors than there are numbers"],
    [{ sectors: "many" }, "a size that is no number"],
  ] as const) {
    register(["4.5.1"], `refuses a backend that shows ${what}`, async (bench) => {
      await Promise.all([assert.rejects(bench.connect(keys)), bench.follow()]);
    });
  }
  register(
    ["3.4"],
    "says what its backend says when that fails before it connects",
    async (bench) => {
      const { backend } = bench;
      const starting = bench.start();
      starting.catch(() => {});
      await backend.become(2);
      await backend.frontendIs(3, 4);
      await backend.write({ error: "22 no such image" });
      await backend.become(5);
      await Promise.all([assert.rejects(starting, /no such image/), bench.follow()]);
    },
  );
}

function read(runner: RequestRunner): Promise<number> {
  return runner.run({ operation: "read", length: 4096 });
}
