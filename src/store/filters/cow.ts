/**
 * Copy-on-write (nbdkit-cow-filter(1)): what is written goes to an overlay, the base is only ever read. When the disk is
 * closed, the changes are gone.
 */
import { parseSize } from "../../util/size.ts";
import type { BlockStore, StoreContext, StoreFilter, StoreSpec } from "../block-store.ts";
import { SECTOR_SIZE } from "../common-parameters.ts";
import { StoreError } from "../errors.ts";
import { CowStore } from "./cow/cow-store.ts";

export interface CowOptions {
  /** Bytes. */
  "cow-block-size": number;
  "cow-overlay"?: StoreSpec;
}

export const cowFilter: StoreFilter<CowOptions> = {
  name: "cow",
  summary: "writes go to an overlay and are gone when it closes; the disk below is only read",
  onlyReads: true,
  parameters: {
    "cow-block-size": {
      help: "Unit of copying, a power of two from 4K to 2M.",
      value: "SIZE",
      default: 64 * 1024,
      parse: parseBlockSize,
    },
    "cow-overlay": {
      help: "Where changes are kept, as DRIVER,key=value,...: an empty disk; memory if absent.",
      value: "DISK",
      optional: true,
      parse: parseOverlay,
    },
  },
  async wrap(next, options, context) {
    try {
      return await openCow(next, options, context);
    } catch (error) {
      await next[Symbol.asyncDispose]();
      throw error;
    }
  },
};

function parseBlockSize(text: string): number {
  const size = parseSize(text);
  const exponent = Math.log2(size);
  if (!Number.isInteger(exponent) || exponent < 12 || exponent > 21) {
    throw new Error("not a power of two from 4K to 2M");
  }
  return size;
}

function parseOverlay(text: string): StoreSpec {
  const [driver = "", ...pairs] = text.split(",");
  const parameters: Record<string, string> = {};
  for (const pair of pairs) {
    const equals = pair.indexOf("=");
    if (equals < 1) throw new Error(`"${pair}" is no key=value`);
    parameters[pair.slice(0, equals)] = pair.slice(equals + 1);
  }
  return { driver, parameters, filters: [] };
}

const inMemory: StoreSpec = { driver: "memory", parameters: {}, filters: [] };

async function openCow(
  next: BlockStore,
  { "cow-block-size": blockSize, "cow-overlay": overlaySpec }: CowOptions,
  context: StoreContext,
): Promise<BlockStore> {
  const { size, block } = next.info;
  if (blockSize % block.minimum !== 0) {
    throw new StoreError("EINVAL", `cow-block-size is less than a block of ${block.minimum} bytes`);
  }
  const { driver, parameters, filters } = overlaySpec ?? inMemory;
  const sized = driver === "memory" && !Object.hasOwn(parameters, "size");
  const room = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
  const overlay = await context.open(
    { driver, parameters: sized ? { ...parameters, size: String(room) } : parameters, filters },
    { readOnly: false },
  );
  try {
    if (overlay.info.readOnly && !context.readOnly) {
      throw new StoreError("EROFS", "the overlay of cow is read-only");
    }
    if (blockSize % overlay.info.block.minimum !== 0) {
      throw new StoreError("EINVAL", "cow-block-size is less than a block of the overlay");
    }
    if (overlay.info.size < size) {
      const unit = Math.max(SECTOR_SIZE, overlay.info.block.minimum);
      await overlay.resize(Math.ceil(size / unit) * unit, context.signal);
    }
    return new CowStore(next, overlay, blockSize, context);
  } catch (error) {
    await overlay[Symbol.asyncDispose]();
    throw error;
  }
}
