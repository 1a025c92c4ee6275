/** Memory for the argument of an ioctl, with an address, reused from call to call. Structures are in this machine's order,
 * which is little-endian wherever Xen runs. */
import { allocateRegion, type MemoryRegion } from "../../io/memory.ts";

export class IoctlArgument {
  readonly words: Uint32Array;
  readonly #region: MemoryRegion;

  constructor(byteLength: number) {
    this.#region = allocateRegion(byteLength);
    const { buffer, byteOffset } = this.#region.bytes;
    this.words = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
  }

  get address(): number {
    return this.#region.address;
  }

  /** Offsets of pages and addresses: below 2^53, and so exact. `byte` is a multiple of 4. */
  getUint64(byte: number): number {
    return this.words[byte / 4]! + this.words[byte / 4 + 1]! * 2 ** 32;
  }

  setUint64(byte: number, value: number): void {
    this.words[byte / 4] = value;
    this.words[byte / 4 + 1] = value / 2 ** 32;
  }
}
