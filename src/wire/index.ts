/** Bytes to values and back, pure. */
export * from "./blkif.ts";
export * from "./shared-ring.ts";
