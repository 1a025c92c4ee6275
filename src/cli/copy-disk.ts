/**
 * Copies the bytes of one disk to another, several chunks in flight.
 *
 * Invariant: when it resolves, everything is on the destination and flushed; when it rejects, no request of it is
 * still under way.
 */
import type { Disk } from "../index.ts";

/** Long enough that promises and wake-ups cost nothing beside the bytes. */
const CHUNK_BYTES = 1024 * 1024;
/** Reads overlap writes, on both sides; more brings nothing on one machine. */
const CHUNKS_IN_FLIGHT = 8;
/** Zeroes are cheap or slow; asked for in pieces, a slow destination still shows progress. */
const ZERO_BYTES = 64 * 1024 * 1024;

export interface CopyOptions {
  /** The destination reads as zeroes already. */
  readonly targetIsZero: boolean;
  readonly signal: AbortSignal;
  /** Told that the source cannot list its extents, so that everything is read. */
  readonly onunlisted: (error: Error) => void;
  /** Bytes of the source that are dealt with. */
  readonly onprogress: (done: number) => void;
}

interface Piece {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

/** Resolves to the bytes that were read and written. */
export async function copyDisk(
  source: Disk,
  target: Disk,
  options: CopyOptions,
): Promise<{ copied: number }> {
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const pieces = piecesOf(source, target, signal, options.onunlisted);
  let copied = 0;
  let done = 0;
  const work = async () => {
    for await (const { offset, length, zero } of { [Symbol.asyncIterator]: () => pieces }) {
      signal.throwIfAborted();
      if (!zero) {
        await target.write(offset, await source.read(offset, length));
        copied += length;
      } else if (!options.targetIsZero) {
        await target.writeZeroes(offset, length, { mayUnmap: true });
      }
      done += length;
      options.onprogress(done);
    }
  };
  const workers = Array.from({ length: CHUNKS_IN_FLIGHT }, () =>
    work().catch((error: unknown) => {
      stop.abort(error);
    }),
  );
  await Promise.all(workers);
  signal.throwIfAborted();
  await target.flush();
  return { copied };
}

/** The source cut where its extents change, on the blocks of both sides: a block that is partly data is data. */
async function* piecesOf(
  source: Disk,
  target: Disk,
  signal: AbortSignal,
  onunlisted: (error: Error) => void,
): AsyncGenerator<Piece> {
  const { size } = source.info;
  const unit = Math.max(source.info.block.minimum, target.info.block.minimum);
  let begin = 0;
  const extents = source.extents(0, size, signal)[Symbol.asyncIterator]();
  for (;;) {
    const extent = await extents.next().catch((error: Error) => {
      signal.throwIfAborted();
      onunlisted(error);
      return { done: true as const };
    });
    if (extent.done) break;
    const { offset, length, zero } = extent.value;
    const end = offset + length === size ? size : Math.floor((offset + length) / unit) * unit;
    const start = zero ? Math.ceil(offset / unit) * unit : end;
    if (end <= begin || (zero && end <= start)) continue;
    yield* chunks(begin, start, false);
    yield* chunks(start, end, true);
    begin = end;
  }
  yield* chunks(begin, size, false);
}

function* chunks(begin: number, end: number, zero: boolean): Generator<Piece> {
  const step = zero ? ZERO_BYTES : CHUNK_BYTES;
  for (let offset = begin; offset < end; offset += step) {
    yield { offset, length: Math.min(step, end - offset), zero };
  }
}
