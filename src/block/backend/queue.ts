/**
 * One ring of a backend: takes requests, has the store carry them out in the peer's own pages or in copies, and answers
 * (blkback.c: xen_blkif_schedule, __do_block_io_op, dispatch_rw_block_io, make_response).
 *
 * Invariants: a slot is copied once and checked as a copy; every consumed request is answered exactly once, after its
 * pages have been given back; no more requests run than the ring has slots; a producer index that cannot be halts the
 * ring for good, after a broken request the ring rests, and after many events without a request its port does. Work
 * happens in `kick` alone, so that one wake-up ends in one publish and one event; a kick that leaves the ring empty has
 * asked for an event, or another follows it.
 */
import type { Kickable, Reactor } from "../../io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  Operation,
  RequestFlag,
  type RequestOwner,
} from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import { invariant } from "../../util/assert.ts";
import type { Clock } from "../../util/clock.ts";
import { Fifo } from "../../util/fifo.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_ERROR,
  type BlkifLayout,
  BlkifRequest,
} from "../../wire/blkif.ts";
import {
  type ContiguousMapping,
  type Domain,
  type EventChannel,
  XenError,
} from "../../xen/domain.ts";
import { EventGuard } from "../../xen/event-guard.ts";
import { batchOf } from "../batch.ts";
import type { BackendLimits } from "../features.ts";
import { blkifStatus } from "../status.ts";
import { BrokenRules } from "./broken-rules.ts";
import { CopiedPages } from "./copied-pages.ts";
import { type QueueCounters, RequestCounters } from "./counters.ts";
import type { Drain, DrainMember } from "./drain.ts";
import { GrantCache } from "./grant-cache.ts";
import { IndirectPages } from "./indirect-pages.ts";
import { JournaledRing } from "./journaled-ring.ts";
import type { PendingRequest } from "./pending-request.ts";
import { PendingRequests } from "./pending-requests.ts";
import { Reclaim } from "./reclaim.ts";
import { BrokenRule, type DeviceFacts, parseHead, parseSegments, ValidRequest } from "./request.ts";
import type { RequestPages } from "./request-pages.ts";
import type { RingJournal } from "./ring-journal.ts";

/** blkback sleeps as long after a broken request: whoever sends nothing else gets a thousand answers a second. */
const BROKEN_REQUEST_PAUSE_MILLISECONDS = 1;

/** What the store said it cannot do, so that it is not offered any more. */
export type Unsupported = "flush" | "discard";

export interface BackendQueueOptions {
  readonly domain: Domain;
  readonly clock: Clock;
  readonly peer: number;
  /** Backend directory of the vbd, for messages. */
  readonly path: string;
  /** Number of the ring. */
  readonly index: number;
  readonly ring: ContiguousMapping;
  readonly layout: BlkifLayout;
  readonly channel: EventChannel;
  readonly store: BlockStore;
  readonly facts: DeviceFacts;
  readonly limits: BackendLimits;
  /** Persistent grants were agreed. */
  readonly persistent: boolean;
  /** Of all rings of the vbd. */
  readonly drain: Drain;
  /** For a successor; undefined where none is hoped for. One that a backend before us kept is gone on with. */
  readonly journal: RingJournal | undefined;
  /** Called once when the peer published an impossible producer index. */
  readonly onhalted: () => void;
  readonly onunsupported: (what: Unsupported) => void;
}

export class BackendQueue implements RequestOwner, Kickable, DrainMember {
  readonly #options: BackendQueueOptions;
  readonly #reactor: Reactor;
  readonly #store: BlockStore;
  readonly #facts: DeviceFacts;
  readonly #drain: Drain;
  readonly #ring: JournaledRing;
  readonly #channel: EventChannel;
  readonly #guard: EventGuard;
  readonly #persistent: boolean;
  readonly #cache: GrantCache;
  readonly #copies: CopiedPages;
  readonly #reclaim: Reclaim;
  /** What a backend before us took and did not answer: it comes before what is in the ring. */
  readonly #inherited = new Fifo<PendingRequest>();
  readonly #pending: PendingRequests;
  readonly #raw = new BlkifRequest();
  readonly #valid = new ValidRequest();
  readonly #indirect = new IndirectPages();
  readonly #counters = new RequestCounters();
  readonly #stalls = { slots: 0, bufferPages: 0, barrier: 0, brokenRequest: 0 };
  readonly #broken: BrokenRules;
  /** Requests taken in one kick. */
  readonly #batch: number;
  #inFlight = 0;
  /** Requests counted when the kick began. */
  #requestsBefore = 0;
  /** Checked, in `#valid`, and waiting for pages of others to be given back. */
  #held: PendingRequest | undefined = undefined;
  /** Runs while the ring rests after a broken request. */
  #pause: Disposable | undefined = undefined;
  #dirty = false;
  #closing = false;
  /** As closing, but what was taken is carried out first. */
  #leaving = false;
  #closed = false;
  #halted = false;
  #idle: (() => void) | undefined = undefined;

  /** Throws XenError("EIO") where the ring's indexes are impossible from the start. */
  constructor(options: BackendQueueOptions) {
    const { domain, limits, clock } = options;
    this.#options = options;
    this.#reactor = domain.reactor;
    this.#store = options.store;
    this.#facts = options.facts;
    this.#drain = options.drain;
    this.#ring = new JournaledRing(options.ring.bytes, options.layout, options.journal);
    if (this.#ring.pending() < 0) throw new XenError("EIO", "impossible indexes on a fresh ring");
    this.#channel = options.channel;
    this.#guard = new EventGuard(options.channel, clock);
    this.#persistent = options.persistent && limits.maxPersistentGrants > 0;
    this.#cache = new GrantCache({
      grants: domain.grants,
      peer: options.peer,
      capacity: this.#persistent ? limits.maxPersistentGrants : 0,
      batch: this.#valid.references.length,
      bufferPages: limits.maxBufferPages,
      unusedMilliseconds: limits.persistentGrantUnusedSeconds * 1000,
    });
    this.#copies = new CopiedPages({
      grants: domain.grants,
      peer: options.peer,
      // What is kept mapped need not be copied.
      use: this.#persistent ? "map" : limits.grants,
      bufferPages: limits.maxBufferPages,
    });
    this.#reclaim = new Reclaim(this.#cache, clock, () => this.#wake());
    this.#broken = new BrokenRules(options.path, options.index, clock);
    this.#batch = batchOf(options.channel, this.#ring.size);
    this.#pending = new PendingRequests(this, this.#ring.size);
    for (const entry of this.#ring.inherited) this.#inherited.push(this.#pending.inherit(entry));
    this.#drain.join(this);
    this.#channel.onevent = () => {
      this.#guard.came();
      this.#touch();
    };
    // A backend before us may have published responses, and been stopped before it said so.
    if (this.#ring.continued) this.#channel.notify();
    // Requests may have been published before we bound the channel.
    this.#touch();
  }

  /** Requests the ring holds. */
  get slots(): number {
    return this.#ring.size;
  }

  get counters(): QueueCounters {
    return {
      ...this.#counters,
      brokenRules: this.#broken.counts,
      stalls: { ...this.#stalls },
      inFlight: this.#inFlight,
      mappedPages: this.#cache.mapped,
      persistentPages: this.#cache.kept,
      purgedPages: this.#reclaim.count,
    };
  }

  /** The ring's pages, for whoever wants to look at them. */
  get bytes(): Uint8Array {
    return this.#options.ring.bytes;
  }

  get halted(): boolean {
    return this.#halted;
  }

  /** From outside of the reactor: timers, and rings that a barrier held up. */
  #wake(): void {
    this.#touch();
    this.#reactor.soon();
  }

  #touch(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    if (this.#closed) return;
    if (this.#persistent) this.#reclaim.begin(this.#reactor.turn);
    // First, since whoever is notified may have sent more by the time that we look.
    if (this.#ring.publish()) this.#channel.notify();
    if (!this.#closing && !this.#halted) {
      this.#requestsBefore = this.#counters.requests;
      this.#take();
      this.#guard.ended(this.#tookSome());
    }
    if (this.#inFlight === 0 && this.#held === undefined && this.#inherited.empty) this.#idle?.();
    if (this.#persistent && !this.#closing) this.#reclaim.step();
  }

  /** Takes requests until the ring is empty, or one of the reasons in StallCounters holds it up. */
  #take(): void {
    // A peer that publishes as fast as we consume gets one batch a turn, as everyone else.
    let budget = this.#batch;
    for (;;) {
      if (this.#held !== undefined && !this.#retry(this.#held)) return;
      if (this.#inherited.empty && !this.#someArrived()) return;
      if (this.#drain.barred) {
        this.#stalls.barrier++;
        return;
      }
      if (this.#pause !== undefined) {
        this.#stalls.brokenRequest++;
        return;
      }
      if (budget-- === 0) {
        this.#touch();
        return;
      }
      const slot = this.#takeInherited() ?? this.#takeNext();
      if (slot === undefined) return;
      this.#counters.requests++;
      this.#dispatch(slot);
    }
  }

  /** In this kick. */
  #tookSome(): boolean {
    return this.#counters.requests !== this.#requestsBefore;
  }

  /** Whether the ring has requests that are to be taken. The frontend is asked for its next event only by a kick that
   * finds none: what was taken may be answered by then, and what the answer has brought needs no event. */
  #someArrived(): boolean {
    if (this.#leaving) return false;
    const pending = this.#ring.pending();
    if (pending < 0) this.#halt();
    if (pending === 0 && this.#tookSome()) {
      this.#touch();
      return false;
    }
    return pending === 0 ? this.#ring.finalCheck() : pending > 0;
  }

  /** Copies the next request of the ring; undefined where it must wait. */
  #takeNext(): PendingRequest | undefined {
    // No slot free for the response: the peer claims more than a ring full; its completions bring us back here.
    if (!this.#ring.canConsume()) return undefined;
    const slot = this.#pending.take();
    if (slot === undefined) {
      this.#counters.outOfRequests++;
      this.#stalls.slots++;
      return undefined;
    }
    this.#ring.take(slot.request.tag, this.#raw);
    return slot;
  }

  #takeInherited(): PendingRequest | undefined {
    const slot = this.#inherited.shift();
    if (slot !== undefined) this.#ring.readInherited(slot.request.tag, this.#raw);
    return slot;
  }

  #halt(): void {
    this.#halted = true;
    this.#guard[Symbol.dispose]();
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
      if (valid.indirect) {
        const { indirectReferences } = this.#raw;
        const read = this.#indirect.read(this.#cache, this.#copies, indirectReferences, valid);
        if (!read) rule = BrokenRule.grant;
      }
      if (rule === BrokenRule.none) rule = parseSegments(this.#facts, valid);
    }
    if (rule !== BrokenRule.none) this.#refuse(slot, rule);
    else if (this.#hasRoom(valid.count)) this.#begin(slot, valid);
    else {
      this.#held = slot;
      this.#stalls.bufferPages++;
    }
  }

  #hasRoom(count: number): boolean {
    return this.#cache.hasRoom(count, this.#copies.used);
  }

  /** Whether the request that was held up could begin. */
  #retry(slot: PendingRequest): boolean {
    if (this.#drain.barred || !this.#hasRoom(this.#valid.count)) return false;
    this.#held = undefined;
    this.#begin(slot, this.#valid);
    return true;
  }

  /** Makes the pages the store's, by mapping or copying them; false where the peer does not let us. */
  #borrow(pages: RequestPages, valid: ValidRequest): boolean {
    const { references, count } = valid;
    const read = valid.operation !== BLKIF_OP_READ;
    if (!this.#copies.chosen) return this.#cache.map(references, count, read, pages);
    pages.listParts(valid);
    return this.#copies.begin(pages, read);
  }

  /** Gives them back; false where a peer does not take what was read for him. */
  #giveBackPages({ pages, operation }: PendingRequest, errno: number): boolean {
    if (pages.copied) return this.#copies.end(pages, operation === BLKIF_OP_READ && errno === 0);
    this.#cache.unmap(pages);
    return true;
  }

  /** Hands the request to the store, or to the drain first. */
  #begin(slot: PendingRequest, valid: ValidRequest): void {
    if (valid.count > 0) {
      slot.reserve(valid.count);
      if (!this.#borrow(slot.pages, valid)) {
        this.#refuse(slot, BrokenRule.grant);
        return;
      }
    }
    slot.gather(valid);
    this.#inFlight++;
    switch (valid.operation) {
      case BLKIF_OP_READ:
        this.#drain.begin(slot, false);
        this.#counters.reads++;
        this.#counters.readSectors += valid.sectorCount;
        this.#submit(slot, Operation.read, 0);
        return;
      case BLKIF_OP_WRITE:
        this.#drain.begin(slot, true);
        this.#countWrite(valid.sectorCount);
        this.#submit(slot, Operation.write, 0);
        return;
      case BLKIF_OP_DISCARD:
        this.#drain.begin(slot, true);
        this.#counters.discards++;
        // The protocol allows a discard of nothing; a store need not.
        if (valid.sectorCount === 0) this.#finish(slot, 0);
        else this.#submit(slot, Operation.discard, valid.secure ? RequestFlag.secure : 0);
        return;
      default:
        slot.writeAfterFlush = valid.count > 0;
        this.#drain.begin(slot, slot.writeAfterFlush);
        if (valid.operation === BLKIF_OP_WRITE_BARRIER) this.#drain.bar(slot);
        else this.#drain.flush(slot);
    }
  }

  /** Answers a request that cannot be; one that breaks a rule costs the ring a pause. */
  #refuse(slot: PendingRequest, rule: BrokenRule): void {
    this.#broken.add(rule);
    const unsupported = rule === BrokenRule.unknownOperation || rule === BrokenRule.discardRefused;
    // A frontend may not have heard yet that discard is no more: that is no offence.
    if (rule !== BrokenRule.discardRefused) this.#rest();
    this.#answer(slot, unsupported ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR);
  }

  #rest(): void {
    this.#pause ??= this.#options.clock.after(BROKEN_REQUEST_PAUSE_MILLISECONDS, () => {
      this.#pause = undefined;
      this.#wake();
    });
  }

  #countWrite(sectors: number): void {
    this.#counters.writes++;
    this.#counters.writtenSectors += sectors;
  }

  #submit(slot: PendingRequest, operation: Operation, flags: number): void {
    slot.request.operation = operation;
    slot.request.flags = flags;
    this.#store.submit(slot.request);
  }

  /** A flush on its own, or the one before the data of a flush or barrier that carries some. */
  drained(slot: PendingRequest): void {
    this.#counters.flushes++;
    slot.request.offset = 0;
    slot.request.length = 0;
    this.#submit(slot, Operation.flush, 0);
  }

  resume(): void {
    if (!this.#closing) this.#touch();
  }

  completed(request: BlockRequest): void {
    const slot = this.#pending.of(request.tag);
    if (slot.writeAfterFlush && request.operation === Operation.flush && request.status === 0) {
      slot.writeAfterFlush = false;
      request.offset = slot.offset;
      request.length = slot.length;
      this.#countWrite(request.length / 512);
      this.#submit(slot, Operation.write, RequestFlag.forceUnitAccess);
      return;
    }
    this.#finish(slot, request.status);
  }

  #finish(slot: PendingRequest, errno: number): void {
    if (errno === Errno.EOPNOTSUPP) this.#unsupported(slot.request);
    else if (errno !== 0) this.#counters.errors++;
    slot.writeAfterFlush = false;
    const given = this.#giveBackPages(slot, errno);
    this.#inFlight--;
    this.#drain.end(slot);
    if (given) this.#answer(slot, blkifStatus(errno));
    else this.#refuse(slot, BrokenRule.grant);
  }

  #unsupported({ operation, flags }: BlockRequest): void {
    if (operation === Operation.flush) this.#options.onunsupported("flush");
    else if (operation === Operation.discard && (flags & RequestFlag.secure) === 0) {
      this.#options.onunsupported("discard");
    }
  }

  #answer(slot: PendingRequest, status: number): void {
    const { tag } = slot.request;
    this.#ring.answer(tag, slot.idLow, slot.idHigh, slot.operation, status);
    this.#counters.responses++;
    this.#pending.give(slot);
    // Publishes, and takes what waited for this slot.
    this.#touch();
  }

  /** Takes no more requests, answers those in flight, gives every page, the ring and the port back. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    if (this.#held !== undefined) this.#answer(this.#held, BLKIF_RSP_ERROR);
    this.#held = undefined;
    // Whoever asked for them has closed: nobody is told.
    while (this.#inherited.shift() !== undefined);
    await this.#settled();
    this.#ring.retire();
    this.#giveBack();
  }

  /** As `close`, for a successor on the same ring: all that was taken is carried out, and what the frontend goes on to
   * send waits in the ring. */
  async leave(): Promise<void> {
    if (this.#closing) return;
    this.#leaving = true;
    this.#wake();
    await this.#settled();
    this.#closing = true;
    this.#giveBack();
  }

  /** Resolves when nothing is in flight. */
  async #settled(): Promise<void> {
    if (this.#inFlight === 0 && this.#held === undefined && this.#inherited.empty) return;
    await new Promise<void>((resolve) => {
      this.#idle = resolve;
    });
    this.#idle = undefined;
  }

  #giveBack(): void {
    this.#channel.onevent = undefined;
    this.#guard[Symbol.dispose]();
    this.#pause?.[Symbol.dispose]();
    this.#reclaim[Symbol.dispose]();
    this.#drain.leave(this);
    if (this.#ring.publish()) this.#channel.notify();
    // A kick may still be on its way, and the ring's memory is not ours any more.
    this.#closed = true;
    this.#cache.clear();
    this.#copies[Symbol.dispose]();
    invariant(this.#cache.mapped === 0, "a page of the peer is still mapped");
    this.#channel[Symbol.dispose]();
    this.#options.ring[Symbol.dispose]();
  }
}
