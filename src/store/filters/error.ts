/** Fails requests (nbdkit-error-filter(1)), to see what becomes of errors above. */
import { existsSync } from "node:fs";
import type { Reactor } from "../../io/reactor.ts";
import { SeededRandom } from "../../util/random.ts";
import type { BlockRequest, BlockStore, Extent, StoreFilter } from "../block-store.ts";
import { Errno, errnoName, StoreError } from "../errors.ts";
import { byOperation, ForwardingStore, type OperationName } from "../forwarding-store.ts";
import type { Parameter } from "../parameters.ts";

/** nbdkit's names of what may fail. */
type Kind = "pread" | "pwrite" | "flush" | "trim" | "zero" | "extents" | "cache";

type KindOptions = {
  [K in Kind as `error-${K}` | `error-${K}-rate`]?: number;
} & { [K in Kind as `error-${K}-file`]?: string };

export interface ErrorOptions extends KindOptions {
  /** An errno. */
  error?: number;
  /** 0 to 1. */
  "error-rate"?: number;
  "error-file"?: string;
  "error-seed"?: number;
}

function errorParameter(help: string): Parameter<number> {
  return { help, value: "ERROR", optional: true, parse: parseErrno };
}
function rateParameter(help: string): Parameter<number> {
  return { help, value: "RATE", optional: true, parse: parseRate };
}
function fileParameter(help: string): Parameter<string> {
  return { help, value: "FILE", optional: true, parse: (text) => text };
}

function parseErrno(text: string): number {
  const name = text.toUpperCase();
  if (Object.hasOwn(Errno, name)) return Errno[name as keyof typeof Errno];
  throw new Error("not an error we know; write EIO, ENOSPC, EPERM, ENOMEM, EINVAL ...");
}

function parseRate(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(%?)$/.exec(text);
  const rate = match === null ? Number.NaN : Number(match[1]) / (match[2] === "%" ? 100 : 1);
  if (!(rate <= 1)) throw new Error("not a rate; write 0% to 100%, or 0 to 1");
  return rate;
}

function parseSeed(text: string): number {
  if (!/^\d{1,10}$/.test(text)) throw new Error("not a whole number");
  return Number(text);
}

export const errorFilter: StoreFilter<ErrorOptions> = {
  name: "error",
  summary: "fails requests, some or all",
  parameters: {
    error: errorParameter("What requests fail with; EIO if absent."),
    "error-rate": rateParameter("How many fail: 1%, or 0 to 1; none if absent."),
    "error-file": fileParameter("Requests fail only while this file exists."),
    "error-pread": errorParameter("What reads fail with."),
    "error-pread-rate": rateParameter("How many reads fail."),
    "error-pread-file": fileParameter("Reads fail only while this file exists."),
    "error-pwrite": errorParameter("What writes fail with."),
    "error-pwrite-rate": rateParameter("How many writes fail."),
    "error-pwrite-file": fileParameter("Writes fail only while this file exists."),
    "error-flush": errorParameter("What flushes fail with."),
    "error-flush-rate": rateParameter("How many flushes fail."),
    "error-flush-file": fileParameter("Flushes fail only while this file exists."),
    "error-trim": errorParameter("What trims (discards) fail with."),
    "error-trim-rate": rateParameter("How many trims fail."),
    "error-trim-file": fileParameter("Trims fail only while this file exists."),
    "error-zero": errorParameter("What zeroes fail with."),
    "error-zero-rate": rateParameter("How many zeroes fail."),
    "error-zero-file": fileParameter("Zeroes fail only while this file exists."),
    "error-extents": errorParameter("What asking for extents fails with."),
    "error-extents-rate": rateParameter("How often asking for extents fails."),
    "error-extents-file": fileParameter("Extents fail only while this file exists."),
    "error-cache": errorParameter("What prefetching fails with."),
    "error-cache-rate": rateParameter("How many prefetches fail."),
    "error-cache-file": fileParameter("Prefetches fail only while this file exists."),
    "error-seed": {
      help: "The same requests fail for the same seed; another one each time if absent.",
      value: "NUMBER",
      optional: true,
      parse: parseSeed,
    },
  },
  async wrap(next, options, { reactor }) {
    return new FailingStore(next, options, reactor);
  },
};

/** When one kind of request fails, and how. */
class Failure {
  readonly #errno: number;
  readonly #rate: number;
  readonly #file: string | undefined;
  readonly #random: SeededRandom;

  constructor(kind: Kind, options: ErrorOptions, random: SeededRandom) {
    this.#errno = options[`error-${kind}`] ?? options.error ?? Errno.EIO;
    this.#rate = options[`error-${kind}-rate`] ?? options["error-rate"] ?? 0;
    this.#file = options[`error-${kind}-file`] ?? options["error-file"];
    this.#random = random;
  }

  /** 0, or what the next request fails with. */
  draw(): number {
    if (this.#rate === 0 || this.#random.next() >= this.#rate) return 0;
    return this.#file === undefined || existsSync(this.#file) ? this.#errno : 0;
  }
}

class FailingStore extends ForwardingStore {
  /** By operation. */
  readonly #failures: readonly Failure[];
  readonly #extents: Failure;

  constructor(next: BlockStore, options: ErrorOptions, reactor: Reactor) {
    super(next, reactor);
    const random = new SeededRandom(options["error-seed"] ?? Math.random() * 2 ** 32);
    const failures: Record<OperationName, Failure> = {
      read: new Failure("pread", options, random),
      write: new Failure("pwrite", options, random),
      flush: new Failure("flush", options, random),
      discard: new Failure("trim", options, random),
      writeZeroes: new Failure("zero", options, random),
      cache: new Failure("cache", options, random),
    };
    this.#failures = byOperation(failures);
    this.#extents = new Failure("extents", options, random);
  }

  override submit(request: BlockRequest): void {
    const failure = this.#failures[request.operation];
    const status = failure === undefined ? Errno.EOPNOTSUPP : failure.draw();
    if (status === 0) this.next.submit(request);
    else this.answer(request, status);
  }

  override async *extents(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): AsyncIterable<Extent> {
    const status = this.#extents.draw();
    if (status !== 0) throw new StoreError(errnoName(status), "the error filter fails extents");
    yield* this.next.extents(offset, length, signal);
  }
}
