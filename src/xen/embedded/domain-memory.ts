/**
 * The memory of one embedded domain as this thread sees it, its own or a peer's, behind typed views.
 *
 * The shape is read from the header once, validated and kept: what a peer writes there later changes nothing but
 * whether the domain counts as alive. Invariant: the region is disposed when the last holder has let go, so that
 * nobody is left with a view of unmapped memory, however the domain ended.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import { mapReadOnly } from "../../io/shared-memory.ts";
import { invariant } from "../../util/assert.ts";
import { PAGE_SIZE, XenError } from "../domain.ts";
import {
  type DomainShape,
  DomainState,
  Events,
  Header,
  MAGIC,
  PORT_COUNT,
  shapeFault,
  VERSION,
} from "./layout.ts";

export class DomainMemory {
  readonly region: MemoryRegion;
  readonly shape: DomainShape;
  /** The memfd that it is, open as long as the region; undefined for memory of this process alone. */
  readonly descriptor: number | undefined;
  /** All of it; a Buffer because its `copy` moves bytes without making views. */
  readonly bytes: Buffer;
  readonly header: Int32Array;
  /** Grant entries in units of 16 bits: flags, domid and the two halves of the frame. */
  readonly grantHalves: Uint16Array;
  /** Grant entries in units of 32 bits: flags with domid above them, then the frame. */
  readonly grantWords: Uint32Array;
  readonly upcall: Int32Array;
  readonly pending: Int32Array;
  readonly mask: Int32Array;
  readonly ports: Uint32Array;
  #holders = 1;
  #readOnlyRegion: MemoryRegion | undefined = undefined;

  private constructor(region: MemoryRegion, shape: DomainShape, descriptor: number | undefined) {
    const { buffer, byteOffset } = region.bytes;
    this.descriptor = descriptor;
    this.region = region;
    this.shape = shape;
    this.bytes = Buffer.from(buffer, byteOffset, shape.pageCount * PAGE_SIZE);
    this.header = new Int32Array(buffer, byteOffset, PAGE_SIZE / 4);
    const grants = byteOffset + shape.grantFrame * PAGE_SIZE;
    this.grantHalves = new Uint16Array(buffer, grants, shape.grantEntries * 4);
    this.grantWords = new Uint32Array(buffer, grants, shape.grantEntries * 2);
    const events = byteOffset + shape.eventFrame * PAGE_SIZE;
    this.upcall = new Int32Array(buffer, events + Events.upcall, 1);
    this.pending = new Int32Array(buffer, events + Events.pending, PORT_COUNT / 32);
    this.mask = new Int32Array(buffer, events + Events.mask, PORT_COUNT / 32);
    this.ports = new Uint32Array(buffer, events + Events.ports, PORT_COUNT);
  }

  /** Writes the header of a new domain into zeroed memory; the domain is alive from here on. */
  static format(region: MemoryRegion, shape: DomainShape, descriptor?: number): DomainMemory {
    const memory = new DomainMemory(region, shape, descriptor);
    const { header } = memory;
    header[Header.version] = VERSION;
    header[Header.domid] = shape.domid;
    header[Header.pageCount] = shape.pageCount;
    header[Header.grantFrame] = shape.grantFrame;
    header[Header.grantEntries] = shape.grantEntries;
    header[Header.eventFrame] = shape.eventFrame;
    header[Header.portCount] = shape.portCount;
    header[Header.firstFrame] = shape.firstFrame;
    header[Header.maptrackEntries] = shape.maptrackEntries;
    header[Header.state] = DomainState.alive;
    Atomics.store(header, Header.magic, MAGIC);
    return memory;
  }

  /** Takes memory that someone else formatted. Throws XenError("EINVAL") when its header cannot be believed, and
   * ("ENOENT") when the domain is dead; the region stays the caller's then. */
  static open(region: MemoryRegion, domid: number, descriptor?: number): DomainMemory {
    if (region.bytes.length < PAGE_SIZE) {
      throw new XenError("EINVAL", `domain ${domid}: memory smaller than a page`);
    }
    const header = new Uint32Array(region.bytes.buffer, region.bytes.byteOffset, PAGE_SIZE / 4);
    const word = (index: number): number => Atomics.load(header, index);
    const shape: DomainShape = {
      domid: word(Header.domid),
      pageCount: word(Header.pageCount),
      grantFrame: word(Header.grantFrame),
      grantEntries: word(Header.grantEntries),
      eventFrame: word(Header.eventFrame),
      portCount: word(Header.portCount),
      firstFrame: word(Header.firstFrame),
      maptrackEntries: word(Header.maptrackEntries),
    };
    const fault =
      word(Header.magic) !== MAGIC
        ? "no header"
        : word(Header.version) !== VERSION
          ? `version ${word(Header.version)}`
          : shape.domid !== domid
            ? `the header of domain ${shape.domid}`
            : shapeFault(shape, region.bytes.length);
    if (fault !== undefined) throw new XenError("EINVAL", `domain ${domid}: memory has ${fault}`);
    if (word(Header.state) !== DomainState.alive) {
      throw new XenError("ENOENT", `domain ${domid} is dead`);
    }
    return new DomainMemory(region, shape, descriptor);
  }

  get alive(): boolean {
    return Atomics.load(this.header, Header.state) === DomainState.alive;
  }

  markDead(): void {
    Atomics.store(this.header, Header.state, DomainState.dead);
  }

  /** For whoever may only read: where this is a memfd, a mapping that cannot be written to, made when it is first
   * asked for; else the region itself. The region, too, where the process has no room for another mapping. */
  get readOnlyRegion(): MemoryRegion {
    if (this.descriptor === undefined) return this.region;
    this.#readOnlyRegion ??= mapReadOnly(this.descriptor, this.bytes.length);
    return this.#readOnlyRegion ?? this.region;
  }

  /** One more holder. */
  retain(): this {
    invariant(this.#holders > 0, "memory is retained after its end");
    this.#holders++;
    return this;
  }

  /** One holder less; the last one disposes the region. */
  release(): void {
    invariant(this.#holders > 0, "memory is released once too often");
    if (--this.#holders > 0) return;
    this.#readOnlyRegion?.[Symbol.dispose]();
    this.region[Symbol.dispose]();
  }
}
