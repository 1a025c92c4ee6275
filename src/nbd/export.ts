/** What an NBD server offers: stores by name, and how the protocol describes each. */
import type { BlockStore } from "../store/block-store.ts";
import { StoreError } from "../store/errors.ts";
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_MAX_PAYLOAD,
  NBD_MAX_STRING,
} from "../wire/nbd.ts";

export interface NbdExport {
  /** What clients ask for, at most 4096 bytes of UTF-8; "" is what they get who ask for nothing. */
  readonly name: string;
  /** Stays the caller's: the server flushes it, and neither cancels nor disposes it. */
  readonly store: BlockStore;
  /** One line for people (`nbdinfo --list`). */
  readonly description?: string;
  /** Refuse writing, whatever the store would allow. */
  readonly readOnly?: boolean;
}

/** The block sizes of NBD_INFO_BLOCK_SIZE, in bytes. */
export interface BlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** An export as it was when a client chose it; its numbers do not change under the client. */
export interface OfferedExport {
  readonly name: string;
  readonly description: string;
  readonly store: BlockStore;
  readonly readOnly: boolean;
  /** Bytes. */
  readonly size: number;
  readonly blockSizes: BlockSizes;
  /** NBD_FLAG_*. */
  readonly flags: number;
}

export class ExportTable {
  /** In the order in which they came. */
  readonly #exports = new Map<string, NbdExport>();

  /** Throws StoreError("EINVAL") where the export cannot be told from another, or named. */
  add(entry: NbdExport): void {
    if (this.#exports.has(entry.name)) {
      throw new StoreError("EINVAL", `two NBD exports have the name "${entry.name}"`);
    }
    for (const text of [entry.name, entry.description ?? ""]) {
      if (text.includes("\0") || Buffer.byteLength(text) > NBD_MAX_STRING) {
        throw new StoreError("EINVAL", "an NBD name or description has at most 4096 bytes, no NUL");
      }
    }
    this.#exports.set(entry.name, entry);
  }

  /** Whether it is offered now, and no other by its name. */
  has({ name, store }: Pick<NbdExport, "name" | "store">): boolean {
    return this.#exports.get(name)?.store === store;
  }

  remove(entry: NbdExport): void {
    if (this.has(entry)) this.#exports.delete(entry.name);
  }

  [Symbol.iterator](): Iterator<NbdExport> {
    return this.#exports.values();
  }

  /** "" is the first export where none has that name. */
  offer(name: string): OfferedExport | undefined {
    const [first] = this.#exports.values();
    const found = this.#exports.get(name) ?? (name === "" ? first : undefined);
    if (found === undefined) return undefined;
    const { store } = found;
    const readOnly = found.readOnly === true || store.info.readOnly;
    return {
      name: found.name,
      description: found.description ?? "",
      store,
      readOnly,
      size: store.info.size,
      blockSizes: blockSizesOf(store),
      flags: transmissionFlags(store, readOnly),
    };
  }
}

function transmissionFlags(store: BlockStore, readOnly: boolean): number {
  // Every connection of this server shares the one store, whose flush covers every write completed before it.
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
  if (store.info.native.has("cache")) flags |= NBD_FLAG_SEND_CACHE;
  if (readOnly) return flags | NBD_FLAG_READ_ONLY;
  flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
  if (store.info.discard !== undefined) flags |= NBD_FLAG_SEND_TRIM;
  return flags;
}

/** The protocol wants powers of two from 1 to 64 KiB, a preferred one of 512 at least, and an exact multiple above. */
function blockSizesOf(store: BlockStore): BlockSizes {
  const { minimum, preferred } = store.info.block;
  const power = 2 ** Math.floor(Math.log2(Math.max(preferred, minimum, 512)));
  return { minimum, preferred: power, maximum: Math.max(NBD_MAX_PAYLOAD, power) };
}
