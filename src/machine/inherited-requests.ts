/** The requests that a saved guest left unanswered, done once more on the disk that it was restored with. Whoever had
 * submitted them is gone with his process: what became of them is said here. */

import type { OutstandingRequest } from "../block/index.ts";
import { allocateRegion, type MemoryRegion, SegmentList } from "../io/memory.ts";
import {
  BlockRequest,
  type BlockStore,
  Operation,
  type RequestOwner,
} from "../store/block-store.ts";
import { errnoName, StoreError } from "../store/errors.ts";

export interface InheritedRequest {
  readonly operation: keyof typeof Operation;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** What is written, or, once it has been carried out, what was read. */
  readonly data: Uint8Array;
  /** Resolves when the request has been carried out; rejects with a StoreError. */
  readonly outcome: Promise<void>;
}

const names = Object.keys(Operation) as (keyof typeof Operation)[];

interface Orderly extends BlockStore {
  submitOrdered(request: BlockRequest): void;
}

/** Submits them, in their order. They outlive their memory nowhere: it is given back with each answer. */
export function inherit(
  disk: Orderly,
  requests: readonly OutstandingRequest[],
): readonly InheritedRequest[] {
  return requests.map((request) => new Inherited(request).submit(disk));
}

class Inherited implements RequestOwner {
  readonly #request = new BlockRequest(this);
  readonly #from: OutstandingRequest;
  readonly #memory: MemoryRegion | undefined;
  readonly #data: Uint8Array;
  readonly #outcome = Promise.withResolvers<void>();

  constructor(from: OutstandingRequest) {
    this.#from = from;
    const { operation, length } = from;
    const request = this.#request;
    request.operation = operation;
    request.flags = from.flags;
    request.offset = from.offset;
    request.length = length;
    this.#data = operation === Operation.read ? new Uint8Array(length) : from.data;
    // Nobody has to look at the outcome.
    this.#outcome.promise.catch(() => {});
    if (operation > Operation.write) return;
    this.#memory = allocateRegion(length);
    this.#memory.bytes.set(from.data);
    request.segments = new SegmentList(1);
    if (length > 0) request.segments.add(this.#memory, 0, length);
  }

  submit(disk: Orderly): InheritedRequest {
    const { operation, offset, length, ordered } = this.#from;
    if (ordered) disk.submitOrdered(this.#request);
    else disk.submit(this.#request);
    const name = names[operation]!;
    return { operation: name, offset, length, data: this.#data, outcome: this.#outcome.promise };
  }

  completed({ status, operation, offset, length }: BlockRequest): void {
    if (operation === Operation.read && status === 0) this.#data.set(this.#memory!.bytes);
    this.#memory?.[Symbol.dispose]();
    if (status === 0) {
      this.#outcome.resolve();
      return;
    }
    const code = errnoName(status);
    const message = `cannot ${names[operation]} ${length} bytes at ${offset}: ${code}`;
    this.#outcome.reject(new StoreError(code, message));
  }
}
