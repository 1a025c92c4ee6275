/**
 * One ring of a frontend: cuts callers' requests into commands, or joins several in one, puts them on the ring, and
 * completes them by the responses (FreeBSD's xbd_startio and xbd_int, Linux's blkif_queue_rq and blkif_interrupt).
 *
 * Invariants: order is kept while a request waits for a command, pages or grants; every command that was published is
 * completed by exactly one response that carries its id and its operation, and anything else breaks the device, not the
 * process. One kick takes a batch of responses at most. Work happens in `kick` alone.
 */
import type { Kickable, Reactor } from "../../io/reactor.ts";
import type { FrontRing } from "../../ring/front-ring.ts";
import { type BlockRequest, Operation, RequestFlag } from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import type { Clock } from "../../util/clock.ts";
import { Fifo } from "../../util/fifo.ts";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BlkifResponse,
} from "../../wire/blkif.ts";
import { type Domain, type EventChannel, PAGE_SIZE } from "../../xen/domain.ts";
import { EventGuard } from "../../xen/event-guard.ts";
import { batchOf } from "../batch.ts";
import { errnoOfStatus } from "../status.ts";
import type { ClientMemory } from "./client-memory.ts";
import type { Command } from "./command.ts";
import { Commands } from "./commands.ts";
import { ALONE, BARRIER, complete } from "./completion.ts";
import type { FrontendCounters } from "./counters.ts";
import { Freezer } from "./freeze.ts";
import type { PagePool } from "./page-pool.ts";
import { completeRun, lastOfRun } from "./run.ts";
import { type QueueFeatures, SlotWriter } from "./slot-writer.ts";

/** Whom a ring tells. */
export interface QueueOwner {
  /** What the backend does that it must not, beginning with the verb. Is to end in a call of `fail`. */
  broken(reason: string): void;
  /** Nothing is on the ring. Called from kicks, as long as it is so. */
  quiet(): void;
  /** The backend refused an operation that it had offered; the features say so already. */
  withdrawn(operation: number): void;
  /** A barrier was refused before it was done: the write is to be kept in order by waiting. */
  unordered(request: BlockRequest): void;
}

export interface FrontendQueueOptions {
  readonly domain: Domain;
  readonly clock: Clock;
  readonly ring: FrontRing;
  readonly channel: EventChannel;
  readonly pool: PagePool;
  readonly indirectPool: PagePool | undefined;
  readonly clientMemory: ClientMemory | undefined;
  readonly features: QueueFeatures;
  readonly vdev: number;
  readonly counters: FrontendCounters;
  readonly owner: QueueOwner;
}

/** What became of a waiting request in one step. */
const Step = {
  /** It needs no (other) command. */
  whole: 0,
  /** A piece was sent, and more is left. */
  part: 1,
  /** Something is short; the freezer knows what. */
  short: 2,
} as const;
type Step = (typeof Step)[keyof typeof Step];

export class FrontendQueue implements Kickable {
  readonly #domain: Domain;
  readonly #reactor: Reactor;
  readonly #ring: FrontRing;
  readonly #channel: EventChannel;
  readonly #owner: QueueOwner;
  readonly #features: QueueFeatures;
  readonly #writer: SlotWriter;
  readonly #guard: EventGuard;
  readonly #pool: PagePool;
  readonly #commands: Commands;
  readonly #waiting = new Fifo<BlockRequest>();
  /** Bytes of the first waiting request that commands already carry. */
  #cut = 0;
  readonly #maxPiece: number;
  /** Responses taken in one kick. */
  readonly #batch: number;
  readonly #response = new BlkifResponse();
  readonly #counters: FrontendCounters;
  readonly #freezer: Freezer;
  /** The backend is asked to notify of the next response. */
  #armed = false;
  /** Responses are left for the next kick. */
  #more = false;
  #dirty = false;
  #ended = false;
  #grantsFree: Disposable | undefined = undefined;

  constructor(options: FrontendQueueOptions) {
    const { domain, channel, ring, features, counters } = options;
    this.#domain = domain;
    this.#reactor = domain.reactor;
    this.#ring = ring;
    this.#channel = channel;
    this.#owner = options.owner;
    this.#features = features;
    this.#writer = new SlotWriter(options);
    this.#guard = new EventGuard(channel, options.clock);
    this.#pool = options.pool;
    this.#maxPiece = this.#writer.maxPiece;
    this.#batch = batchOf(channel, ring.size);
    this.#counters = counters;
    this.#freezer = new Freezer(counters.freezes);
    this.#commands = new Commands(ring.size, features.maxSegments);
    channel.onevent = () => {
      this.#guard.came();
      this.#touch();
    };
  }

  /** Commands on the ring. */
  get inFlight(): number {
    return this.#commands.inFlight;
  }

  /** Nothing waits and nothing is on the ring. */
  get idle(): boolean {
    return this.inFlight === 0 && this.#waiting.empty;
  }

  /** Nothing is sent between the two; what is on the ring is still answered. */
  suspend(): void {
    this.#freezer.freeze("suspended");
  }

  resume(): void {
    this.#freezer.thaw("suspended");
    this.#touch();
  }

  #touch(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  submit(request: BlockRequest): void {
    request.status = 0;
    request.childrenLeft = 0;
    this.#waiting.push(request);
    this.#touch();
  }

  kick(): void {
    this.poll();
  }

  /** Takes what was answered and sends what waits: the work of a kick, for who cannot wait for one. */
  poll(): void {
    if (this.#ended) return;
    this.#guard.ended(this.#takeResponses());
    // What completions have submitted is sent below: it needs no kick of its own.
    this.#dirty = false;
    if (this.#ended) return;
    if (this.#more) this.#touch();
    this.#more = false;
    if (!this.#freezer.frozen) this.#start();
    if (this.#ended) return;
    if (this.#ring.publish()) this.#channel.notify();
    if (this.inFlight === 0) this.#owner.quiet();
  }

  /** Whether there were any. */
  #takeResponses(): boolean {
    let budget = this.#batch;
    for (let any = false; ; any = true) {
      let count = this.#ring.pending();
      if (count < 0) {
        this.#owner.broken("sent an impossible response index");
        return any;
      }
      if (count === 0) {
        // Once asked, the backend tells of the next response: there is nothing to look at until then.
        if (this.#armed) return any;
        this.#armed = true;
        if (!this.#ring.finalCheck()) return any;
        continue;
      }
      this.#armed = false;
      for (; count > 0; count--) {
        if (budget-- === 0) {
          this.#more = true;
          return true;
        }
        this.#ring.consume(this.#response);
        if (!this.#answered(this.#response)) return true;
      }
    }
  }

  /** One response. False where it answers nothing that we asked: the ring is broken then. */
  #answered(response: BlkifResponse): boolean {
    const command = this.#commands.named(response);
    if (command === undefined) {
      this.#owner.broken(`sent a response to request ${response.idLow}, which is not in flight`);
      return false;
    }
    if (response.operation !== command.operation) {
      this.#owner.broken(
        `sent operation ${response.operation} in the response to ${command.operation}`,
      );
      return false;
    }
    this.#counters.responses++;
    const errno = errnoOfStatus(response.status);
    if (errno === 0) this.#release(command, 0);
    else this.#refused(command, errno);
    return !this.#ended;
  }

  /** A backend that turns out not to know an operation is not asked again: a flush is tried by other means, and is an
   * error where there are none. */
  #refused(command: Command, errno: number): void {
    const { operation } = command;
    const request = command.request!;
    const features = this.#features;
    if (errno !== Errno.EOPNOTSUPP || operation <= BLKIF_OP_WRITE) {
      // After a barrier that was sent meanwhile, old data would be written over new.
      if (request !== command.last && !this.#commands.sentAfter(command, BLKIF_OP_WRITE_BARRIER)) {
        this.#part(command);
        return;
      }
      this.#counters.errors++;
      this.#release(command, errno);
      return;
    }
    if (operation === BLKIF_OP_DISCARD) features.discard = false;
    else if (operation === BLKIF_OP_FLUSH_DISKCACHE) features.flush = false;
    else features.barrier = false;
    this.#owner.withdrawn(operation);
    if (operation === BLKIF_OP_DISCARD) this.#release(command, errno);
    else if (request.operation !== Operation.flush) this.#unorder(command, request);
    else if (this.#flushOperation < 0) this.#release(command, errno);
    else this.#writer.flush(command, request, this.#flushOperation);
  }

  /** What flushes, or -1. */
  get #flushOperation(): number {
    if (this.#features.flush) return BLKIF_OP_FLUSH_DISKCACHE;
    return this.#features.barrier ? BLKIF_OP_WRITE_BARRIER : -1;
  }

  /** A barrier is one command: see `#transfer`. */
  #unorder(command: Command, request: BlockRequest): void {
    this.#reclaim(command);
    request.childrenLeft = 0;
    this.#owner.unordered(request);
  }

  /** Requests that failed together are tried one by one: nobody's request fails because of what a neighbour asked
   * for. (Linux fails them all, and leaves it to page cache and file system to try again; a disk has callers that do
   * not.) They come next, but for one that is being cut. */
  #part(command: Command): void {
    const cut = this.#cut > 0 ? this.#waiting.shift() : undefined;
    for (let request = command.request; request !== undefined; ) {
      const { next }: BlockRequest = request;
      request.flags |= ALONE;
      request.childrenLeft = 0;
      this.#waiting.unshift(request);
      request = next;
    }
    if (cut !== undefined) this.#waiting.unshift(cut);
    this.#reclaim(command);
  }

  #reclaim(command: Command): void {
    this.#writer.release(command);
    this.#commands.reclaim(command);
    this.#freezer.thaw("command shortage");
    this.#freezer.thaw("page shortage");
  }

  #release(command: Command, errno: number): void {
    const request = command.request!;
    const { last } = command;
    if (errno === 0 && command.operation === BLKIF_OP_READ) {
      if (command.copied) this.#counters.copiedBytes += command.length;
      this.#writer.copyIn(command);
    }
    this.#reclaim(command);
    if (request !== last) {
      completeRun(request, errno);
      return;
    }
    if (errno !== 0) request.status ||= errno;
    if (--request.childrenLeft > 0) return;
    // The first waiting request may have more to cut.
    if (this.#waiting.peek() !== request) complete(request);
    else if (request.status !== 0) {
      this.#shift();
      complete(request);
    }
  }

  /** The first waiting request needs no more commands. */
  #shift(): void {
    this.#waiting.shift();
    this.#cut = 0;
  }

  /** Turns waiting requests into commands until something is short. */
  #start(): void {
    for (
      let request = this.#waiting.peek();
      request !== undefined;
      request = this.#waiting.peek()
    ) {
      if (request.status !== 0 && request.childrenLeft > 0) {
        // A piece failed; the others are awaited, and nothing more of it is sent.
        this.#shift();
        continue;
      }
      const command = this.#commands.free;
      if (command === undefined) {
        this.#freezer.freeze("command shortage");
        return;
      }
      const step = this.#step(request, command);
      if (step === Step.short) return;
      if (step === Step.part) continue;
      // A barrier that is kept in order by other means waits no more here, nor does what was sent with others.
      if (this.#waiting.peek() !== request) continue;
      this.#shift();
      if (request.childrenLeft === 0) complete(request);
    }
  }

  /** Puts one command of the request on the ring, where it needs one. */
  #step(request: BlockRequest, command: Command): Step {
    switch (request.operation) {
      case Operation.read:
        return this.#transfer(request, command, BLKIF_OP_READ);
      case Operation.write: {
        const barrier = (request.flags & BARRIER) !== 0;
        return this.#transfer(request, command, barrier ? BLKIF_OP_WRITE_BARRIER : BLKIF_OP_WRITE);
      }
      case Operation.flush:
        if (this.#flushOperation < 0) {
          // A backend that promised to flush and cannot has not promised that what it answers is on the disk.
          if (this.#features.flushPromised) request.status = Errno.EOPNOTSUPP;
          return Step.whole;
        }
        this.#writer.flush(command, request, this.#flushOperation);
        return this.#sent(request);
      case Operation.discard:
        return this.#discard(request, command);
      case Operation.writeZeroes:
        // What the backend discards reads as zeroes, where it said so.
        if (this.#features.discardZeroes && (request.flags & RequestFlag.mayUnmap) !== 0) {
          return this.#discard(request, command);
        }
    }
    request.status = Errno.EOPNOTSUPP;
    return Step.whole;
  }

  #discard(request: BlockRequest, command: Command): Step {
    const { discard, discardSecure } = this.#features;
    if (!discard || (!discardSecure && (request.flags & RequestFlag.secure) !== 0)) {
      request.status = Errno.EOPNOTSUPP;
      return Step.whole;
    }
    this.#writer.discard(command, request);
    return this.#sent(request);
  }

  #sent(request: BlockRequest): Step {
    this.#commands.sent();
    request.childrenLeft++;
    this.#counters.requests++;
    return Step.whole;
  }

  /** The next piece of a read or write. */
  #transfer(request: BlockRequest, command: Command, operation: number): Step {
    const left = request.length - this.#cut;
    if (left === 0) return Step.whole;
    let room = this.#maxPiece;
    // With nothing on the ring no page will come back: those there are have to do.
    if (this.inFlight === 0) room = Math.min(room, this.#writer.affordable);
    let length = Math.min(left, room);
    if (length === 0) {
      this.#owner.broken(`keeps ${this.#pool.quarantined} of our pages mapped`);
      return Step.short;
    }
    if (operation === BLKIF_OP_WRITE_BARRIER && length < left) {
      this.#shift();
      this.#owner.unordered(request);
      return Step.whole;
    }
    const whole = length === request.length;
    const last = whole && request.next !== undefined ? lastOfRun(request, room) : request;
    if (last !== request) length = last.offset + last.length - request.offset;
    const shortage = this.#writer.transfer(command, request, last, operation, this.#cut, length);
    if (shortage !== undefined) {
      this.#freezer.freeze(shortage);
      if (shortage === "grant shortage") this.#awaitGrants(Math.ceil(length / PAGE_SIZE));
      return Step.short;
    }
    if (operation !== BLKIF_OP_READ && command.copied) this.#counters.copiedBytes += length;
    this.#sent(request);
    if (last !== request) this.#joined(request, last);
    else this.#cut += length;
    return length >= left ? Step.whole : Step.part;
  }

  /** A run was sent: its requests wait no more, and stay linked. */
  #joined(first: BlockRequest, last: BlockRequest): void {
    this.#waiting.shiftThrough(last);
    for (let request = first.next; request !== undefined; request = request.next) {
      request.childrenLeft = 1;
      this.#counters.merged++;
    }
  }

  #awaitGrants(count: number): void {
    this.#grantsFree ??= this.#domain.grants.whenFree(count, () => {
      this.#grantsFree = undefined;
      this.#freezer.thaw("grant shortage");
      this.#touch();
      this.#reactor.soon();
    });
  }

  /** Ends what waits for its turn; pieces on the ring end first, and the request with the last of them. */
  cancel(errno: number): void {
    const waiting = this.#takeWaiting();
    for (const request of waiting) {
      request.status ||= errno;
      if (request.childrenLeft === 0) complete(request);
    }
    this.#touch();
  }

  #takeWaiting(): BlockRequest[] {
    const waiting: BlockRequest[] = [];
    for (
      let request = this.#waiting.peek();
      request !== undefined;
      request = this.#waiting.peek()
    ) {
      this.#shift();
      waiting.push(request);
    }
    return waiting;
  }

  /** Everything that is in flight and that waits, in the order it was sent. */
  outstanding(): BlockRequest[] {
    const requests = new Set<BlockRequest>();
    const first = this.#waiting.peek();
    for (let { request, last } of this.#commands.busy()) {
      // What is being cut waits, and is found there.
      while (request !== undefined && request !== first) {
        requests.add(request);
        request = request === last ? undefined : request.next;
      }
    }
    for (const request of this.#waiting) requests.add(request);
    return [...requests];
  }

  /** The ring is given up: nothing of it is looked at any more. Everything that is outstanding is ready to be submitted
   * elsewhere. The pages are not used again by this queue: the backend may still write to them. */
  abandon(): BlockRequest[] {
    const requests = this.outstanding();
    this.#commands.abandon();
    this.#takeWaiting();
    for (const request of requests) request.childrenLeft = 0;
    this[Symbol.dispose]();
    return requests;
  }

  /** Takes no more events and gives the port back. Requests are to have ended. */
  [Symbol.dispose](): void {
    this.#ended = true;
    this.#grantsFree?.[Symbol.dispose]();
    this.#guard[Symbol.dispose]();
    this.#channel.onevent = undefined;
    this.#channel[Symbol.dispose]();
  }
}
