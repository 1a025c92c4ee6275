/** Clients that break every rule: only they suffer. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import fc from "fast-check";
import {
  decodeXenStoreStrings,
  encodeXenStoreMessage,
  XenStoreParser,
  XS_READ,
  XS_WATCH,
  XS_WATCH_EVENT,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import type { XenError } from "../../../src/xen/domain.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { RawClient } from "./raw-client.ts";

function message(type: number, text: string): Buffer<ArrayBuffer> {
  const payload = Buffer.from(text, "latin1");
  return encodeXenStoreMessage({ type, requestId: 1, transactionId: 0, payload });
}

/** "PATH TOKEN" of each event among the messages. */
function eventsOf(bytes: Uint8Array): string[] {
  const parser = new XenStoreParser();
  parser.push(bytes);
  const found: string[] = [];
  for (let next = parser.next(); next !== undefined; next = parser.next()) {
    const [path, token] = decodeXenStoreStrings(next.payload);
    if (next.type === XS_WATCH_EVENT) found.push(`${path} ${token}`);
  }
  return found;
}

/** A transport that takes nothing and never drains, with the daemon's end of it. */
function deafClient() {
  const sent: Uint8Array[] = [];
  const state = { paused: false, closed: false };
  return {
    sent,
    state,
    transport: {
      writable: false,
      send: (bytes: Uint8Array) => void sent.push(bytes),
      onmessage: undefined as ((bytes: Uint8Array) => void) | undefined,
      ondrain: undefined as (() => void) | undefined,
      onclose: undefined,
      pause: () => {
        state.paused = true;
      },
      resume: () => {
        state.paused = false;
      },
      close: () => {
        state.closed = true;
      },
    },
  };
}

test("a length that is too long ends that connection, its watches and transactions, and no other", async () => {
  const lost: string[] = [];
  await using daemon = new XenStoreDaemon({
    onClientLost: (domid, reason) => lost.push(`${domid} ${(reason as XenError).code}`),
  });
  const good = new RawClient(daemon.connect(1));
  const bad = new RawClient(daemon.connect(1));
  assert.equal(await bad.ask(XS_WATCH, ["a", "t"]), "OK");
  const header = message(XS_READ, "");
  header.writeUInt32LE(0x8000_0000, 12);
  bad.transport.send(header);
  bad.transport.send(message(XS_READ, "/\0"));
  await bad.closed;
  assert.deepEqual(lost, ["1 EPROTO"]);
  assert.equal(await good.ask(XS_READ, ["/"]), "EACCES");
  assert.equal(daemon.clients, 1);
});

test("no bytes whatever hurt the daemon or its tree", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.oneof(
          fc.uint8Array({ minLength: 1, maxLength: 100 }),
          fc
            .tuple(fc.integer({ min: 0, max: 30 }), fc.nat(3), fc.uint8Array({ maxLength: 40 }))
            .map(([type, transactionId, payload]) =>
              encodeXenStoreMessage({ type, requestId: 1, transactionId, payload }),
            ),
          fc
            .tuple(
              fc.integer({ min: 0, max: 23 }),
              fc.constantFrom(
                "/\0",
                "a\0b\0",
                "a\0n1\0",
                "T\0",
                "@releaseDomain\0t\0",
                "\0",
                "//\0",
              ),
            )
            .map(([type, text]) => message(type, text)),
        ),
        { size: "max", maxLength: 30 },
      ),
      fc.constantFrom(0, 1),
      async (chunks, domid) => {
        await using daemon = new XenStoreDaemon();
        const hostile = daemon.connect(domid);
        for (const chunk of chunks) hostile.send(Uint8Array.from(chunk));
        await nextTurn();
        await using store = new XenStoreClient(daemon.connect(0));
        await store.write("/alive", "yes");
        assert.equal(await store.read("/alive"), "yes");
      },
    ),
    { numRuns: 150 },
  );
});

test("a client that asks and never reads is made to wait, with its memory bounded", async () => {
  await using daemon = new XenStoreDaemon();
  const { transport, state, sent } = deafClient();
  daemon.accept(transport, 0);
  const requests = Buffer.concat(Array.from({ length: 1000 }, () => message(XS_READ, "/none\0")));
  for (let i = 0; i < 10; i++) {
    await nextTurn();
    if (!state.paused) transport.onmessage?.(Uint8Array.from(requests));
  }
  assert.ok(state.paused);
  assert.equal(sent.length, 0);
  assert.equal(daemon.clients, 1);
});

test("a client that watches and does not read hears less, stalls nobody, and is not disconnected", async () => {
  const clock = new ManualClock();
  const limits = { queuedEventBytes: 2000 };
  await using daemon = new XenStoreDaemon({ limits, clock });
  const { transport, state, sent } = deafClient();
  daemon.accept(transport, 0);
  transport.onmessage?.(message(XS_WATCH, "/other\0t\0"));
  transport.onmessage?.(message(XS_WATCH, "/single\0s\0"));
  await using store = new XenStoreClient(daemon.connect(0));
  for (let i = 0; i < 300; i++) await store.write(`/other/${i}`, "");
  await store.write("/single/node", "");
  clock.pass(100_000);
  for (let i = 0; i < 300; i++) await store.write(`/other/${i}/more`, "");
  assert.equal((await store.list("/other"))?.length, 300);
  assert.ok(!state.closed);
  transport.writable = true;
  transport.ondrain?.();
  const bytes = Buffer.concat(sent);
  assert.ok(bytes.length < 2500, `${bytes.length} bytes were kept`);
  assert.deepEqual(eventsOf(bytes), ["/single s", "/other t", "/single/node s"]);
});

test("a client whose watches alone are too many is disconnected when it has not read for long", async () => {
  const clock = new ManualClock();
  const lost: string[] = [];
  await using daemon = new XenStoreDaemon({
    limits: { queuedEventBytes: 2000, deafMilliseconds: 60_000 },
    clock,
    onClientLost: (domid, reason) => lost.push(`${domid} ${(reason as XenError).code}`),
  });
  const { transport, state } = deafClient();
  daemon.accept(transport, 0);
  for (let i = 0; i < 100; i++)
    transport.onmessage?.(message(XS_WATCH, `/${i}\0${"t".repeat(40)}\0`));
  await using store = new XenStoreClient(daemon.connect(0));
  await store.write("/1", "");
  clock.pass(59_000);
  await store.write("/2", "");
  assert.ok(!state.closed, "it may be slow");
  clock.pass(1000);
  await store.write("/3", "");
  assert.ok(state.closed);
  assert.deepEqual(lost, ["0 ENOBUFS"]);
});

test("one transaction of a guest tells a watch of 16 KiB at most, then of the watched path", async () => {
  await using daemon = new XenStoreDaemon();
  await using zero = new XenStoreClient(daemon.connect(0));
  await zero.mkdir("/local/domain/1");
  await zero.setPermissions("/local/domain/1", [{ domid: 1, access: "none" }]);
  const watcher = new RawClient(daemon.connect(0));
  assert.equal(await watcher.ask(XS_WATCH, ["/local/domain/1", "t"]), "OK");
  await using guest = new XenStoreClient(daemon.connect(1));
  const long = `/local/domain/1/${"a".repeat(1900)}`;
  await guest.transaction(async (operations) => {
    for (let i = 0; i < 500; i++) await operations.write(`${long}/${i}`, "");
  });
  assert.equal(await watcher.ask(XS_READ, [`${long}/499`]), "");
  const events = watcher.takeEvents();
  assert.ok(events.length > 2 && events.length < 12, `${events.length} events`);
  assert.equal(events.at(-1), "/local/domain/1 t");
  assert.equal(daemon.clients, 3);
  assert.equal(await zero.read(`${long}/0`), "", "domain 0 is as well as before");
});

test("a client in this process that ignores back-pressure is cut off", async () => {
  await using daemon = new XenStoreDaemon();
  const flood = daemon.connect(1);
  const closed = new Promise<Error | undefined>((resolve) => {
    flood.onclose = resolve;
  });
  const chunk = message(XS_WRITE, `x\0${"y".repeat(4000)}`);
  for (let i = 0; i < 2000; i++) flood.send(chunk);
  assert.equal(((await closed) as XenError).code, "ENOBUFS");
  await nextTurn();
  assert.equal(daemon.clients, 0);
});

test("a tree as deep as paths allow is made, watched, listed and removed", async () => {
  await using daemon = new XenStoreDaemon();
  await using store = new XenStoreClient(daemon.connect(0));
  const path = "/x".repeat(1024);
  await store.write(path, "deep");
  assert.equal(await store.read(path), "deep");
  await store.transaction(async (operations) => {
    await operations.remove("/x");
    await operations.write(path, "again");
  });
  assert.equal(await store.read(path), "again");
  await store.remove("/x");
  assert.equal(await store.read(path), undefined);
});

test("a client that asks 100,000 things at once takes turns with the others", async () => {
  await using daemon = new XenStoreDaemon({ limits: { queuedBytes: 1 << 30 } });
  const greedy = daemon.connect(0);
  let answers = 0;
  const parser = new XenStoreParser();
  greedy.onmessage = (bytes) => {
    parser.push(bytes);
    while (parser.next() !== undefined) answers++;
  };
  const modest = new RawClient(daemon.connect(0));
  const requests = Buffer.concat(Array.from({ length: 1000 }, () => message(XS_READ, "/\0")));
  let sent = 0;
  while (sent < 100_000) {
    for (let i = 0; i < 4 && greedy.writable; i++) {
      greedy.send(Uint8Array.from(requests));
      sent += 1000;
    }
    const before = answers;
    await modest.ask(XS_WRITE, ["/modest", `${sent}`]);
    assert.ok(answers - before <= 1000, `${answers - before} answers came before one`);
  }
  while (answers < sent) await nextTurn();
});

test("a client that asks for paths of a thousand names has a shorter turn", async () => {
  await using daemon = new XenStoreDaemon({ limits: { queuedBytes: 1 << 30 } });
  const greedy = daemon.connect(0);
  let answers = 0;
  const parser = new XenStoreParser();
  greedy.onmessage = (bytes) => {
    parser.push(bytes);
    while (parser.next() !== undefined) answers++;
  };
  const modest = new RawClient(daemon.connect(0));
  const path = `${"/x".repeat(1000)}\0`;
  greedy.send(Buffer.concat(Array.from({ length: 100 }, () => message(XS_READ, path))));
  assert.equal(await modest.ask(XS_WRITE, ["/modest", "1"]), "OK");
  assert.ok(answers <= 20, `${answers} answers came before one`);
  while (answers < 100) await nextTurn();
});
