/**
 * One ring of a frontend: cuts callers' requests into commands, puts them on the ring, and completes them by the
 * responses (FreeBSD's xbd_startio and xbd_int, Linux's blkif_queue_rq and blkif_interrupt).
 *
 * Invariants: order is kept while a request waits for a command, pages or grants; every command that was published is
 * completed by exactly one response that carries its id and its operation, and anything else breaks the ring: the
 * device then fails, the process does not. Work happens in `kick` alone.
 */
import type { Kickable, Reactor } from "../../io/reactor.ts";
import type { FrontRing } from "../../ring/front-ring.ts";
import { type BlockRequest, Operation, RequestFlag } from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import { Fifo } from "../../util/fifo.ts";
import {
  BLKIF_DISCARD_SECURE,
  BLKIF_MAX_SEGMENTS_PER_REQUEST,
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BlkifRequest,
  BlkifResponse,
  highHalf,
  IndirectSegments,
  lowHalf,
  writeSegments,
} from "../../wire/blkif.ts";
import { type Domain, type EventChannel, PAGE_SIZE } from "../../xen/domain.ts";
import { errnoOfStatus } from "../status.ts";
import { Command, CommandState } from "./command.ts";
import { copyPages } from "./copy.ts";
import type { PagePool } from "./page-pool.ts";

/** Bytes of a sector in every field of the protocol. */
const SECTOR_SIZE = 512;
/** Last sector of a page. */
const LAST_SECTOR = PAGE_SIZE / SECTOR_SIZE - 1;

/** What the connected backend lets us do. */
export interface QueueFeatures {
  /** Segments of one request, 11 without indirect ones. */
  readonly maxSegments: number;
  flush: boolean;
  barrier: boolean;
  discard: boolean;
  /** Discarded bytes read as zero. */
  readonly discardZeroes: boolean;
}

export interface FrontendQueueOptions {
  readonly domain: Domain;
  readonly ring: FrontRing;
  readonly channel: EventChannel;
  readonly pool: PagePool;
  readonly features: QueueFeatures;
  /** The vbd's number, for the handle field. */
  readonly vdev: number;
  /** Called once when the backend answered something that was not asked. */
  readonly onbroken: (reason: string) => void;
}

/** Why requests wait: the seed's freeze flags by name. */
export type FreezeReason = "command shortage" | "page shortage" | "grant shortage";

export interface FrontendCounters {
  requests: number;
  responses: number;
  /** Times a request had to wait, by reason. */
  freezes: Record<FreezeReason, number>;
  /** Bytes copied between callers' memory and granted pages. */
  copiedBytes: number;
  errors: number;
}

export class FrontendQueue implements Kickable {
  readonly #options: FrontendQueueOptions;
  readonly #reactor: Reactor;
  readonly #ring: FrontRing;
  readonly #channel: EventChannel;
  readonly #pool: PagePool;
  readonly #features: QueueFeatures;
  readonly #commands: Command[] = [];
  readonly #free = new Fifo<Command>();
  readonly #waiting = new Fifo<BlockRequest>();
  /** Bytes of the first waiting request that commands already carry. */
  #cut = 0;
  readonly #raw = new BlkifRequest();
  readonly #response = new BlkifResponse();
  readonly #indirect: IndirectSegments;
  readonly #poolWords: Uint32Array;
  readonly counters: FrontendCounters = {
    requests: 0,
    responses: 0,
    freezes: { "command shortage": 0, "page shortage": 0, "grant shortage": 0 },
    copiedBytes: 0,
    errors: 0,
  };
  /** The backend is asked to notify of the next response. */
  #armed = false;
  #dirty = false;
  #inFlight = 0;
  #failed: number | undefined = undefined;
  #idle: PromiseWithResolvers<void> | undefined = undefined;
  #grantsFree: Disposable | undefined = undefined;

  constructor(options: FrontendQueueOptions) {
    this.#options = options;
    this.#reactor = options.domain.reactor;
    this.#ring = options.ring;
    this.#channel = options.channel;
    this.#pool = options.pool;
    this.#features = options.features;
    this.#indirect = new IndirectSegments(options.features.maxSegments);
    const { buffer, byteOffset, byteLength } = options.pool.region.bytes;
    this.#poolWords = new Uint32Array(buffer, byteOffset, byteLength >>> 2);
    for (let id = 0; id < this.#ring.size; id++) {
      // One more than the data's: the page that holds the segments.
      const command = new Command(id, options.features.maxSegments + 1);
      this.#commands.push(command);
      this.#free.push(command);
    }
    this.#channel.onevent = () => this.#touch();
  }

  /** Requests the ring holds. */
  get slots(): number {
    return this.#ring.size;
  }

  /** Commands on the ring. */
  get inFlight(): number {
    return this.#inFlight;
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
    this.#dirty = false;
    if (this.#failed === undefined) this.#takeResponses();
    if (this.#failed === undefined) this.#start();
    else this.#failWaiting();
    if (this.#ring.publish()) this.#channel.notify();
    if (this.#idle !== undefined && this.#inFlight === 0 && this.#waiting.empty) {
      this.#idle.resolve();
      this.#idle = undefined;
    }
  }

  #takeResponses(): void {
    for (;;) {
      let count = this.#ring.pending();
      if (count < 0) {
        this.#break("an impossible response index");
        return;
      }
      if (count === 0) {
        // Once asked, the backend tells of the next response: there is nothing to look at until then.
        if (this.#armed) return;
        this.#armed = true;
        if (this.#ring.finalCheck()) continue;
        return;
      }
      this.#armed = false;
      for (; count > 0; count--) {
        this.#ring.consume(this.#response);
        if (!this.#complete(this.#response)) return;
      }
    }
  }

  /** One response. False where it answers nothing that we asked: the ring is broken then. */
  #complete(response: BlkifResponse): boolean {
    const command = response.idHigh === 0 ? this.#commands[response.idLow] : undefined;
    if (command === undefined || command.state !== CommandState.busy) {
      this.#break(`a response to request ${response.idLow}, which is not in flight`);
      return false;
    }
    if (response.operation !== command.operation) {
      this.#break(`operation ${response.operation} in the response to ${command.operation}`);
      return false;
    }
    this.counters.responses++;
    this.#release(command, this.#errno(command, response.status));
    return true;
  }

  /** The errno of a response; a backend that turns out not to know an operation is not asked again. */
  #errno(command: Command, status: number): number {
    const errno = errnoOfStatus(status);
    if (errno === 0) return 0;
    if (errno === Errno.EOPNOTSUPP) {
      const features = this.#features;
      if (command.operation === BLKIF_OP_DISCARD) features.discard = false;
      else if (command.operation === BLKIF_OP_FLUSH_DISKCACHE) features.flush = false;
      else if (command.operation === BLKIF_OP_WRITE_BARRIER) features.barrier = false;
    } else this.counters.errors++;
    return errno;
  }

  #release(command: Command, errno: number): void {
    const request = command.request!;
    if (errno === 0 && command.operation === BLKIF_OP_READ) {
      this.counters.copiedBytes += command.length;
      copyPages(
        false,
        request.segments!,
        request.segmentByte + command.byte,
        this.#pool.region,
        this.#pool.start(0),
        command.pages,
        command.pageCount,
        command.length,
      );
    }
    const pages = command.pageCount + (command.indirectPage >= 0 ? 1 : 0);
    if (pages > 0) this.#givePages(command);
    command.state = CommandState.free;
    command.request = undefined;
    this.#free.push(command);
    this.#inFlight--;
    if (errno !== 0 && request.status === 0) request.status = errno;
    request.childrenLeft--;
    // The first waiting request may have more to cut.
    if (request.childrenLeft === 0 && this.#waiting.peek() !== request) {
      request.owner.completed(request);
    } else if (request.childrenLeft === 0 && request.status !== 0) {
      this.#dropWaiting();
    }
  }

  #givePages(command: Command): void {
    this.#pool.give(command.pages, command.pageCount);
    if (command.indirectPage >= 0) {
      command.pages[0] = command.indirectPage;
      this.#pool.give(command.pages, 1);
      command.indirectPage = -1;
    }
    command.pageCount = 0;
  }

  /** The first waiting request failed in a piece: the rest of it is not sent. */
  #dropWaiting(): void {
    const request = this.#waiting.shift()!;
    this.#cut = 0;
    request.owner.completed(request);
  }

  /** Turns waiting requests into commands while there are commands, pages and grants. */
  #start(): void {
    for (
      let request = this.#waiting.peek();
      request !== undefined;
      request = this.#waiting.peek()
    ) {
      if (request.status !== 0 && request.childrenLeft > 0) {
        // A piece failed; the others are awaited, and nothing more of it is sent.
        this.#waiting.shift();
        this.#cut = 0;
        continue;
      }
      const command = this.#free.shift();
      if (command === undefined) {
        this.counters.freezes["command shortage"]++;
        return;
      }
      const whole = this.#command(request, command);
      if (whole === undefined) {
        this.#free.unshift(command);
        return;
      }
      if (whole) {
        this.#waiting.shift();
        this.#cut = 0;
        if (request.childrenLeft === 0) request.owner.completed(request);
      }
    }
  }

  /** Puts one command of the request on the ring. True when the request needs no other; undefined when something is
   * short. The command goes back where the request needs none at all. */
  #command(request: BlockRequest, command: Command): boolean | undefined {
    switch (request.operation) {
      case Operation.read:
        return this.#transfer(request, command, BLKIF_OP_READ);
      case Operation.write:
        return this.#transfer(request, command, BLKIF_OP_WRITE);
      case Operation.flush:
        return this.#flush(request, command);
      case Operation.discard:
        return this.#discard(request, command);
      case Operation.writeZeroes:
        // What the backend discards reads as zeroes, where it said so.
        if (
          this.#features.discardZeroes &&
          (request.flags & RequestFlag.mayUnmap) !== 0 &&
          this.#features.discard
        ) {
          return this.#discard(request, command);
        }
        break;
    }
    return this.#without(request, command, Errno.EOPNOTSUPP);
  }

  /** Ends a request that needs no command. */
  #without(request: BlockRequest, command: Command, errno: number): boolean {
    this.#free.unshift(command);
    request.status = errno;
    return true;
  }

  #flush(request: BlockRequest, command: Command): boolean {
    const { flush, barrier } = this.#features;
    // With neither, the backend promises that what it answered is on the disk.
    if (!flush && !barrier) return this.#without(request, command, 0);
    const raw = this.#raw;
    raw.operation = flush ? BLKIF_OP_FLUSH_DISKCACHE : BLKIF_OP_WRITE_BARRIER;
    raw.segmentCount = 0;
    raw.sectorLow = 0;
    raw.sectorHigh = 0;
    this.#push(request, command, raw.operation);
    return true;
  }

  #discard(request: BlockRequest, command: Command): boolean {
    if (!this.#features.discard) return this.#without(request, command, Errno.EOPNOTSUPP);
    const raw = this.#raw;
    const sector = request.offset / SECTOR_SIZE;
    const count = request.length / SECTOR_SIZE;
    raw.operation = BLKIF_OP_DISCARD;
    raw.discardFlag = (request.flags & RequestFlag.secure) !== 0 ? BLKIF_DISCARD_SECURE : 0;
    raw.sectorLow = lowHalf(sector);
    raw.sectorHigh = highHalf(sector);
    raw.discardSectorsLow = lowHalf(count);
    raw.discardSectorsHigh = highHalf(count);
    this.#push(request, command, raw.operation);
    return true;
  }

  /** The next piece of a read or write. */
  #transfer(request: BlockRequest, command: Command, operation: number): boolean | undefined {
    const left = request.length - this.#cut;
    if (left === 0) return this.#without(request, command, 0);
    const length = Math.min(left, this.#features.maxSegments * PAGE_SIZE);
    const pageCount = Math.ceil(length / PAGE_SIZE);
    const indirect = pageCount > BLKIF_MAX_SEGMENTS_PER_REQUEST;
    if (!this.#takePages(command, pageCount, indirect)) {
      this.counters.freezes["page shortage"]++;
      return undefined;
    }
    command.byte = this.#cut;
    command.length = length;
    const raw = this.#raw;
    if (!this.#fillSegments(command, operation, indirect)) {
      this.#givePages(command);
      this.#freezeForGrants(pageCount);
      return undefined;
    }
    if (operation === BLKIF_OP_WRITE) {
      this.counters.copiedBytes += length;
      copyPages(
        true,
        request.segments!,
        request.segmentByte + this.#cut,
        this.#pool.region,
        this.#pool.start(0),
        command.pages,
        pageCount,
        length,
      );
    }
    const sector = (request.offset + this.#cut) / SECTOR_SIZE;
    raw.operation = indirect ? BLKIF_OP_INDIRECT : operation;
    raw.sectorLow = lowHalf(sector);
    raw.sectorHigh = highHalf(sector);
    this.#push(request, command, operation);
    this.#cut += length;
    return length === left;
  }

  #takePages(command: Command, pageCount: number, indirect: boolean): boolean {
    if (indirect) {
      if (this.#pool.available < pageCount + 1) return false;
      this.#pool.take(1, command.pages);
      command.indirectPage = command.pages[0]!;
    }
    command.pageCount = pageCount;
    return this.#pool.take(pageCount, command.pages);
  }

  /** Grants the pages of a command and lists them in the slot or in its indirect page; false when grants are short. */
  #fillSegments(command: Command, operation: number, indirect: boolean): boolean {
    const segments = indirect ? this.#indirect : this.#raw;
    const readOnly = operation === BLKIF_OP_WRITE;
    const last = command.pageCount - 1;
    for (let i = 0; i <= last; i++) {
      const reference = this.#pool.reference(command.pages[i]!, readOnly);
      if (reference === 0) return false;
      segments.references[i] = reference;
      segments.firstSectors[i] = 0;
      segments.lastSectors[i] = LAST_SECTOR;
    }
    const tail = command.length - last * PAGE_SIZE;
    segments.lastSectors[last] = tail / SECTOR_SIZE - 1;
    if (!indirect) {
      this.#raw.segmentCount = command.pageCount;
      return true;
    }
    const reference = this.#pool.reference(command.indirectPage, true);
    if (reference === 0) return false;
    const word = this.#pool.start(command.indirectPage) / 4;
    writeSegments(this.#poolWords, word, this.#indirect, 0, command.pageCount);
    this.#raw.indirectOperation = operation;
    this.#raw.indirectSegmentCount = command.pageCount;
    this.#raw.indirectReferences[0] = reference;
    return true;
  }

  #freezeForGrants(count: number): void {
    this.counters.freezes["grant shortage"]++;
    this.#grantsFree ??= this.#options.domain.grants.whenFree(count, () => {
      this.#grantsFree = undefined;
      this.#touch();
      this.#reactor.soon();
    });
  }

  #push(request: BlockRequest, command: Command, operation: number): void {
    const raw = this.#raw;
    raw.handle = this.#options.vdev & 0xffff;
    raw.idLow = command.id;
    raw.idHigh = 0;
    command.state = CommandState.busy;
    command.operation = operation;
    command.request = request;
    request.childrenLeft++;
    this.#inFlight++;
    this.counters.requests++;
    this.#ring.push(raw);
  }

  #break(reason: string): void {
    if (this.#failed !== undefined) return;
    this.fail(Errno.EIO);
    this.#options.onbroken(`the backend sent ${reason}`);
  }

  /** The backend is gone or cannot be trusted: everything waiting and in flight ends with `errno`. Its pages are not
   * used again by this queue: the backend may still write to them. */
  fail(errno: number): void {
    if (this.#failed !== undefined) return;
    this.#failed = errno;
    this.#channel.onevent = undefined;
    for (const command of this.#commands) {
      if (command.state !== CommandState.busy) continue;
      const request = command.request!;
      command.state = CommandState.free;
      command.request = undefined;
      this.#inFlight--;
      request.status ||= errno;
      if (--request.childrenLeft === 0 && this.#waiting.peek() !== request) {
        request.owner.completed(request);
      }
    }
    this.#touch();
    this.#reactor.soon();
  }

  #failWaiting(): void {
    for (let request = this.#waiting.shift(); request !== undefined; ) {
      request.status ||= this.#failed!;
      request.owner.completed(request);
      request = this.#waiting.shift();
    }
    this.#cut = 0;
  }

  /** Ends what waits for its turn; resolves when what is on the ring has been answered. */
  async cancel(): Promise<void> {
    this.#cut = 0;
    for (let request = this.#waiting.shift(); request !== undefined; ) {
      request.status ||= Errno.ECANCELED;
      // Pieces on the ring end first, and the request with the last of them.
      if (request.childrenLeft === 0) request.owner.completed(request);
      request = this.#waiting.shift();
    }
    await this.idle();
  }

  /** Resolves when nothing waits and nothing is in flight. */
  async idle(): Promise<void> {
    if (this.#inFlight === 0 && this.#waiting.empty) return;
    this.#idle ??= Promise.withResolvers<void>();
    await this.#idle.promise;
  }

  /** Takes no more events and gives the port back. Requests are to have ended. */
  [Symbol.dispose](): void {
    this.#grantsFree?.[Symbol.dispose]();
    this.#channel.onevent = undefined;
    this.#channel[Symbol.dispose]();
  }
}
