/** The published suite on every store that needs no machine: drivers, promises, each filter, doubles. */
import { Reactor } from "../../src/io/reactor.ts";
import type { BlockStore } from "../../src/store/block-store.ts";
import { emulate } from "../../src/store/emulate.ts";
import { promiseStore } from "../../src/store/promise-store.ts";
import { openStore, parseDisk } from "../../src/store/registry.ts";
import {
  FaultyStore,
  ForgetfulStore,
  type OpenedStore,
  storeSuite,
} from "../../src/testing/index.ts";

const SIZE = 2 ** 20;

async function opened(
  open: (reactor: Reactor) => BlockStore | Promise<BlockStore>,
): Promise<OpenedStore> {
  const reactor = new Reactor();
  return { reactor, store: await open(reactor) };
}

function disk(words: string, filters: string[] = [], readOnly = false): () => Promise<OpenedStore> {
  return () =>
    opened((reactor) => openStore(parseDisk(words.split(" "), filters), { reactor, readOnly }));
}

function pattern(offset: number, length: number): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(length + 16));
  const start = offset - (offset % 8);
  for (let at = 0; at < length + 8; at += 8) bytes.setBigUint64(at, BigInt(start + at));
  return new Uint8Array(bytes.buffer, offset - start, length);
}

/** An array behind promises, in blocks of 512 bytes and requests of 8 KiB at most: all that can be emulated is. */
function promised(reactor: Reactor, full: boolean): BlockStore {
  const bytes = new Uint8Array(SIZE);
  const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
  return promiseStore({
    reactor,
    size: SIZE,
    block: full ? {} : { minimum: 512, maximum: 8192 },
    depth: full ? 16 : 3,
    async read(offset, length) {
      await turn();
      return bytes.slice(offset, offset + length);
    },
    async write(offset, data) {
      await turn();
      bytes.set(data, offset);
    },
    flush: turn,
    ...(full
      ? {
          discardZeroes: true,
          async discard(offset: number, length: number) {
            bytes.fill(0, offset, offset + length);
          },
          async writeZeroes(offset: number, length: number) {
            bytes.fill(0, offset, offset + length);
          },
        }
      : {}),
  });
}

storeSuite("memory", { open: disk("memory 1M") });
storeSuite("memory, read-only,", { open: disk("memory 1M", [], true), readOnly: true });
storeSuite("null", { open: disk("null 1M"), forgets: true });
storeSuite("pattern", { open: disk("pattern 1M"), readOnly: true, contents: pattern });
storeSuite("a store of promises", { open: () => opened((reactor) => promised(reactor, true)) });
storeSuite("a store of reads and writes", {
  open: () => opened((reactor) => promised(reactor, false)),
});
storeSuite("an emulated store", {
  open: () => opened((reactor) => emulate(promised(reactor, false), reactor)),
});
storeSuite("delay", { open: disk("memory 1M rdelay=1ms wdelay=2ms", ["delay"]) });
storeSuite("error, without errors,", { open: disk("memory 1M error-seed=1", ["error"]) });
storeSuite("log", { open: disk("memory 1M", ["log"]) });
storeSuite("cow", { open: disk("memory 1M cow-block-size=4K", ["cow"]) });
storeSuite("cow in large blocks", { open: disk("memory 1M", ["cow"]) });
storeSuite("cow on a pattern", {
  open: disk("pattern 1000448 cow-block-size=4K", ["cow"]),
  contents: pattern,
});
storeSuite("cow on a slow disk of cows", {
  open: disk("memory 300K delay=1ms cow-block-size=4K", ["cow", "delay"]),
});
storeSuite("cow on a store of reads and writes", {
  open: () =>
    opened(async (reactor) => {
      const { cowFilter } = await import("../../src/store/filters/cow.ts");
      return cowFilter.wrap(
        promised(reactor, false),
        { "cow-block-size": 16384 },
        {
          reactor,
          signal: new AbortController().signal,
          readOnly: false,
          engine: "auto",
          open: (spec) => openStore(spec, { reactor }),
        },
      );
    }),
});
storeSuite("a disk that forgets", {
  open: () => opened((reactor) => new ForgetfulStore(reactor, SIZE)),
});
storeSuite("a faulty store without faults", {
  open: () =>
    opened(async (reactor) => new FaultyStore(await openStore("memory 1M", { reactor }), reactor)),
});
