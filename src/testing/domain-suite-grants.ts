/** Pages that are granted and mapped, as any world behind the hypervisor port has them. */
import assert from "node:assert/strict";
import { DOMID_FIRST_RESERVED, GrantMapBatch, GrantStatus, PAGE_SIZE } from "../xen/domain.ts";
import {
  bytesOf,
  type DomainTest,
  EVENT_MILLISECONDS,
  granted,
  mapAll,
  mapBatch,
  NO_REFERENCE,
  pageOf,
} from "./domain-suite-stage.ts";
import { until } from "./vbd-pair.ts";

/** More pages than any test's domain can grant. */
const TOO_MANY_PAGES = 1 << 20;

export function grants(suite: DomainTest): void {
  suite("a mapped page is the granter's page, both ways, until it is unmapped", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 1);
    const [mapped] = mapAll(domains, pages.references, { together: false });
    pageOf(pages, 0)[17] = 0xab;
    assert.equal(mapped!.bytes[17], 0xab);
    mapped!.bytes[4095] = 0xcd;
    assert.equal(pageOf(pages, 0)[4095], 0xcd);
    assert.equal(back.grants.counters.mapped, 1);
    assert.equal(front.grants.counters.granted, 1);
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.okay);
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.badHandle);
    assert.equal(back.grants.counters.mapped, 0);
    assert.ok(pages.endAccess(0));
    assert.equal(pages.references[0], 0);
    assert.equal(front.grants.counters.granted, 0);
  });

  for (const together of [false, true]) {
    const how = together ? "together" : "apart";
    suite(`pages that are mapped ${how} are each its own, and are given back one by one`, (domains) => {
      const { back } = domains;
      const count = 12;
      using pages = granted(domains, count);
      for (let i = 0; i < count; i++) pageOf(pages, i).fill(i + 1);
      const mapped = mapAll(domains, pages.references, { together });
      for (const [i, { bytes }] of mapped.entries()) {
        assert.ok(
          bytes.every((byte) => byte === i + 1),
          `page ${i}`,
        );
      }
      assert.equal(back.grants.counters.mapped, count);
      for (const { handle } of mapped.toReversed()) {
        assert.equal(back.grants.unmap(handle), GrantStatus.okay);
      }
      assert.equal(back.grants.counters.mapped, 0);
      assert.equal(back.grants.counters.unmaps, count);
    });

    suite(`a batch mapped ${how} maps what it can and refuses what it cannot`, (domains) => {
      const { back } = domains;
      using pages = granted(domains, 3, (i) => i === 1);
      const references = [...pages.references, NO_REFERENCE];
      const batch = mapBatch(domains, references, { together });
      assert.equal(batch.statuses[0], GrantStatus.okay);
      assert.notEqual(batch.statuses[1], GrantStatus.okay, "read-only, mapped for writing");
      assert.equal(batch.statuses[2], GrantStatus.okay);
      assert.notEqual(batch.statuses[3], GrantStatus.okay);
      assert.equal(back.grants.counters.mapped, 2);
      pageOf(pages, 2)[5] = 55;
      assert.equal(bytesOf(batch, 2)[5], 55);
      for (const i of [0, 2]) back.grants.unmap(batch.handles[i]!);
      assert.equal(back.grants.counters.mapped, 0);
    });
  }

  suite("a page that is granted read-only can be read", (domains) => {
    using pages = granted(domains, 1, () => true);
    pageOf(pages, 0).fill(9);
    const [mapped] = mapAll(domains, pages.references, { readOnly: true });
    assert.ok(mapped!.bytes.every((byte) => byte === 9));
    domains.back.grants.unmap(mapped!.handle);
  });

  suite("a number that is no domain's maps nothing", ({ back }) => {
    const batch = new GrantMapBatch(2);
    batch.count = 2;
    batch.references.fill(9);
    for (const peer of [DOMID_FIRST_RESERVED, -1, 1e9, 0.5]) {
      back.grants.map(peer, batch);
      assert.deepEqual([...batch.statuses], [GrantStatus.badDomain, GrantStatus.badDomain]);
      assert.notEqual(back.grants.mapContiguous(peer, [9], false), GrantStatus.okay);
    }
    assert.equal(back.grants.unmap(12345), GrantStatus.badHandle);
    assert.equal(back.grants.counters.maps, 0);
  });

  suite("several pages are mapped side by side, or not at all", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 4);
    for (let i = 0; i < 4; i++) pageOf(pages, i).fill(i + 1);
    const references = [...pages.references];
    {
      const mapping = back.grants.mapContiguous(front.id, references, false);
      assert.ok(typeof mapping === "object");
      using contiguous = mapping;
      assert.equal(contiguous.bytes.length, 4 * PAGE_SIZE);
      for (let i = 0; i < 4; i++) assert.equal(contiguous.bytes[i * PAGE_SIZE + 1], i + 1);
      contiguous.bytes[3 * PAGE_SIZE] = 77;
      assert.equal(pageOf(pages, 3)[0], 77);
      assert.equal(back.grants.counters.mapped, 4);
    }
    assert.equal(back.grants.counters.mapped, 0);
    references[2] = NO_REFERENCE;
    assert.equal(typeof back.grants.mapContiguous(front.id, references, false), "number");
    assert.equal(typeof back.grants.mapContiguous(front.id, [], false), "number");
    assert.equal(back.grants.counters.mapped, 0);
  });

  suite("pages come zeroed, keep what they hold, and come zeroed again", (domains) => {
    const { front, back } = domains;
    for (let round = 0; round < 3; round++) {
      using pages = front.grants.allocate(4)!;
      assert.equal(pages.count, 4);
      for (let i = 0; i < 4; i++) {
        assert.ok(
          pageOf(pages, i).every((byte) => byte === 0),
          `page ${i}`,
        );
        pageOf(pages, i).fill(0xf0 + i);
      }
      assert.ok(pages.grant(1, back.id, false));
      assert.ok(pages.grant(2, back.id, false));
      assert.ok(pages.endAccess(1));
      for (let i = 0; i < 4; i++) assert.equal(pageOf(pages, i)[100], 0xf0 + i);
    }
    assert.equal(front.grants.counters.granted, 0);
    assert.equal(front.grants.allocate(TOO_MANY_PAGES), undefined);
  });

  suite("a page that a peer still maps never becomes a page of ours again", (domains) => {
    const { front, back } = domains;
    const pages = granted(domains, 1);
    const [mapped] = mapAll(domains, pages.references, {});
    pages[Symbol.dispose]();
    pages[Symbol.dispose]();
    mapped!.bytes.fill(0x5a);
    using later = front.grants.allocate(16)!;
    const whole = later.region.bytes.subarray(later.start, later.start + 16 * PAGE_SIZE);
    assert.ok(whole.every((byte) => byte === 0));
    whole.fill(0xa5);
    assert.ok(mapped!.bytes.every((byte) => byte === 0x5a));
    assert.equal(back.grants.unmap(mapped!.handle), GrantStatus.okay);
  });

  suite("who waits for grant entries is called back", async (domains) => {
    const { grants: table } = domains.front;
    let called = 0;
    table.whenFree(1, () => called++);
    table.whenFree(1, () => assert.fail("it does not wait any more"))[Symbol.dispose]();
    await until(
      () => called || undefined,
      () => "no call",
      EVENT_MILLISECONDS,
    );
    assert.equal(called, 1);
  });
}
