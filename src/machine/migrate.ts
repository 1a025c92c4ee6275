/**
 * A guest's way from one machine to another over a connection: the stream of a saved guest one way, one
 * answer the other way (docs/save-format.md).
 *
 * Invariant: a disk is open on one side at a time: the sender closes its backends before it sends the end, and the receiver
 * opens them after it has read it. Whoever does not hear the other side knows that it does not know.
 */
import { type Duplex, Readable } from "node:stream";
import { oneLine } from "../util/one-line.ts";
import { XenError } from "../xen/domain.ts";
import type { Sink } from "./save.ts";
import { RecordReader, RecordWriter } from "./save-format.ts";

export function sinkTo(stream: Duplex): Sink {
  return (bytes) =>
    new Promise((resolve, reject) => {
      stream.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
}

/** Reads without taking the stream from whoever opened it. */
export function readerOf(stream: Duplex): RecordReader {
  return new RecordReader(Readable.prototype.iterator.call(stream, { destroyOnReturn: false }));
}

/** Errors of the stream that reads and writes hear of have nobody else to go to. */
export function guarded(stream: Duplex): Disposable {
  const ignore = (): void => {};
  stream.on("error", ignore);
  return { [Symbol.dispose]: () => void stream.off("error", ignore) };
}

/** Why the receiver does not have the guest; undefined where it runs there. */
export async function readAnswer(reader: RecordReader): Promise<string | undefined> {
  const record = await reader.next();
  if (record.type !== "answer") throw new XenError("EPROTO", `a ${record.type} is no answer`);
  return record.refusal === "" ? undefined : oneLine(record.refusal);
}

export async function writeAnswer(stream: Duplex, refusal: string): Promise<void> {
  await sinkTo(stream)(new RecordWriter().record({ type: "answer", refusal: oneLine(refusal) }));
}
