/**
 * Copies between grants and memory of our own, through /dev/xen/gntdev (IOCTL_GNTDEV_GRANT_COPY of <xen/gntdev.h>).
 *
 * The kernel fails the whole call for a copy that leaves its page, so bounds are looked at here. Invariant: every
 * operation has a status of its own afterwards, whatever becomes of the others.
 */
import type { Ffi } from "../../io/ffi.ts";
import { invariant } from "../../util/assert.ts";
import {
  type GrantCopy,
  type GrantCopyBatch,
  type GrantCopyEnd,
  GrantStatus,
  PAGE_SIZE,
} from "../domain.ts";
import type { MutableCounters } from "../grant-counters.ts";
import { IoctlArgument } from "./ioctl-argument.ts";
import {
  CopyGrants,
  CopySegment,
  GNTCOPY_dest_gref,
  GNTCOPY_source_gref,
  IOCTL_GNTDEV_GRANT_COPY,
} from "./ioctls.ts";
import { statusOf } from "./status.ts";

/** Copies of one call: the largest request. */
const MAX_SEGMENTS = 256;

export class GrantCopier {
  readonly #calls: Ffi;
  readonly #descriptor: number;
  readonly #counters: MutableCounters;
  readonly #argument = new IoctlArgument(
    CopyGrants.byteLength + MAX_SEGMENTS * CopySegment.byteLength,
  );
  /** What the segments of the call that is being made are for. */
  readonly #operations: GrantCopy[] = [];

  constructor(calls: Ffi, descriptor: number, counters: MutableCounters) {
    this.#calls = calls;
    this.#descriptor = descriptor;
    this.#counters = counters;
  }

  /** In order: each sees what those before it moved. */
  copy(operations: readonly GrantCopy[]): void {
    for (const operation of operations) {
      const { source, destination, length } = operation;
      if (!isWithin(source, length) || !isWithin(destination, length)) {
        operation.status = GrantStatus.badCopyArgument;
      } else if (source instanceof Uint8Array && destination instanceof Uint8Array) {
        this.#run();
        destination.set(source.subarray(0, length));
        operation.status = GrantStatus.okay;
        this.#counters.copies++;
      } else {
        this.#writeSegment(operation);
        if (this.#operations.length === MAX_SEGMENTS) this.#run();
      }
    }
    this.#run();
  }

  #writeSegment(operation: GrantCopy): void {
    const { source, destination, length } = operation;
    const index = this.#operations.length;
    const segment = segmentByte(index);
    this.#operations.push(operation);
    const from = this.#writeEnd(segment + CopySegment.source, source) ? GNTCOPY_source_gref : 0;
    const to = this.#writeEnd(segment + CopySegment.destination, destination)
      ? GNTCOPY_dest_gref
      : 0;
    this.#writeLength(index, length, from | to);
  }

  #writeLength(index: number, length: number, flags: number): void {
    const segment = segmentByte(index);
    const { words } = this.#argument;
    words[(segment + CopySegment.length) / 4] = length | (flags << 16);
    words[(segment + CopySegment.status) / 4] = GrantStatus.generalError & 0xffff;
  }

  copyPages(peer: number, batch: GrantCopyBatch, toPeer: boolean): void {
    for (let first = 0; first < batch.count; first += MAX_SEGMENTS) {
      this.#copyRun(peer, batch, first, Math.min(batch.count - first, MAX_SEGMENTS), toPeer);
    }
  }

  #copyRun(
    peer: number,
    batch: GrantCopyBatch,
    first: number,
    count: number,
    toPeer: boolean,
  ): void {
    const grant = toPeer ? CopySegment.destination : CopySegment.source;
    const memory = toPeer ? CopySegment.source : CopySegment.destination;
    const flags = toPeer ? GNTCOPY_dest_gref : GNTCOPY_source_gref;
    const { words } = this.#argument;
    for (let i = 0; i < count; i++) {
      const offset = batch.offsets[first + i]!;
      const length = batch.lengths[first + i]!;
      // The kernel would refuse all of them.
      invariant(offset + length <= PAGE_SIZE, "a part of a page ends beyond it");
      const segment = segmentByte(i);
      words[(segment + grant) / 4] = batch.references[first + i]!;
      words[(segment + grant) / 4 + 1] = offset | (peer << 16);
      const address = batch.regions[first + i]!.address + batch.starts[first + i]! + offset;
      this.#argument.setUint64(segment + memory, address);
      this.#writeLength(i, length, flags);
    }
    const failure = this.#call(count);
    for (let i = 0; i < count; i++) batch.statuses[first + i] = this.#statusOf(i, failure);
  }

  /** Makes the copies that are written down; the status of all where the call fails. */
  #call(count: number): GrantStatus | undefined {
    const { words, address } = this.#argument;
    words[CopyGrants.count / 4] = count;
    this.#argument.setUint64(CopyGrants.segments, address + segmentByte(0));
    const result = this.#calls.ioctl(this.#descriptor, IOCTL_GNTDEV_GRANT_COPY, address);
    return result < 0 ? statusOf(this.#calls.errno()) : undefined;
  }

  #statusOf(index: number, failure: GrantStatus | undefined): GrantStatus {
    const word = this.#argument.words[(segmentByte(index) + CopySegment.status) / 4]!;
    const status = failure ?? (((word << 16) >> 16) as GrantStatus);
    if (status === GrantStatus.okay) this.#counters.copies++;
    return status;
  }

  /** Whether it is a grant. */
  #writeEnd(byte: number, end: GrantCopyEnd): boolean {
    if (end instanceof Uint8Array) {
      this.#argument.setUint64(byte, this.#calls.addressOf(end));
      return false;
    }
    const { words } = this.#argument;
    words[byte / 4] = end.reference;
    words[byte / 4 + 1] = end.offset | (end.peer << 16);
    return true;
  }

  #run(): void {
    if (this.#operations.length === 0) return;
    const failure = this.#call(this.#operations.length);
    for (const [i, operation] of this.#operations.entries()) {
      operation.status = this.#statusOf(i, failure);
    }
    this.#operations.length = 0;
  }
}

function segmentByte(index: number): number {
  return CopyGrants.byteLength + index * CopySegment.byteLength;
}

function isWithin(end: GrantCopyEnd, length: number): boolean {
  if (length >>> 0 !== length) return false;
  if (end instanceof Uint8Array) return length <= end.length;
  return end.offset >>> 0 === end.offset && end.offset + length <= PAGE_SIZE;
}
