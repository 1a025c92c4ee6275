/**
 * One client of an NBD server after the handshake (proto.md, "Transmission"): parses requests, gives them to the
 * store, writes what has finished, many at a time.
 *
 * Invariants. A connection holds at most MAX_COMMANDS commands and MAX_HELD_BYTES of payload; beyond that it does not
 * read. A command's memory is free again only when the store has completed it and the transport has sent its reply.
 * A client that breaks the protocol is disconnected; what the store has of it is awaited, and nobody else notices.
 */
import { allocateRegion, type MemoryRegion } from "../io/memory.ts";
import type { Kickable, Reactor } from "../io/reactor.ts";
import type { BlockRequest, BlockStore, RequestOwner } from "../store/block-store.ts";
import { errnoOf } from "../store/errors.ts";
import type { Clock } from "../util/clock.ts";
import { Fifo } from "../util/fifo.ts";
import {
  decodeRequest,
  EXTENT_LENGTH,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_EIO,
  NBD_MAX_PAYLOAD,
  NbdRequest,
  REQUEST_LENGTH,
} from "../wire/nbd.ts";
import { BufferPool } from "./buffer-pool.ts";
import { brokenRule, Command, HEADER_ROOM } from "./command.ts";
import type { NbdExport } from "./export.ts";
import { collectExtents } from "./extents.ts";
import { CONTEXT_ID_LENGTH, gatherReply } from "./reply.ts";
import type { Negotiated } from "./server-handshake.ts";
import { nbdErrorOf } from "./status.ts";
import { ReceiveTarget, type Transport, type TransportUser } from "./transport.ts";

/** Requests of one client in flight: twice the depth of Linux's client, eight times QEMU's. */
const MAX_COMMANDS = 256;
/** Payload one client may have in our memory; two requests of the greatest length. */
const MAX_HELD_BYTES = 2 * NBD_MAX_PAYLOAD;
/** Requests read at once: more than any client has in flight, less than the processor's cache. */
const INPUT_BYTES = 64 * 1024;
/** Extents of one answer: with the context id they fit into 32 KiB; a client that wants more asks again. */
const MAX_EXTENTS = 4095;

const Receiving = { header: 0, payload: 1, skip: 2, nothing: 3 } as const;

/** What the connections of an export share. */
export interface ServedStore {
  /** Takes every request of any length, whatever the exported store lacks. */
  readonly store: BlockStore;
  readonly pool: BufferPool;
}

export interface ConnectionEnvironment {
  readonly reactor: Reactor;
  readonly clock: Clock;
  /** Called once, when the connection is closed and no store has anything of it. */
  ended(connection: ServerConnection): void;
}

export class ServerConnection implements TransportUser, RequestOwner, Kickable {
  readonly target: ReceiveTarget = new ReceiveTarget();
  /** Where its payloads lie: that of its store. */
  readonly pool: BufferPool;
  readonly #transport: Transport;
  readonly #negotiated: Negotiated;
  readonly #store: BlockStore;
  readonly #environment: ConnectionEnvironment;
  readonly #input: MemoryRegion;
  readonly #headers: MemoryRegion;
  readonly #commands: Command[] = [];
  readonly #freeCommands = new Fifo<Command>();
  readonly #finished = new Fifo<Command>();
  readonly #sending = new Fifo<Command>();
  readonly #header = new NbdRequest();
  readonly #abort = new AbortController();
  #receiving: (typeof Receiving)[keyof typeof Receiving] = Receiving.header;
  /** The write whose payload comes in, or whose payload is skipped. */
  #incoming: Command | undefined;
  #incomingLeft = 0;
  /** Unparsed bytes of the input lie in [from, to). */
  #from = 0;
  #to = 0;
  /** Commands that the store has, or that asynchronous work holds. */
  #inStore = 0;
  /** When bytes last came or went, in milliseconds of the clock. */
  #activeAt: number;
  #heldBytes = 0;
  /** A whole header waits for a free command or for memory. */
  #blocked = false;
  #dirty = false;
  #stopping = false;
  #closed = false;

  constructor(
    transport: Transport,
    negotiated: Negotiated,
    { store, pool }: ServedStore,
    environment: ConnectionEnvironment,
  ) {
    this.#transport = transport;
    this.#negotiated = negotiated;
    this.#store = store;
    this.pool = pool;
    this.#environment = environment;
    this.#activeAt = environment.clock.now();
    this.#input = allocateRegion(INPUT_BYTES);
    this.#headers = allocateRegion(MAX_COMMANDS * HEADER_ROOM);
    for (let i = 0; i < MAX_COMMANDS; i++) {
      const command = new Command(i, this);
      this.#commands.push(command);
      this.#freeCommands.push(command);
    }
    this.target.set(this.#input, 0, INPUT_BYTES);
    transport.start(this);
  }

  /** Whether this is a client of that export. */
  uses({ name, store }: NbdExport): boolean {
    const { export: chosen } = this.#negotiated;
    return chosen.name === name && chosen.store === store;
  }

  /** Since when nothing came or went, while the store has nothing to do for the client; undefined while it has. */
  get idleSince(): number | undefined {
    return this.#inStore > 0 ? undefined : this.#activeAt;
  }

  /** Takes no more requests; closes when those in flight are answered. */
  shutdown(): void {
    if (this.#stopping || this.#closed) return;
    this.#stopping = true;
    this.#blocked = false;
    this.#receiving = Receiving.nothing;
    this.target.length = 0;
    this.#closeWhenIdle();
  }

  /** Closes now; the store's share of the work is awaited before `ended`. */
  destroy(): void {
    this.#transport.close();
  }

  received(count: number): void {
    this.#activeAt = this.#environment.clock.now();
    switch (this.#receiving) {
      case Receiving.header:
        this.#to += count;
        this.#parse();
        break;
      case Receiving.payload:
        this.#incomingLeft -= count;
        if (this.#incomingLeft === 0) {
          this.#submit(this.#incoming!);
          this.#expectHeader();
        } else this.target.set(this.target.region!, this.target.start + count, this.#incomingLeft);
        break;
      case Receiving.skip:
        this.#incomingLeft -= count;
        if (this.#incomingLeft === 0) {
          this.#finish(this.#incoming!);
          this.#expectHeader();
        } else this.#skipRest();
        break;
    }
  }

  #expectHeader(): void {
    this.#incoming = undefined;
    this.#receiving = Receiving.header;
    this.#from = 0;
    this.#to = 0;
    this.target.set(this.#input, 0, INPUT_BYTES);
  }

  #skipRest(): void {
    this.#receiving = Receiving.skip;
    this.target.set(this.#input, 0, Math.min(this.#incomingLeft, INPUT_BYTES));
  }

  /** Takes every whole request of the input, then asks for more. */
  #parse(): void {
    this.#blocked = false;
    while (this.#to - this.#from >= REQUEST_LENGTH) {
      if (!decodeRequest(this.#input.bytes, this.#from, this.#header)) {
        this.#broken();
        return;
      }
      if (!this.#accept()) return;
    }
    if (this.#receiving !== Receiving.header) return;
    this.#compact();
    this.target.set(this.#input, this.#to, INPUT_BYTES - this.#to);
  }

  #compact(): void {
    if (this.#from === 0) return;
    this.#input.bytes.copyWithin(0, this.#from, this.#to);
    this.#to -= this.#from;
    this.#from = 0;
  }

  /** Takes the decoded request; false where parsing cannot go on. */
  #accept(): boolean {
    const header = this.#header;
    const { type, length } = header;
    if (type === NBD_CMD_DISC) {
      this.shutdown();
      return false;
    }
    // What follows such a header would have to be read in full: the protocol lets us hang up instead.
    if (type === NBD_CMD_WRITE && length > NBD_MAX_PAYLOAD) {
      this.#broken();
      return false;
    }
    const error = brokenRule(header, this.#negotiated);
    const memory = error === 0 ? memoryOf(type, length) : 0;
    const held = memory === 0 ? 0 : BufferPool.capacity(memory);
    const command = this.#freeCommands.peek();
    if (command === undefined || (this.#heldBytes > 0 && this.#heldBytes + held > MAX_HELD_BYTES)) {
      this.#blocked = true;
      this.#compact();
      this.target.length = 0;
      return false;
    }
    this.#freeCommands.shift();
    this.#from += REQUEST_LENGTH;
    command.begin(header);
    command.error = error;
    if (memory > 0) this.#hold(command, memory);
    if (type === NBD_CMD_WRITE && length > 0) return this.#takePayload(command);
    if (error !== 0) this.#finish(command);
    else if (type === NBD_CMD_BLOCK_STATUS) void this.#blockStatus(command);
    else this.#submit(command);
    return true;
  }

  #hold(command: Command, bytes: number): void {
    command.buffer = this.pool.take(bytes);
    this.#heldBytes += command.buffer.capacity;
  }

  /** Moves what is here of the payload; false where more must come. */
  #takePayload(command: Command): boolean {
    const here = Math.min(this.#to - this.#from, command.length);
    const buffer = command.buffer;
    if (buffer !== undefined && here > 0) {
      const bytes = this.#input.bytes.subarray(this.#from, this.#from + here);
      buffer.region.bytes.set(bytes, buffer.start);
    }
    this.#from += here;
    if (here === command.length) {
      if (buffer === undefined) this.#finish(command);
      else this.#submit(command);
      return true;
    }
    this.#incoming = command;
    this.#incomingLeft = command.length - here;
    if (buffer === undefined) this.#skipRest();
    else {
      this.#receiving = Receiving.payload;
      this.target.set(buffer.region, buffer.start + here, this.#incomingLeft);
    }
    return false;
  }

  #submit(command: Command): void {
    command.prepare();
    this.#inStore++;
    this.#store.submit(command.request);
  }

  completed(request: BlockRequest): void {
    const command = this.#commands[request.tag]!;
    this.#inStore--;
    command.error = nbdErrorOf(request.status);
    this.#finish(command);
  }

  async #blockStatus(command: Command): Promise<void> {
    this.#inStore++;
    const limit = (command.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : MAX_EXTENTS;
    const buffer = command.buffer!;
    try {
      command.extentCount = await collectExtents(
        this.#store.extents(command.offset, command.length, this.#abort.signal),
        limit,
        buffer.region.bytes,
        buffer.start + CONTEXT_ID_LENGTH,
      );
      if (command.extentCount === 0) command.error = NBD_EIO;
    } catch (error) {
      command.error = nbdErrorOf(errnoOf(error));
    }
    this.#inStore--;
    this.#finish(command);
    this.#environment.reactor.soon();
  }

  /** The reply goes out with the next kick. */
  #finish(command: Command): void {
    if (this.#closed) {
      this.#release(command);
      this.#endIfIdle();
      return;
    }
    this.#finished.push(command);
    if (this.#dirty) return;
    this.#dirty = true;
    this.#environment.reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    if (this.#closed) return;
    for (let command = this.#finished.shift(); command; command = this.#finished.shift()) {
      gatherReply(command, this.#headers, this.#transport, this.#negotiated.structured);
      command.sentMark = this.#transport.gathered;
      this.#sending.push(command);
    }
    this.#transport.flush();
    this.progressed();
  }

  progressed(): void {
    this.#activeAt = this.#environment.clock.now();
    const sent = this.#transport.sent;
    for (
      let command = this.#sending.peek();
      command !== undefined && command.sentMark <= sent;
      command = this.#sending.peek()
    ) {
      this.#sending.shift();
      this.#release(command);
    }
    if (this.#blocked) {
      this.#parse();
      if (!this.#blocked) this.#transport.resume();
    }
    this.#closeWhenIdle();
  }

  #release(command: Command): void {
    const buffer = command.buffer;
    if (buffer !== undefined) {
      this.#heldBytes -= buffer.capacity;
      command.buffer = undefined;
      this.pool.give(buffer);
    }
    this.#freeCommands.push(command);
  }

  /** The client's bytes make no sense any more. */
  #broken(): void {
    this.#receiving = Receiving.nothing;
    this.target.length = 0;
    this.#stopping = true;
    this.#transport.close();
  }

  #closeWhenIdle(): void {
    const idle = this.#inStore === 0 && this.#finished.empty && this.#sending.empty;
    if (this.#stopping && !this.#closed && idle) this.#transport.close();
  }

  closed(): void {
    this.#closed = true;
    this.#receiving = Receiving.nothing;
    this.target.length = 0;
    this.#blocked = false;
    this.#abort.abort();
    if (this.#incoming !== undefined) this.#release(this.#incoming);
    this.#incoming = undefined;
    for (const queue of [this.#finished, this.#sending]) {
      for (let command = queue.shift(); command; command = queue.shift()) this.#release(command);
    }
    this.#endIfIdle();
  }

  #endIfIdle(): void {
    if (!this.#closed || this.#inStore > 0) return;
    this.#input[Symbol.dispose]();
    this.#headers[Symbol.dispose]();
    this.#environment.ended(this);
  }
}

/** Bytes a valid request needs of the pool. */
function memoryOf(type: number, length: number): number {
  if (type === NBD_CMD_READ || type === NBD_CMD_WRITE) return length;
  return type === NBD_CMD_BLOCK_STATUS ? CONTEXT_ID_LENGTH + MAX_EXTENTS * EXTENT_LENGTH : 0;
}
