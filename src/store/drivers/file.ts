/**
 * The driver of disks in raw files and on block devices: its parameters, and how an image is opened (file/image.ts) for a
 * store (file/file-store.ts) over the thread's I/O engine (io/engines.ts).
 */
import { channel } from "node:diagnostics_channel";
import type { Engine } from "../../io/engine.ts";
import { chooseEngine, leaseEngine } from "../../io/engines.ts";
import { ffi, ffiMissingReason } from "../../io/ffi.ts";
import type { BlockStore, StoreContext, StoreDriver } from "../block-store.ts";
import { switchParameter } from "../common-parameters.ts";
import { StoreError } from "../errors.ts";
import { FileStore } from "./file/file-store.ts";
import { type Image, openImage } from "./file/image.ts";

export type CacheMode = "writeback" | "none";

export interface FileOptions {
  file: string;
  cache: CacheMode;
  lock: boolean;
  shared: boolean;
}

export const fileDriver: StoreDriver<FileOptions> = {
  name: "file",
  summary: "a disk in a raw file or on a block device",
  parameters: {
    file: {
      help: "The image: a raw file or a block device. It must exist.",
      value: "FILE",
      parse: parsePath,
    },
    cache: {
      help: "writeback goes through the page cache; none goes past it (O_DIRECT).",
      value: "writeback|none",
      default: "writeback",
      parse: parseCacheMode,
    },
    lock: switchParameter("Lock the image against other writers, as QEMU does.", true),
    shared: switchParameter("A read-only disk lets others write to the image.", false),
  },
  positional: "file",
  open: openFileStore,
};

function parsePath(text: string): string {
  if (text === "" || text.includes("\0")) throw new Error("not the name of a file");
  return text;
}

function parseCacheMode(text: string): CacheMode {
  if (text === "writeback" || text === "none") return text;
  throw new Error("write writeback or none");
}

/** For people: what a disk does without. Messages are { driver, message }. */
const notes = channel("vbdkit:note");

async function openFileStore(options: FileOptions, context: StoreContext): Promise<BlockStore> {
  context.signal.throwIfAborted();
  const image = await openImage({
    path: options.file,
    readOnly: context.readOnly,
    direct: options.cache === "none",
    lock: options.lock,
    shared: options.shared,
  });
  try {
    context.signal.throwIfAborted();
    const name = engineFor(context, image);
    if (ffi() === undefined) {
      const message = `${image.path} has neither locks nor holes: they need foreign calls, and ${ffiMissingReason()}`;
      notes.publish({ driver: "file", message });
    }
    return new FileStore(context, image, leaseEngine(context.reactor, name));
  } catch (error) {
    await image[Symbol.asyncDispose]();
    throw error;
  }
}

function engineFor({ engine }: StoreContext, image: Image): Engine["name"] {
  try {
    return chooseEngine(engine, image);
  } catch (cause) {
    throw new StoreError("EOPNOTSUPP", (cause as Error).message, { cause });
  }
}
