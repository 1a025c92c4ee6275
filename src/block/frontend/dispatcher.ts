/**
 * Between a frontend's disk and its rings: spreads requests over the rings, and holds them back while there are none,
 * while the device is suspended, and around an ordered write that no barrier keeps in order.
 *
 * Invariant: a request is held here, or one ring has it, or it has been completed. What is held goes on in the order it
 * came; what a lost ring had in flight goes before it, in the order it was sent. Sending something again does no harm:
 * nobody has been told that it was done, and its data is still the caller's.
 */
import type { Kickable, Reactor } from "../../io/reactor.ts";
import type { BlockRequest } from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import { Fifo } from "../../util/fifo.ts";
import { BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../../wire/blkif.ts";
import { PAGE_SIZE } from "../../xen/domain.ts";
import { BARRIER, complete, ORDERED } from "./completion.ts";
import { type FreezeCounts, type FreezeReason, Freezer } from "./freeze.ts";
import type { FrontendQueue } from "./queue.ts";
import type { QueueFeatures } from "./slot-writer.ts";

/** Bytes of the longest barrier. An indirect one is understood by FreeBSD's backend alone. */
const MAX_BARRIER_BYTES = BLKIF_MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

export class Dispatcher implements Kickable {
  readonly #reactor: Reactor;
  readonly #freezer: Freezer;
  #queues: readonly FrontendQueue[] = [];
  #features: QueueFeatures | undefined = undefined;
  /** The ring that had the last request, where that ended on the disk, and how much went there without a gap. Bytes. */
  #next = 0;
  #end = 0;
  #runBytes = 0;
  readonly #held = new Fifo<BlockRequest>();
  /** Ordered writes whose barriers were refused: they come before what is held. */
  readonly #again = new Fifo<BlockRequest>();
  readonly #refused: BlockRequest[] = [];
  #holds = 0;
  #failed = 0;
  #idle: PromiseWithResolvers<void> | undefined = undefined;
  #drained: PromiseWithResolvers<void> | undefined = undefined;
  #ringsIdle: PromiseWithResolvers<void> | undefined = undefined;

  constructor(reactor: Reactor, counts: FreezeCounts) {
    this.#reactor = reactor;
    this.#freezer = new Freezer(counts);
    this.#freezer.freeze("disconnected");
  }

  submit(request: BlockRequest): void {
    if (this.#failed !== 0) this.refuse(request, this.#failed);
    else if (this.#freezer.frozen || !this.#mayPass(request)) this.#held.push(request);
    else this.#pass(request);
  }

  /** Completes a request with an error, from a kick. */
  refuse(request: BlockRequest, errno: number): void {
    request.status = errno;
    if (this.#refused.push(request) === 1) this.#reactor.dirty(this);
  }

  kick(): void {
    for (const request of this.#refused.splice(0)) complete(request);
  }

  /** Has the rings of a new connection: what was held goes on. */
  attach(queues: readonly FrontendQueue[], features: QueueFeatures): void {
    this.#queues = queues;
    this.#features = features;
    this.#next = 0;
    this.#thaw("disconnected");
  }

  /** The rings are lost: what they had is held, before what waited for them. */
  detach(): void {
    this.#freezer.freeze("disconnected");
    this.#freezer.thaw("wait idle");
    this.#freezer.thaw("single step");
    const first = [...this.#abandon(), ...takeAll(this.#again)];
    for (const request of first.reverse()) {
      request.status = 0;
      this.#held.unshift(request);
    }
    this.#settle();
  }

  #abandon(): BlockRequest[] {
    const queues = this.#queues;
    this.#queues = [];
    return queues.flatMap((queue) => queue.abandon());
  }

  get suspended(): boolean {
    return this.#freezer.has("suspended");
  }

  /** Nothing is to be sent, whatever is submitted. */
  get stopped(): boolean {
    return this.suspended || this.#holds > 0;
  }

  /** Sends nothing until `resume`. */
  suspend(): void {
    this.#freezer.freeze("suspended");
    for (const queue of this.#queues) queue.suspend();
  }

  resume(): void {
    for (const queue of this.#queues) queue.resume();
    this.#thaw("suspended");
  }

  /** Hands nothing more to the rings until the holder lets go; what they have is sent and answered. */
  hold(): Disposable {
    this.#holds++;
    this.#freezer.freeze("held");
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        if (--this.#holds === 0) this.#thaw("held");
      },
    };
  }

  /** What was submitted and has not ended, in order, ring by ring. */
  outstanding(): BlockRequest[] {
    const sent = this.#queues.flatMap((queue) => queue.outstanding());
    return [...sent, ...this.#again, ...this.#held];
  }

  #thaw(reason: FreezeReason): void {
    this.#freezer.thaw(reason);
    this.#goOn();
    this.#reactor.soon();
  }

  #goOn(): void {
    while (!this.#freezer.frozen) {
      const from = this.#again.empty ? this.#held : this.#again;
      const request = from.peek();
      if (request === undefined || !this.#mayPass(request)) return;
      from.shift();
      this.#pass(request);
    }
  }

  /** Whether a request may go to a ring now; what keeps it is left with the freezer. */
  #mayPass(request: BlockRequest): boolean {
    if ((request.flags & ORDERED) === 0 || this.#barrierKeeps(request)) return true;
    const idle = this.#allIdle;
    this.#freezer.freeze(idle ? "single step" : "wait idle");
    return idle;
  }

  /** To the rings in turn; what goes on where the last one ended stays with it, while one command can carry both. */
  #pass(request: BlockRequest): void {
    const { offset, length } = request;
    this.#runBytes += length;
    if (offset !== this.#end || this.#runBytes > this.#features!.maxSegments * PAGE_SIZE) {
      this.#runBytes = length;
      this.#next = (this.#next + 1) % this.#queues.length;
    }
    this.#end = offset + length;
    this.#queues[this.#next]!.submit(request);
  }

  /** Whether the backend keeps an ordered write in order; a barrier on one ring says nothing about others. */
  #barrierKeeps(request: BlockRequest): boolean {
    const keeps =
      this.#features!.barrier && this.#queues.length === 1 && request.length <= MAX_BARRIER_BYTES;
    if (keeps) request.flags |= BARRIER;
    else request.flags &= ~BARRIER;
    return keeps;
  }

  /** The barrier of an ordered write was refused: it has to wait until nothing is in flight, and what is held for it. */
  unordered(request: BlockRequest): void {
    this.#again.push(request);
    this.#freezer.freeze("wait idle");
  }

  get #allIdle(): boolean {
    for (const queue of this.#queues) if (!queue.idle) return false;
    return true;
  }

  get #noneHeld(): boolean {
    return this.#held.empty && this.#again.empty;
  }

  get #inFlight(): number {
    let count = 0;
    for (const queue of this.#queues) count += queue.inFlight;
    return count;
  }

  /** A ring has nothing in flight: called from its kicks. */
  quiet(): void {
    if (this.#freezer.frozen && this.#allIdle) {
      this.#freezer.thaw("single step");
      this.#freezer.thaw("wait idle");
      this.#goOn();
    }
    if (this.#idle ?? this.#drained ?? this.#ringsIdle) this.#settle();
  }

  #settle(): void {
    if (this.#inFlight > 0) return;
    this.#drained?.resolve();
    this.#drained = undefined;
    if (!this.#allIdle) return;
    this.#ringsIdle?.resolve();
    this.#ringsIdle = undefined;
    if (!this.#noneHeld) return;
    this.#idle?.resolve();
    this.#idle = undefined;
  }

  /** Resolves when nothing waits and nothing is in flight. */
  async idle(): Promise<void> {
    if (this.#noneHeld && this.#allIdle) return;
    this.#idle ??= Promise.withResolvers<void>();
    await this.#idle.promise;
  }

  /** Resolves when nothing is in flight, whatever waits. */
  async drained(): Promise<void> {
    if (this.#inFlight === 0) return;
    this.#drained ??= Promise.withResolvers<void>();
    await this.#drained.promise;
  }

  /** Resolves when the rings have carried out all that they were given. */
  async ringsIdle(): Promise<void> {
    if (this.#allIdle) return;
    this.#ringsIdle ??= Promise.withResolvers<void>();
    await this.#ringsIdle.promise;
  }

  /** Ends what waits for its turn; resolves when what is on the rings has been answered. */
  async cancel(): Promise<void> {
    this.#endHeld(Errno.ECANCELED);
    for (const queue of this.#queues) queue.cancel(Errno.ECANCELED);
    this.#reactor.soon();
    await this.idle();
  }

  /** What is submitted meanwhile is not meant. */
  #endHeld(errno: number): void {
    const held = [...takeAll(this.#again), ...takeAll(this.#held)];
    for (const request of held) complete(request, errno);
  }

  /** There is no disk any more: everything ends with `errno`, what is submitted later too. */
  fail(errno: number): void {
    if (this.#failed !== 0) return;
    this.#failed = errno;
    for (const request of this.#abandon()) complete(request, errno);
    this.#endHeld(errno);
    this.#settle();
    this.#reactor.soon();
  }
}

function takeAll(queue: Fifo<BlockRequest>): BlockRequest[] {
  const requests: BlockRequest[] = [];
  for (let request = queue.shift(); request !== undefined; request = queue.shift()) {
    requests.push(request);
  }
  return requests;
}
