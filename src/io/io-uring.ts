/**
 * The rings of io_uring as the kernel lays them out: io_uring(7), io_uring_setup(2), <linux/io_uring.h>.
 *
 * Invariant: indexes that the kernel writes are read, and indexes that it reads are written, through Atomics alone;
 * no more entries are in flight than the submission ring has.
 */
import { type Ffi, systemError } from "./ffi.ts";
import { allocateRegion } from "./memory.ts";

export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_OP_FADVISE = 24;

const IORING_SETUP_CLAMP = 1 << 4;
const IORING_SETUP_COOP_TASKRUN = 1 << 8;
const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
/** IORING_FEAT_SINGLE_MMAP, and IORING_FEAT_RW_CUR_POS: of Linux 5.6, as the operations above. */
const FEATURES = 1 | 8;
const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x10000000;
const PROT_READ_WRITE = 3;
const MAP_SHARED_POPULATE = 0x8001;
const PARAMETERS_BYTES = 120;
const SQE_BYTES = 64;
const SQE_WORDS = 16;
const CQE_BYTES = 16;
const TWO_32 = 2 ** 32;
const EINVAL = 22;

export class IoUring {
  readonly descriptor: number;
  /** Entries of the submission ring; the completion ring has twice as many. */
  readonly entries: number;
  /** Of the completion that `reap` found last. */
  userData = 0;
  /** Of the completion that `reap` found last: bytes, or a negative errno. */
  result = 0;
  readonly #calls: Ffi;
  readonly #mappings: { address: number; length: number }[] = [];
  readonly #ring: Int32Array;
  readonly #submissions: Uint32Array;
  readonly #submitHead: number;
  readonly #submitTail: number;
  readonly #completeHead: number;
  readonly #completeTail: number;
  readonly #completions: number;
  readonly #completeMask: number;
  #tail: number;
  #head: number;

  /** Throws an Error with the errno's name as its code where the kernel has no io_uring for us. */
  constructor(calls: Ffi, entries: number) {
    this.#calls = calls;
    const region = allocateRegion(PARAMETERS_BYTES);
    const parameters = new DataView(region.bytes.buffer, region.bytes.byteOffset, PARAMETERS_BYTES);
    const word = (byte: number) => parameters.getUint32(byte, true);
    this.descriptor = setup(calls, entries, region.address, parameters);
    this.entries = word(0);
    try {
      if ((word(20) & FEATURES) !== FEATURES) throw new Error("it is older than Linux 5.6");
      // struct io_sqring_offsets at byte 40, struct io_cqring_offsets at byte 80.
      const submissionArray = word(64);
      const completions = word(100);
      const ringBytes = Math.max(
        submissionArray + this.entries * 4,
        completions + word(4) * CQE_BYTES,
      );
      const submissionBytes = this.entries * SQE_BYTES;
      this.#ring = new Int32Array(this.#map(ringBytes, IORING_OFF_SQ_RING));
      this.#submissions = new Uint32Array(this.#map(submissionBytes, IORING_OFF_SQES));
      this.#submitHead = word(40) / 4;
      this.#submitTail = word(44) / 4;
      this.#completeHead = word(80) / 4;
      this.#completeTail = word(84) / 4;
      this.#completions = completions / 4;
      this.#completeMask = word(4) - 1;
      for (let i = 0; i < this.entries; i++) this.#ring[submissionArray / 4 + i] = i;
      this.#tail = Atomics.load(this.#ring, this.#submitTail);
      this.#head = Atomics.load(this.#ring, this.#completeHead);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Writes an entry: `address` and `length` mean what the operation wants, `userData` is a u32. */
  prepare(
    operation: number,
    descriptor: number,
    address: number,
    length: number,
    offset: number,
    flags: number,
    userData: number,
  ): void {
    const words = this.#submissions;
    const at = (this.#tail & (this.entries - 1)) * SQE_WORDS;
    const offsetHigh = Math.floor(offset / TWO_32);
    const addressHigh = Math.floor(address / TWO_32);
    words[at] = operation;
    words[at + 1] = descriptor;
    words[at + 2] = offset - offsetHigh * TWO_32;
    words[at + 3] = offsetHigh;
    words[at + 4] = address - addressHigh * TWO_32;
    words[at + 5] = addressHigh;
    words[at + 6] = length;
    words[at + 7] = flags;
    words[at + 8] = userData;
    // The others have been zero since the ring was made: nobody writes them.
    this.#tail = (this.#tail + 1) | 0;
  }

  /** Hands every entry to the kernel, which does what it can at once. Returns false where it is short of memory and
   * wants to be asked again later. */
  submit(): boolean {
    Atomics.store(this.#ring, this.#submitTail, this.#tail);
    for (;;) {
      const count = (this.#tail - Atomics.load(this.#ring, this.#submitHead)) | 0;
      if (count === 0) return true;
      if (this.#calls.ioUringEnter(this.descriptor, count, 0, 0) >= 0) continue;
      const errno = this.#calls.errno();
      if (errno === 11 || errno === 16) return false;
      if (errno !== 4) throw systemError("io_uring_enter", errno);
    }
  }

  /** Takes the next completion into `userData` and `result`. Returns false when there is none. */
  reap(): boolean {
    const ring = this.#ring;
    const head = this.#head;
    if (head === Atomics.load(ring, this.#completeTail)) return false;
    const at = this.#completions + (head & this.#completeMask) * 4;
    this.userData = ring[at]!;
    this.result = ring[at + 2]!;
    this.#head = (head + 1) | 0;
    Atomics.store(ring, this.#completeHead, this.#head);
    return true;
  }

  /** Nothing may be in flight. */
  close(): void {
    for (const { address, length } of this.#mappings.splice(0)) this.#calls.munmap(address, length);
    this.#calls.close(this.descriptor);
  }

  #map(length: number, offset: number): ArrayBuffer {
    const calls = this.#calls;
    const { descriptor } = this;
    const address = calls.mmap(0, length, PROT_READ_WRITE, MAP_SHARED_POPULATE, descriptor, offset);
    if (address < 0) throw systemError("mmap", calls.errno(), "of io_uring");
    this.#mappings.push({ address, length });
    return calls.view(address, length);
  }
}

function setup(calls: Ffi, entries: number, address: number, parameters: DataView): number {
  // One thread submits and reaps, and a completion may wait for its next system call; before Linux 6.0 the kernel
  // does not know of it.
  for (const hints of [IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER, 0]) {
    parameters.setUint32(8, IORING_SETUP_CLAMP | hints, true);
    const descriptor = calls.ioUringSetup(entries, address);
    if (descriptor >= 0) return descriptor;
    if (calls.errno() !== EINVAL) break;
  }
  throw systemError("io_uring_setup", calls.errno());
}
