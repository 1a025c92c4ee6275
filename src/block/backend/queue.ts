/**
 * One ring of a backend: takes requests, has the store carry them out in the peer's own pages, and answers
 * (blkback.c: xen_blkif_schedule, __do_block_io_op, dispatch_rw_block_io, make_response).
 *
 * Invariants: a slot is copied once and checked as a copy; every consumed request is answered exactly once, after its
 * pages have been given back; no more requests run than the ring has slots; a producer index that cannot be halts the
 * ring for good. Work happens in `kick` alone, so that one wake-up ends in one publish and one event.
 */
import type { MemoryRegion } from "../../io/memory.ts";
import type { Kickable, Reactor } from "../../io/reactor.ts";
import { BackRing } from "../../ring/back-ring.ts";
import {
  type BlockRequest,
  type BlockStore,
  Operation,
  RequestFlag,
  type RequestOwner,
} from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import { invariant } from "../../util/assert.ts";
import { Fifo } from "../../util/fifo.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  BLKIF_SEGMENTS_PER_INDIRECT_PAGE,
  type BlkifLayout,
  BlkifRequest,
  indirectPageCount,
  readSegments,
} from "../../wire/blkif.ts";
import type { ContiguousMapping, Domain, EventChannel } from "../../xen/domain.ts";
import { blkifStatus } from "../status.ts";
import { GrantCache, MappedPages } from "./grant-cache.ts";
import { PendingRequest } from "./pending-request.ts";
import {
  BrokenRule,
  brokenRuleNames,
  type DeviceFacts,
  parseHead,
  parseSegments,
  ValidRequest,
} from "./request.ts";

/** Counted since the ring was connected; the names are those of Linux's sysfs statistics where it has them. */
export interface QueueCounters {
  requests: number;
  responses: number;
  /** Times the ring had a request and no slot of ours was free (oo_req). */
  outOfRequests: number;
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  /** 512-byte sectors. */
  readSectors: number;
  /** 512-byte sectors. */
  writtenSectors: number;
  errors: number;
  /** Refused requests by the name of the rule. */
  brokenRules: Record<string, number>;
  /** Pages of the peer mapped now. */
  mappedPages: number;
  /** Of those, kept as persistent grants. */
  persistentPages: number;
}

export interface BackendQueueOptions {
  readonly domain: Domain;
  readonly peer: number;
  readonly ring: ContiguousMapping;
  readonly layout: BlkifLayout;
  readonly channel: EventChannel;
  readonly store: BlockStore;
  readonly facts: DeviceFacts;
  /** Pages kept mapped; 0 where persistent grants were not agreed. */
  readonly maxPersistentGrants: number;
  /** Called once when the peer published an impossible producer index. */
  readonly onhalted: () => void;
}

export class BackendQueue implements RequestOwner, Kickable {
  readonly #options: BackendQueueOptions;
  readonly #reactor: Reactor;
  readonly #store: BlockStore;
  readonly #facts: DeviceFacts;
  readonly #ring: BackRing;
  readonly #channel: EventChannel;
  readonly #cache: GrantCache;
  readonly #free = new Fifo<PendingRequest>();
  readonly #pending: PendingRequest[] = [];
  readonly #raw = new BlkifRequest();
  readonly #valid = new ValidRequest();
  readonly #indirectPages = new MappedPages(8);
  readonly #counters = {
    requests: 0,
    responses: 0,
    outOfRequests: 0,
    reads: 0,
    writes: 0,
    flushes: 0,
    discards: 0,
    readSectors: 0,
    writtenSectors: 0,
    errors: 0,
  };
  readonly #broken = new Float64Array(brokenRuleNames.length);
  #wordsRegion: MemoryRegion | undefined = undefined;
  #words: Uint32Array = new Uint32Array(0);
  #inFlight = 0;
  /** A barrier that waits until all before it is done, or runs alone. */
  #barrier: PendingRequest | undefined = undefined;
  #dirty = false;
  #closing = false;
  #halted = false;
  #idle: (() => void) | undefined = undefined;

  constructor(options: BackendQueueOptions) {
    this.#options = options;
    this.#reactor = options.domain.reactor;
    this.#store = options.store;
    this.#facts = options.facts;
    this.#ring = new BackRing(options.ring.bytes, options.layout);
    this.#channel = options.channel;
    this.#cache = new GrantCache(
      options.domain.grants,
      options.peer,
      options.maxPersistentGrants,
      this.#valid.references.length,
    );
    for (let i = 0; i < this.#ring.size; i++) {
      const pending = new PendingRequest(this, i);
      this.#pending.push(pending);
      this.#free.push(pending);
    }
    this.#channel.onevent = () => this.#touch();
    // Requests may have been published before we bound the channel.
    this.#touch();
  }

  /** Requests the ring holds. */
  get slots(): number {
    return this.#ring.size;
  }

  get counters(): QueueCounters {
    const brokenRules: Record<string, number> = {};
    for (const [rule, name] of brokenRuleNames.entries()) {
      if (this.#broken[rule]! > 0) brokenRules[name] = this.#broken[rule]!;
    }
    return {
      ...this.#counters,
      brokenRules,
      mappedPages: this.#cache.mapped,
      persistentPages: this.#cache.kept,
    };
  }

  get halted(): boolean {
    return this.#halted;
  }

  #touch(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    if (!this.#closing && !this.#halted) this.#drain();
    if (this.#ring.publish()) this.#channel.notify();
    if (this.#inFlight === 0) this.#idle?.();
  }

  /** Takes requests until the ring is empty, our slots are used up, or a barrier wants to be alone. */
  #drain(): void {
    // A peer that publishes as fast as we consume gets one ring's worth a turn, as everyone else.
    let budget = this.#ring.size;
    for (;;) {
      const pending = this.#ring.pending();
      if (pending < 0) {
        this.#halt();
        return;
      }
      if (pending === 0) {
        if (this.#ring.finalCheck()) continue;
        return;
      }
      if (this.#barrier !== undefined) return;
      if (budget-- === 0) {
        this.#touch();
        return;
      }
      // No slot free for the response: the peer claims more than a ring full; its completions bring us back here.
      if (!this.#ring.canConsume()) return;
      const slot = this.#free.shift();
      if (slot === undefined) {
        this.#counters.outOfRequests++;
        return;
      }
      this.#ring.consume(this.#raw);
      this.#counters.requests++;
      this.#dispatch(slot);
    }
  }

  #halt(): void {
    this.#halted = true;
    this.#channel.mask();
    this.#options.onhalted();
  }

  #dispatch(slot: PendingRequest): void {
    const valid = this.#valid;
    slot.idLow = this.#raw.idLow;
    slot.idHigh = this.#raw.idHigh;
    let rule = parseHead(this.#raw, this.#facts, valid);
    slot.operation = rule === BrokenRule.unknownOperation ? this.#raw.operation : valid.operation;
    if (rule === BrokenRule.none && valid.operation !== BLKIF_OP_DISCARD) {
      if (valid.indirect) rule = this.#readIndirect();
      if (rule === BrokenRule.none) rule = parseSegments(this.#facts, valid);
      if (rule === BrokenRule.none && valid.count > 0) {
        slot.reserve(valid.count);
        const readOnly = valid.operation !== BLKIF_OP_READ;
        if (!this.#cache.map(valid.references, valid.count, readOnly, slot.pages)) {
          rule = BrokenRule.grant;
        }
      }
    }
    if (rule !== BrokenRule.none) {
      this.#refuse(slot, rule);
      return;
    }
    this.#inFlight++;
    if (valid.operation === BLKIF_OP_WRITE_BARRIER) {
      slot.gather(valid);
      slot.writeAfterFlush = valid.count > 0;
      this.#barrier = slot;
      if (this.#inFlight === 1) this.#flush(slot);
      return;
    }
    this.#execute(slot, valid);
  }

  #readIndirect(): BrokenRule {
    const valid = this.#valid;
    const count = indirectPageCount(valid.count);
    const pages = this.#indirectPages;
    if (!this.#cache.map(this.#raw.indirectReferences, count, true, pages)) return BrokenRule.grant;
    for (let page = 0; page < count; page++) {
      const words = this.#wordsOf(pages.regions[page]!);
      const from = page * BLKIF_SEGMENTS_PER_INDIRECT_PAGE;
      const entries = Math.min(valid.count - from, BLKIF_SEGMENTS_PER_INDIRECT_PAGE);
      readSegments(words, pages.starts[page]! / 4, valid, from, entries);
    }
    this.#cache.unmap(pages);
    return BrokenRule.none;
  }

  /** The memory of a region as words; the same region comes again and again, so one view is kept. */
  #wordsOf(region: MemoryRegion): Uint32Array {
    if (region !== this.#wordsRegion) {
      const { buffer, byteOffset, byteLength } = region.bytes;
      this.#wordsRegion = region;
      this.#words = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
    }
    return this.#words;
  }

  #refuse(slot: PendingRequest, rule: BrokenRule): void {
    this.#broken[rule] = this.#broken[rule]! + 1;
    const unsupported = rule === BrokenRule.unknownOperation || rule === BrokenRule.discardRefused;
    this.#answer(slot, unsupported ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR);
  }

  #execute(slot: PendingRequest, valid: ValidRequest): void {
    const request = slot.request;
    request.flags = 0;
    slot.writeAfterFlush = false;
    switch (valid.operation) {
      case BLKIF_OP_READ:
        this.#counters.reads++;
        this.#counters.readSectors += valid.sectorCount;
        slot.gather(valid);
        request.operation = Operation.read;
        break;
      case BLKIF_OP_WRITE:
        this.#counters.writes++;
        this.#counters.writtenSectors += valid.sectorCount;
        slot.gather(valid);
        request.operation = Operation.write;
        break;
      case BLKIF_OP_FLUSH_DISKCACHE:
        slot.gather(valid);
        slot.writeAfterFlush = valid.count > 0;
        this.#flush(slot);
        return;
      case BLKIF_OP_DISCARD:
        this.#counters.discards++;
        slot.gather(valid);
        request.operation = Operation.discard;
        if (valid.secure) request.flags = RequestFlag.secure;
        // The protocol allows a discard of nothing; a store need not.
        if (valid.sectorCount === 0) {
          this.#finish(slot, 0);
          return;
        }
        break;
    }
    this.#store.submit(request);
  }

  /** A flush on its own, or the one before the data of a flush or barrier that carries some. */
  #flush(slot: PendingRequest): void {
    this.#counters.flushes++;
    const request = slot.request;
    request.operation = Operation.flush;
    request.flags = 0;
    request.offset = 0;
    request.length = 0;
    this.#store.submit(request);
  }

  completed(request: BlockRequest): void {
    const slot = this.#pending[request.tag]!;
    if (request.operation === Operation.flush && slot.writeAfterFlush && request.status === 0) {
      slot.writeAfterFlush = false;
      request.operation = Operation.write;
      request.flags = RequestFlag.forceUnitAccess;
      request.offset = slot.offset;
      request.length = slot.length;
      this.#counters.writes++;
      this.#counters.writtenSectors += request.length / 512;
      this.#store.submit(request);
      return;
    }
    this.#finish(slot, request.status);
  }

  #finish(slot: PendingRequest, errno: number): void {
    if (errno !== 0 && errno !== Errno.EOPNOTSUPP) this.#counters.errors++;
    this.#cache.unmap(slot.pages);
    this.#inFlight--;
    this.#answer(slot, blkifStatus(errno));
    const barrier = this.#barrier;
    if (barrier === undefined) return;
    if (barrier === slot) this.#barrier = undefined;
    else if (this.#inFlight === 1) this.#flush(barrier);
  }

  #answer(slot: PendingRequest, status: number): void {
    this.#ring.respond(slot.idLow, slot.idHigh, slot.operation, status);
    this.#counters.responses++;
    this.#free.push(slot);
    // Publishes, and takes what waited for this slot.
    this.#touch();
  }

  /** Takes no more requests, answers those in flight, gives every page, the ring and the port back. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    this.#channel.onevent = undefined;
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
      this.#idle = undefined;
    }
    if (!this.#halted && this.#ring.publish()) this.#channel.notify();
    this.#cache.clear();
    invariant(this.#cache.mapped === 0, "a page of the peer is still mapped");
    this.#channel[Symbol.dispose]();
    this.#options.ring[Symbol.dispose]();
  }
}
