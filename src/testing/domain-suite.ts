/**
 * What any world behind the hypervisor port must do, as tests of node:test: whoever writes one passes it, and drivers run
 * in it unchanged. The two domains of a test may be one and the same, seen twice.
 *
 * What worlds may differ in is not looked at: which status refuses a grant, and when a page that a peer keeps is lost.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { copies } from "./domain-suite-copies.ts";
import { events } from "./domain-suite-events.ts";
import { grants } from "./domain-suite-grants.ts";
import {
  type DomainTest,
  EVENT_MILLISECONDS,
  granted,
  mapAll,
  type OpenedDomains,
  pageOf,
} from "./domain-suite-stage.ts";
import { until } from "./vbd-pair.ts";

export type { OpenedDomains } from "./domain-suite-stage.ts";

export interface DomainSuiteOptions {
  open(): Promise<OpenedDomains>;
}

/** A test that takes longer hangs. */
const TIMEOUT_MILLISECONDS = 30_000;

export function domainSuite(name: string, options: DomainSuiteOptions): void {
  const suite: DomainTest = (sentence, body) =>
    void test(`${name}: ${sentence}`, { timeout: TIMEOUT_MILLISECONDS }, async () => {
      await using domains = await options.open();
      await body(domains);
    });
  grants(suite);
  copies(suite);
  events(suite);
  stores(suite);
}

function stores(suite: DomainTest): void {
  suite("what one writes into the xenstore, the other reads and is told of", async (domains) => {
    const { front, back, path } = domains;
    const node = `${path}/a/b`;
    const seen: string[] = [];
    await using _watch = await back.store.watch(path, (changed) => seen.push(changed));
    await front.store.write(node, "value");
    assert.equal(await back.store.read(node), "value");
    await until(
      () => seen.includes(node) || undefined,
      () => seen.join(),
      EVENT_MILLISECONDS,
    );
    assert.deepEqual(await back.store.list(`${path}/a`), ["b"]);
    await front.store.transaction(async (operations) => {
      await operations.write(node, "other");
      await operations.write(`${path}/c`, "");
    });
    assert.equal(await back.store.read(node), "other");
    await front.store.remove(`${path}/a`);
    assert.equal(await back.store.read(node), undefined);
  });

  suite("a domain that ends gives back what it had, and its peer goes on", async (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2);
    using offered = front.events.allocateUnbound(back.id);
    mapAll(domains, pages.references, { together: true });
    const bound = back.events.bindInterdomain(front.id, offered.port);
    assert.ok(
      typeof back.grants.mapContiguous(front.id, [...pages.references], false) === "object",
    );
    await back[Symbol.asyncDispose]();
    await back[Symbol.asyncDispose]();
    assert.equal(back.grants.counters.mapped, 0);
    bound.notify();
    offered.notify();
    pageOf(pages, 0).fill(1);
    assert.equal(pageOf(pages, 0)[0], 1);
  });
}
