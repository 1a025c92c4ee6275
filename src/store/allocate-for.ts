/** Memory for the data of requests: the store's own where it lends some, any other where not. */
import { allocateRegion, type MemoryRegion } from "../io/memory.ts";
import type { BlockStore } from "./block-store.ts";

export function allocateFor(store: BlockStore, byteLength: number): MemoryRegion {
  return store.allocate?.(byteLength) ?? allocateRegion(byteLength);
}
