/**
 * Tells of each request when it comes and when it ends (nbdkit-log-filter(1)): on the diagnostics channel
 * "vbdkit:request" for programs, in lines of a file for people. A library prints nowhere else.
 *
 * Invariant: a log that cannot be written stops; the disk goes on.
 */
import { channel } from "node:diagnostics_channel";
import { closeSync, openSync, writeSync } from "node:fs";
import type { Kickable, Reactor } from "../../io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  RequestFlag,
  type StoreFilter,
} from "../block-store.ts";
import { switchParameter } from "../common-parameters.ts";
import { Errno, errnoName, StoreError } from "../errors.ts";
import { ForwardingStore, type OperationName, operationNames } from "../forwarding-store.ts";

export interface LogOptions {
  logfile?: string;
  logappend: boolean;
}

/** What subscribers of the channel "vbdkit:request" get. */
export interface RequestEvent {
  /** Counts up from 1; the same for both events of a request. */
  readonly id: number;
  readonly operation: OperationName;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** Bits of RequestFlag. */
  readonly flags: number;
  /** Absent when it comes; 0 or an errno when it has ended. */
  readonly status?: number;
}

const requests = channel("vbdkit:request");

/** nbdkit's words. */
const verbs: Record<OperationName, string> = {
  read: "Read",
  write: "Write",
  flush: "Flush",
  discard: "Trim",
  writeZeroes: "Zero",
  cache: "Cache",
};

export const logFilter: StoreFilter<LogOptions> = {
  name: "log",
  summary: "tells of each request, in a file and on a diagnostics channel",
  parameters: {
    logfile: {
      help: "A line here for each request and each answer.",
      value: "FILE",
      optional: true,
      parse: (text) => text,
    },
    logappend: switchParameter("Keep what is in the file already.", false),
  },
  async wrap(next, { logfile, logappend }, { reactor }) {
    try {
      const log = logfile === undefined ? undefined : new LineFile(logfile, logappend, reactor);
      return new LoggingStore(next, log, reactor);
    } catch (cause) {
      await next[Symbol.asyncDispose]();
      const code = (cause as NodeJS.ErrnoException).code;
      const why = code !== undefined && Object.hasOwn(Errno, code) ? code : "EIO";
      throw new StoreError(why as keyof typeof Errno, `cannot write the log ${logfile}: ${code}`, {
        cause,
      });
    }
  },
};

/** Lines gathered during a round of the reactor go out in one write. */
class LineFile implements Kickable, Disposable {
  readonly #reactor: Reactor;
  #descriptor: number | undefined;
  #text = "";

  constructor(path: string, append: boolean, reactor: Reactor) {
    this.#descriptor = openSync(path, append ? "a" : "w", 0o600);
    this.#reactor = reactor;
  }

  line(text: string): void {
    if (this.#descriptor === undefined) return;
    if (this.#text === "") this.#reactor.dirty(this);
    this.#text += `${new Date().toISOString()} ${text}\n`;
  }

  kick(): void {
    const text = this.#text;
    this.#text = "";
    if (this.#descriptor === undefined || text === "") return;
    try {
      writeSync(this.#descriptor, text);
    } catch {
      this[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    const descriptor = this.#descriptor;
    this.#descriptor = undefined;
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

class LoggingStore extends ForwardingStore {
  readonly #log: LineFile | undefined;
  #lastId = 0;

  constructor(next: BlockStore, log: LineFile | undefined, reactor: Reactor) {
    super(next, reactor);
    this.#log = log;
    this.#log?.line(`Open size=0x${next.info.size.toString(16)} readonly=${next.info.readOnly}`);
  }

  override submit(parent: BlockRequest): void {
    if (operationNames[parent.operation] === undefined) {
      this.answer(parent, Errno.EOPNOTSUPP);
      return;
    }
    const child = this.child(parent);
    child.offset = parent.offset;
    child.length = parent.length;
    child.segmentByte = parent.segmentByte;
    child.tag = ++this.#lastId;
    this.#log?.line(describe(child));
    if (requests.hasSubscribers) requests.publish(eventOf(child));
    this.next.submit(child);
  }

  override completed(child: BlockRequest): void {
    const { tag, status } = child;
    this.#log?.line(
      `...${verbs[operationNames[child.operation]!]} id=${tag} return=${status === 0 ? "0" : `-1 error=${errnoName(status)}`}`,
    );
    if (requests.hasSubscribers) requests.publish({ ...eventOf(child), status });
    super.completed(child);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    this.#log?.line("Close");
    this.#log?.kick();
    this.#log?.[Symbol.dispose]();
  }
}

function eventOf({ tag, operation, offset, length, flags }: BlockRequest): RequestEvent {
  return { id: tag, operation: operationNames[operation]!, offset, length, flags };
}

function describe({ tag, operation, offset, length, flags }: BlockRequest): string {
  const words = [verbs[operationNames[operation]!], `id=${tag}`];
  const name = operationNames[operation];
  if (name !== "flush")
    words.push(`offset=0x${offset.toString(16)}`, `count=0x${length.toString(16)}`);
  if ((flags & RequestFlag.forceUnitAccess) !== 0) words.push("fua=1");
  if ((flags & RequestFlag.mayUnmap) !== 0) words.push("trim=1");
  if ((flags & RequestFlag.mustBeFast) !== 0) words.push("fast=1");
  if ((flags & RequestFlag.secure) !== 0) words.push("secure=1");
  return words.join(" ");
}
