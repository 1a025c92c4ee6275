/**
 * Copies between grants and memory of our own, through /dev/xen/gntdev (IOCTL_GNTDEV_GRANT_COPY of <xen/gntdev.h>).
 *
 * The kernel fails the whole call for a copy that leaves its page, so bounds are looked at here. Invariant: every
 * operation has a status of its own afterwards, whatever becomes of the others.
 */
import type { Ffi } from "../../io/ffi.ts";
import { type GrantCopy, type GrantCopyEnd, GrantStatus, PAGE_SIZE } from "../domain.ts";
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
    const segment = segmentByte(this.#operations.length);
    this.#operations.push(operation);
    const from = this.#writeEnd(segment + CopySegment.source, source) ? GNTCOPY_source_gref : 0;
    const to = this.#writeEnd(segment + CopySegment.destination, destination)
      ? GNTCOPY_dest_gref
      : 0;
    const { words } = this.#argument;
    words[(segment + CopySegment.length) / 4] = length | ((from | to) << 16);
    words[(segment + CopySegment.status) / 4] = GrantStatus.generalError & 0xffff;
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
    const { words, address } = this.#argument;
    words[CopyGrants.count / 4] = this.#operations.length;
    this.#argument.setUint64(CopyGrants.segments, address + segmentByte(0));
    const result = this.#calls.ioctl(this.#descriptor, IOCTL_GNTDEV_GRANT_COPY, address);
    const failure = result < 0 ? statusOf(this.#calls.errno()) : undefined;
    for (const [i, operation] of this.#operations.entries()) {
      const word = words[(segmentByte(i) + CopySegment.status) / 4]!;
      operation.status = failure ?? (((word << 16) >> 16) as GrantStatus);
      if (operation.status === GrantStatus.okay) this.#counters.copies++;
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
