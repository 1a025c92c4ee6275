/** Copies from and to pages that are granted, as any world behind the hypervisor port makes them. */
import assert from "node:assert/strict";
import { allocateRegion } from "../io/memory.ts";
import {
  DOMID_FIRST_RESERVED,
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCopyEnd,
  GrantStatus,
  PAGE_SIZE,
} from "../xen/domain.ts";
import { type DomainTest, granted, NO_REFERENCE, pageOf } from "./domain-suite-stage.ts";

export function copies(suite: DomainTest): void {
  suite("copies go from grants, to grants and between them", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2);
    const [first, second] = [0, 1].map((i) => ({
      peer: front.id,
      reference: pages.references[i]!,
    }));
    const local = Uint8Array.from({ length: 100 }, (_, i) => i + 1);
    const result = new Uint8Array(300);
    const operations = [
      copyOf(local, { ...first!, offset: 3996 }, 100),
      copyOf({ ...first!, offset: 3996 }, { ...second!, offset: 8 }, 100),
      copyOf({ ...second!, offset: 8 }, result.subarray(100), 100),
      copyOf(result.subarray(100, 200), result, 100),
    ];
    back.grants.copy(operations);
    assert.deepEqual(statusesOf(operations), [0, 0, 0, 0]);
    assert.deepEqual(pageOf(pages, 0).slice(3996), local);
    assert.deepEqual(pageOf(pages, 1).slice(8, 108), local);
    assert.deepEqual(result, Uint8Array.from([...local, ...local, ...new Uint8Array(100)]));
    assert.equal(back.grants.counters.copies, 4);
    assert.equal(back.grants.counters.mapped, 0);
  });

  suite("each copy has its own status, and a wrong one moves nothing", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 2, (i) => i === 1);
    const [writable, readOnly] = pages.references as unknown as [number, number];
    pageOf(pages, 0).fill(3);
    pageOf(pages, 1).fill(4);
    const local = new Uint8Array(200);
    const at = (reference: number, offset: number): GrantCopyEnd => {
      return { peer: front.id, reference, offset };
    };
    const operations = [
      copyOf(at(writable, 0), local, 100),
      copyOf(at(writable, 4000), local.subarray(100), 97),
      copyOf(local, at(readOnly, 0), 100),
      copyOf(at(NO_REFERENCE, 0), local.subarray(100), 100),
      copyOf(at(writable, 0), local, 201),
      copyOf(at(writable, -1), local, 1),
      copyOf(at(writable, 0.5), local, 1),
      copyOf(at(writable, 0), local, -1),
      copyOf(at(readOnly, 10), local.subarray(100), 50),
    ];
    back.grants.copy(operations);
    const { okay, badCopyArgument } = GrantStatus;
    const statuses = statusesOf(operations);
    assert.equal(statuses[0], okay);
    assert.equal(statuses[1], badCopyArgument);
    assert.ok(statuses[2]! < 0 && statuses[3]! < 0);
    for (const i of [4, 5, 6, 7]) assert.equal(statuses[i], badCopyArgument);
    assert.equal(statuses[8], okay);
    const expected = new Uint8Array(200);
    expected.fill(3, 0, 100);
    expected.fill(4, 100, 150);
    assert.deepEqual(local, expected);
    assert.ok(pageOf(pages, 1).every((byte) => byte === 4));
  });

  suite("parts of pages go to their images and back, each with its own status", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 3, (i) => i === 2);
    for (let i = 0; i < 3; i++) pageOf(pages, i).fill(i + 1);
    const [first, second, readOnly] = [...pages.references] as [number, number, number];
    const batch = copyBatch(
      [first, NO_REFERENCE, second, readOnly],
      [
        [0, PAGE_SIZE],
        [0, 512],
        [512, 1024],
        [3584, 512],
      ],
    );
    const image = (i: number) => batch.bytes.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
    const { copies: before } = back.grants.counters;
    back.grants.copyPages(front.id, batch, false);
    assert.deepEqual(
      [...batch.statuses].map((status) => status === GrantStatus.okay),
      [true, false, true, true],
    );
    const expected = new Uint8Array(PAGE_SIZE);
    assert.deepEqual(image(0), new Uint8Array(PAGE_SIZE).fill(1));
    assert.deepEqual(image(1), expected);
    assert.deepEqual(image(2), expected.slice().fill(2, 512, 1536));
    assert.deepEqual(image(3), expected.slice().fill(3, 3584, 4096));
    batch.bytes.fill(9);
    back.grants.copyPages(front.id, batch, true);
    assert.deepEqual(
      [...batch.statuses].map((status) => status === GrantStatus.okay),
      [true, false, true, false],
    );
    assert.deepEqual(pageOf(pages, 0).slice(), new Uint8Array(PAGE_SIZE).fill(9));
    assert.deepEqual(
      pageOf(pages, 1).slice(),
      new Uint8Array(PAGE_SIZE).fill(2).fill(9, 512, 1536),
    );
    assert.deepEqual(pageOf(pages, 2).slice(), new Uint8Array(PAGE_SIZE).fill(3));
    assert.equal(back.grants.counters.copies, before + 5);
    assert.equal(back.grants.counters.mapped, 0);
    back.grants.copyPages(DOMID_FIRST_RESERVED + 1, batch, false);
    assert.ok(batch.statuses.every((status) => status !== GrantStatus.okay));
  });

  suite("many copies are made at once", (domains) => {
    const { front, back } = domains;
    using pages = granted(domains, 8);
    const local = new Uint8Array(8 * PAGE_SIZE);
    const operations: GrantCopy[] = [];
    for (let i = 0; i < 600; i++) {
      const offset = (i * 512) % (8 * PAGE_SIZE);
      const reference = pages.references[Math.floor(offset / PAGE_SIZE)]!;
      const end = { peer: front.id, reference, offset: offset % PAGE_SIZE };
      operations.push(copyOf(end, local.subarray(offset, offset + 512), 512));
    }
    for (let i = 0; i < 8; i++) pageOf(pages, i).fill(i + 1);
    back.grants.copy(operations);
    assert.ok(statusesOf(operations).every((status) => status === GrantStatus.okay));
    for (let i = 0; i < 8; i++) assert.equal(local[i * PAGE_SIZE + 511], i + 1);
  });
}

/** Page i of the batch has its image at page i of the memory; parts are `offset` and `length` of each. */
function copyBatch(
  references: readonly number[],
  parts: readonly (readonly [offset: number, length: number])[],
): GrantCopyBatch & { readonly bytes: Uint8Array } {
  const count = references.length;
  const region = allocateRegion(count * PAGE_SIZE);
  return {
    count,
    bytes: region.bytes,
    references: Uint32Array.from(references),
    offsets: Uint16Array.from(parts, ([offset]) => offset),
    lengths: Uint16Array.from(parts, ([, length]) => length),
    regions: references.map(() => region),
    starts: Float64Array.from(references, (_, i) => i * PAGE_SIZE),
    statuses: new Int8Array(count).fill(GrantStatus.tryAgain),
  };
}

function copyOf(source: GrantCopyEnd, destination: GrantCopyEnd, length: number): GrantCopy {
  return { source, destination, length, status: GrantStatus.tryAgain };
}

function statusesOf(operations: readonly GrantCopy[]): number[] {
  return operations.map(({ status }) => status);
}
