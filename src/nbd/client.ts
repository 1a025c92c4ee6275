/**
 * An export of any NBD server as a block store.
 *
 * Invariant: once a connection is gone the store has failed for good: its listeners hear of it once, and every
 * request, waiting or new, ends with an errno from the next kick.
 */
import type { Kickable, Reactor } from "../io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  type Extent,
  type NativeFeature,
  Operation,
  RequestFlag,
  type StoreListener,
} from "../store/block-store.ts";
import { Errno, StoreError } from "../store/errors.ts";
import { type Clock, systemClock } from "../util/clock.ts";
import { Fifo } from "../util/fifo.ts";
import {
  EXTENT_LENGTH,
  getU32,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from "../wire/nbd.ts";
import type { StatusQuery } from "./client-command.ts";
import { ClientConnection, type ClientConnectionUser, MAX_IN_FLIGHT } from "./client-connection.ts";
import type { Agreed } from "./client-handshake.ts";
import { connectNbd } from "./connect.ts";
import type { TransportKind } from "./transports.ts";
import { formatNbdUri, type NbdUri, parseNbdUri } from "./uri.ts";

/** A server across an ocean answers in a second; one that hangs should not hang us. */
const CONNECT_TIMEOUT = 30_000;
/** Milliseconds for requests in flight when the store is cancelled; then their connection is cut. */
const CANCEL_TIMEOUT = 10_000;
/** Bytes of one question for extents: a multiple of every block size, within 32 bits. */
const STATUS_SPAN = 2 ** 31;
/** More bring nothing to one thread, and Linux's server takes no more either. */
export const MAX_CONNECTIONS = 16;

export interface NbdStoreOptions {
  readonly reactor: Reactor;
  readonly uri: string;
  /** Instead of the URI's. */
  readonly exportName?: string;
  /** 1 to 16; more than one only where the server allows it (multi-conn). */
  readonly connections?: number;
  readonly readOnly?: boolean;
  readonly signal?: AbortSignal;
  readonly transport?: TransportKind;
  readonly clock?: Clock;
}

/** Rejects with a StoreError that names the URI, and what to do where we know it. */
export async function openNbdStore(options: NbdStoreOptions): Promise<NbdStore> {
  const parsed = parseNbdUri(options.uri);
  const uri: NbdUri = { ...parsed, exportName: options.exportName ?? parsed.exportName };
  const signals = [AbortSignal.timeout(CONNECT_TIMEOUT)];
  if (options.signal !== undefined) signals.push(options.signal);
  const signal = AbortSignal.any(signals);
  const { reactor, transport = "auto" } = options;
  const first = await connectNbd(uri, reactor, transport, signal);
  const multiple = (first.agreed.flags & NBD_FLAG_CAN_MULTI_CONN) !== 0;
  const count = multiple ? Math.min(options.connections ?? 1, MAX_CONNECTIONS) : 1;
  const store = new NbdStore(uri, first.agreed, options);
  store.add(first);
  try {
    while (store.connectionCount < count) {
      const next = await connectNbd(uri, reactor, transport, signal);
      if (next.agreed.size !== first.agreed.size || next.agreed.flags !== first.agreed.flags) {
        next.transport.close();
        throw new StoreError("EPROTO", `${formatNbdUri(uri)}: two connections, two exports`);
      }
      store.add(next);
    }
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
  return store;
}

export class NbdStore implements BlockStore, Kickable, ClientConnectionUser {
  readonly info: BlockStoreInfo;
  readonly #uri: string;
  readonly #agreed: Agreed;
  readonly #reactor: Reactor;
  readonly #clock: Clock;
  readonly #connections: ClientConnection[] = [];
  readonly #listeners = new Set<StoreListener>();
  readonly #pending = new Fifo<BlockRequest>();
  readonly #queries: StatusQuery[] = [];
  #dirty = false;
  #failure: StoreError | undefined;
  #disposed = false;
  /** Open connections. */
  #open = 0;
  #idle: (() => void) | undefined;
  #allClosed: (() => void) | undefined;

  constructor(uri: NbdUri, agreed: Agreed, options: NbdStoreOptions) {
    this.#uri = formatNbdUri(uri);
    this.#agreed = agreed;
    this.#reactor = options.reactor;
    this.#clock = options.clock ?? systemClock;
    this.info = storeInfo(agreed, options);
  }

  get connectionCount(): number {
    return this.#connections.length;
  }

  /** For `openNbdStore` alone. */
  add({ transport, agreed }: Awaited<ReturnType<typeof connectNbd>>): void {
    this.#open++;
    this.#connections.push(new ClientConnection(transport, agreed, this));
  }

  submit(request: BlockRequest): void {
    this.#pending.push(request);
    this.#wake();
  }

  #wake(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#reactor.dirty(this);
  }

  kick(): void {
    this.#dirty = false;
    if (this.#failure !== undefined) {
      this.#failPending(this.#failure.errno);
      return;
    }
    while (this.#queries.length > 0) {
      const connection = this.#leastBusy();
      if (connection === undefined) break;
      connection.ask(this.#queries.shift()!, 0);
    }
    while (!this.#pending.empty) {
      const connection = this.#leastBusy();
      if (connection === undefined) break;
      this.#send(connection, this.#pending.shift()!);
    }
    for (let i = 0; i < this.#connections.length; i++) this.#connections[i]!.flush();
  }

  #failPending(status: number): void {
    for (let request = this.#pending.shift(); request; request = this.#pending.shift()) {
      request.status = status;
      request.owner.completed(request);
    }
  }

  #leastBusy(): ClientConnection | undefined {
    let best: ClientConnection | undefined;
    for (let i = 0; i < this.#connections.length; i++) {
      const connection = this.#connections[i]!;
      if (connection.hasRoom && (best === undefined || connection.inFlight < best.inFlight)) {
        best = connection;
      }
    }
    return best;
  }

  #send(connection: ClientConnection, request: BlockRequest): void {
    const status = this.#refusal(request);
    if (status === 0) {
      connection.send(request, commandOf(request.operation), commandFlags(request));
      return;
    }
    request.status = status;
    request.owner.completed(request);
  }

  /** 0, or why the server should not be asked: it would have to disconnect a client that asks for what was not
   * offered. */
  #refusal(request: BlockRequest): number {
    const { operation, flags, offset, length } = request;
    const offered = this.#agreed.flags;
    if (offset + length > this.info.size) return Errno.EINVAL;
    const asks = (flag: number) => (flags & flag) !== 0;
    const lacks = (flag: number) => (offered & flag) === 0;
    const changes = operation !== Operation.read && operation !== Operation.cache;
    if (changes && operation !== Operation.flush && this.info.readOnly) return Errno.EROFS;
    if (changes && asks(RequestFlag.forceUnitAccess) && lacks(NBD_FLAG_SEND_FUA)) {
      return Errno.EOPNOTSUPP;
    }
    switch (operation) {
      case Operation.flush:
        return lacks(NBD_FLAG_SEND_FLUSH) ? Errno.EOPNOTSUPP : 0;
      case Operation.discard:
        return lacks(NBD_FLAG_SEND_TRIM) || asks(RequestFlag.secure) ? Errno.EOPNOTSUPP : 0;
      case Operation.writeZeroes:
        if (lacks(NBD_FLAG_SEND_WRITE_ZEROES)) return Errno.EOPNOTSUPP;
        return asks(RequestFlag.mustBeFast) && lacks(NBD_FLAG_SEND_FAST_ZERO)
          ? Errno.EOPNOTSUPP
          : 0;
      case Operation.cache:
        return lacks(NBD_FLAG_SEND_CACHE) ? Errno.EOPNOTSUPP : 0;
      default:
        return 0;
    }
  }

  roomMade(): void {
    if (!this.#pending.empty || this.#queries.length > 0) this.#wake();
    if (this.#idle !== undefined && this.#nothingInFlight()) this.#idle();
  }

  #nothingInFlight(): boolean {
    return this.#connections.every((connection) => connection.inFlight === 0);
  }

  connectionClosed(_connection: ClientConnection, error: StoreError): void {
    this.#open--;
    if (!this.#disposed && this.#failure === undefined) {
      this.#failure = new StoreError(error.code, `${this.#uri}: ${error.message}`, {
        cause: error,
      });
      // The others may lead to a server that lives on with other data: one disk, one fate.
      for (const connection of this.#connections) connection.abort(error);
      for (const listener of this.#listeners) listener.failed?.(this.#failure);
      for (const query of this.#queries.splice(0)) query.failed(this.#failure);
    }
    this.#wake();
    this.#idle?.();
    if (this.#open === 0) this.#allClosed?.();
  }

  async *extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    if (offset < 0 || length < 0 || offset + length > this.info.size) {
      throw new StoreError("EINVAL", `${this.#uri}: extents beyond the end`);
    }
    if (this.#agreed.allocationId === undefined) {
      if (length > 0) yield { offset, length, hole: false, zero: false };
      return;
    }
    const end = offset + length;
    while (offset < end) {
      signal?.throwIfAborted();
      const payload = await this.#ask(offset, Math.min(end - offset, STATUS_SPAN), signal);
      const before = offset;
      for (let at = 4; at + EXTENT_LENGTH <= payload.length && offset < end; at += EXTENT_LENGTH) {
        const size = Math.min(getU32(payload, at), end - offset);
        const state = getU32(payload, at + 4);
        if (size === 0) break;
        const hole = (state & NBD_STATE_HOLE) !== 0;
        yield { offset, length: size, hole, zero: (state & NBD_STATE_ZERO) !== 0 };
        offset += size;
      }
      if (offset === before || getU32(payload, 0) !== this.#agreed.allocationId) {
        throw new StoreError("EPROTO", `${this.#uri}: the server answers without extents`);
      }
    }
  }

  #ask(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal?.reason);
      signal?.addEventListener("abort", abort, { once: true });
      const done = () => signal?.removeEventListener("abort", abort);
      if (this.#failure !== undefined) return reject(this.#failure);
      this.#queries.push({
        offset,
        length,
        answered(payload) {
          done();
          // The bytes are the connection's, and the next answer's.
          if (payload.length >= 4 + EXTENT_LENGTH) resolve(payload.slice());
          else reject(new StoreError("EPROTO", "the server answers without extents"));
        },
        failed(error) {
          done();
          reject(error);
        },
      });
      this.#wake();
      this.#reactor.soon();
    });
  }

  async resize(): Promise<void> {
    throw new StoreError("EOPNOTSUPP", `${this.#uri}: an NBD client cannot resize an export`);
  }

  subscribe(listener: StoreListener): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** What the server has been asked cannot be taken back: its answers are awaited, for ten seconds at most. */
  async cancel(_reason: Error): Promise<void> {
    this.#failPending(Errno.ECANCELED);
    const cancelled = new StoreError("ECANCELED", `${this.#uri}: cancelled`);
    for (const query of this.#queries.splice(0)) query.failed(cancelled);
    if (this.#nothingInFlight()) return;
    const idle = new Promise<void>((resolve) => {
      this.#idle = resolve;
    });
    const timer = this.#clock.after(CANCEL_TIMEOUT, () => {
      const late = new StoreError("ETIMEDOUT", "the server did not answer in time");
      for (const connection of this.#connections) connection.abort(late);
    });
    await idle;
    this.#idle = undefined;
    timer[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await this.cancel(new Error("disposed"));
    this.#failure ??= new StoreError("ESHUTDOWN", `${this.#uri}: closed`);
    if (this.#open === 0) return;
    const closed = new Promise<void>((resolve) => {
      this.#allClosed = resolve;
    });
    for (const connection of this.#connections) connection.end();
    // A server that does not even read our goodbye is not waited for.
    const timer = this.#clock.after(1000, () => {
      for (const connection of this.#connections) connection.abort(this.#failure!);
    });
    await closed;
    timer[Symbol.dispose]();
  }
}

function commandOf(operation: Operation): number {
  switch (operation) {
    case Operation.read:
      return NBD_CMD_READ;
    case Operation.write:
      return NBD_CMD_WRITE;
    case Operation.flush:
      return NBD_CMD_FLUSH;
    case Operation.discard:
      return NBD_CMD_TRIM;
    case Operation.writeZeroes:
      return NBD_CMD_WRITE_ZEROES;
    default:
      return NBD_CMD_CACHE;
  }
}

function commandFlags({ operation, flags }: BlockRequest): number {
  if (operation === Operation.read || operation === Operation.cache) return 0;
  if (operation === Operation.flush) return 0;
  let result = (flags & RequestFlag.forceUnitAccess) !== 0 ? NBD_CMD_FLAG_FUA : 0;
  if (operation === Operation.writeZeroes) {
    if ((flags & RequestFlag.mayUnmap) === 0) result |= NBD_CMD_FLAG_NO_HOLE;
    if ((flags & RequestFlag.mustBeFast) !== 0) result |= NBD_CMD_FLAG_FAST_ZERO;
  }
  return result;
}

function storeInfo(agreed: Agreed, options: NbdStoreOptions): BlockStoreInfo {
  const { flags, blockSizes } = agreed;
  const native = new Set<NativeFeature>();
  if ((flags & NBD_FLAG_SEND_FLUSH) !== 0) native.add("flush");
  if ((flags & NBD_FLAG_SEND_FUA) !== 0) native.add("forceUnitAccess");
  if ((flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0) native.add("writeZeroes");
  if ((flags & NBD_FLAG_SEND_CACHE) !== 0) native.add("cache");
  if (agreed.allocationId !== undefined) native.add("extents");
  const discard =
    (flags & NBD_FLAG_SEND_TRIM) === 0
      ? undefined
      : { granularity: blockSizes.preferred, alignment: 0, secure: false, zeroes: false };
  return {
    size: agreed.size,
    readOnly: options.readOnly === true || (flags & NBD_FLAG_READ_ONLY) !== 0,
    block: blockSizes,
    discard,
    native,
    shareable: (flags & NBD_FLAG_CAN_MULTI_CONN) !== 0,
    depth: MAX_IN_FLIGHT,
    engine: "nbd",
  };
}
