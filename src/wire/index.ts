/** Bytes to values and back, pure. */
export * from "./blkif.ts";
export * from "./nbd.ts";
export * from "./nbd-options.ts";
export * from "./shared-ring.ts";
export * from "./xenstore.ts";
export * from "./xenstore-ring.ts";
