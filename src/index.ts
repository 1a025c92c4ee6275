/** vbdkit: Xen virtual block devices. Everything a program usually needs; the rest is in the sub-paths. */
export * from "./block/index.ts";
export * from "./machine/index.ts";
export * from "./nbd/index.ts";
export * from "./store/index.ts";
export { XenError } from "./xen/domain.ts";
export { XenStoreClient } from "./xen/xenstore/index.ts";
