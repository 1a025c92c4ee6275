import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Reactor } from "../../src/io/reactor.ts";
import { Operation, type StoreContext } from "../../src/store/block-store.ts";
import { nbdDriver } from "../../src/store/drivers/nbd.ts";
import { Errno } from "../../src/store/errors.ts";
import { parseParameters } from "../../src/store/parameters.ts";
import { perform, serve } from "../nbd/harness.ts";

const MiB = 1024 * 1024;

function context(reactor: Reactor, readOnly: boolean): StoreContext {
  return {
    reactor,
    readOnly,
    signal: new AbortController().signal,
    engine: "auto",
    open: () => Promise.reject(new Error("the nbd driver opens nothing else")),
  };
}

describe("the nbd driver", () => {
  test("opens the export that its parameters name", async () => {
    await using served = await serve(4 * MiB);
    const parameters = { uri: `nbd+unix:///wrong?socket=${served.socket}`, export: "" };
    const options = parseParameters("nbd", nbdDriver.parameters, {
      ...parameters,
      connections: "3",
    });
    const reactor = new Reactor();
    await using store = await nbdDriver.open(options, context(reactor, false));
    assert.equal(store.info.size, 4 * MiB);
    assert.equal(served.server.counters.connections, 3);
    const data = new Uint8Array(4096).fill(9);
    assert.equal((await perform(store, reactor, Operation.write, 0, 4096, { data })).status, 0);
    assert.equal(served.store.bytes[4095], 9);
  });

  test("refuses to write where its context says so", async () => {
    await using served = await serve(MiB);
    const options = parseParameters("nbd", nbdDriver.parameters, { uri: served.uri });
    const reactor = new Reactor();
    await using store = await nbdDriver.open(options, context(reactor, true));
    assert.equal(store.info.readOnly, true);
    const { status } = await perform(store, reactor, Operation.write, 0, 512);
    assert.equal(status, Errno.EROFS);
  });

  test("says what is wrong with a parameter", () => {
    const parse = (texts: Record<string, string>) =>
      parseParameters("nbd", nbdDriver.parameters, texts);
    assert.throws(() => parse({}), /nbd needs uri=URI/);
    assert.throws(() => parse({ uri: "nbds://host/" }), /TLS is not supported/);
    const uri = "nbd://localhost/";
    assert.throws(() => parse({ uri, connections: "0" }), /1 to 16/);
    assert.throws(() => parse({ uri, connections: "two" }), /1 to 16/);
  });
});
