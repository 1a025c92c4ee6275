/**
 * What the backend of one ring has taken and not answered, in memory that outlives its process: a successor goes on from
 * there, and the frontend notices nothing. Responses are put in the order they come, over the slots of requests that are
 * still being carried out, so that the ring's own pages do not tell.
 *
 * Invariants: a request is in the journal before it counts as taken, and out of it only when its response stands in the
 * ring; so taken - (requests in the journal) is where the next response goes, wherever the writer was stopped. Nothing of
 * it is shared with the frontend. Words that order others are stored by Atomics.
 */
import { invariant } from "../../util/assert.ts";
import { type BlkifRequest, blkifLayout, readRequest, writeRequest } from "../../wire/blkif.ts";

/** Memory for the journals of a vbd's rings. */
export interface RingJournals {
  /** The bytes that were given for this ring the last time, whoever wrote them, where there were as many; else zeroes.
   * Aligned to 4 bytes. They are used until the vbd is disconnected, or its backend ends. */
  open(ring: number, byteLength: number): Uint8Array;
}

/** To which ring a journal belongs: one of another ring is not believed. */
export interface RingIdentity {
  readonly peer: number;
  readonly port: number;
  readonly references: readonly number[];
  /** Slots. */
  readonly size: number;
  /** Bytes of a slot, by which the protocols differ. */
  readonly slotSize: number;
}

/** "vbdj" */
const MAGIC = 0x6a64_6276;
const VERSION = 1;

// Words of the header: magic, version, requests taken (free-running), then the identity.
const TAKEN = 2;
const IDENTITY = 3;
const HEADER_WORDS = 32;

// Words of an entry, one for each request that the ring's backend can hold: whether it is in use, the free-running index
// of its request, and the request as in a slot of the 64-bit ABI.
const IN_USE = 0;
const SEQUENCE = 1;
const REQUEST = 4;
const ENTRY_WORDS = 32;

const layout = blkifLayout("x86_64-abi");

export class RingJournal {
  readonly #words: Uint32Array;
  /** The same, for Atomics: small integers. */
  readonly #signed: Int32Array;
  readonly #size: number;
  readonly #facts: readonly number[];

  /** Of a ring of `size` slots. */
  static byteLength(size: number): number {
    return (HEADER_WORDS + size * ENTRY_WORDS) * 4;
  }

  constructor(bytes: Uint8Array, identity: RingIdentity) {
    invariant(bytes.byteLength === RingJournal.byteLength(identity.size), "a journal's size");
    const length = bytes.byteLength / 4;
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, length);
    this.#signed = new Int32Array(bytes.buffer, bytes.byteOffset, length);
    const { peer, port, references, size, slotSize } = identity;
    this.#size = size;
    this.#facts = [peer, port, size, slotSize, references.length, ...references];
    invariant(this.#facts.length <= HEADER_WORDS - IDENTITY, "a ring of more pages than there are");
  }

  /** Whether somebody before us kept it, for the same ring. */
  get kept(): boolean {
    const words = this.#words;
    return (
      Atomics.load(this.#signed, 0) === MAGIC &&
      words[1] === VERSION &&
      this.#facts.every((fact, index) => words[IDENTITY + index] === fact >>> 0)
    );
  }

  /** Begins an empty one, of a ring of which `taken` requests were taken and answered. */
  begin(taken: number): void {
    // Without its magic it is nobody's, wherever we are stopped.
    Atomics.store(this.#signed, 0, 0);
    this.#words.fill(0);
    this.#words.set([VERSION, taken, ...this.#facts], 1);
    Atomics.store(this.#signed, 0, MAGIC);
  }

  /** Requests taken so far, free-running. */
  get taken(): number {
    return Atomics.load(this.#signed, TAKEN);
  }

  /** The entries of requests that were taken and not answered, in the order they came. */
  unanswered(): number[] {
    const age = (entry: number) => (this.taken - this.#words[this.#at(entry) + SEQUENCE]!) | 0;
    return Array.from({ length: this.#size }, (_, entry) => entry)
      .filter((entry) => this.#signed[this.#at(entry) + IN_USE] === 1 && age(entry) > 0)
      .sort((left, right) => age(right) - age(left));
  }

  /** Copies the request of an entry. */
  read(entry: number, into: BlkifRequest): void {
    readRequest(layout, this.#words, this.#at(entry) + REQUEST, into);
  }

  /** The next request of the ring was taken; `entry` is free. */
  take(entry: number, request: BlkifRequest): void {
    const at = this.#at(entry);
    const taken = this.#signed[TAKEN]!;
    writeRequest(layout, this.#words, at + REQUEST, request);
    this.#words[at + SEQUENCE] = taken;
    // An entry that is in use, of a request that does not count as taken, is none: it is still in the ring.
    Atomics.store(this.#signed, at + IN_USE, 1);
    Atomics.store(this.#signed, TAKEN, (taken + 1) | 0);
  }

  /** Its response stands in the ring, published or not. */
  answered(entry: number): void {
    Atomics.store(this.#signed, this.#at(entry) + IN_USE, 0);
  }

  /** Nobody's any more: the ring is given back. */
  retire(): void {
    Atomics.store(this.#signed, 0, 0);
  }

  #at(entry: number): number {
    return HEADER_WORDS + entry * ENTRY_WORDS;
  }
}
