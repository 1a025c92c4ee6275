/** Xen: the hypervisor port, a machine that needs no hypervisor, the xenstore, and what names a virtual block device. */
export * from "./domain.ts";
export * from "./embedded/index.ts";
export * from "./host/index.ts";
export * from "./toolstack.ts";
export * from "./vbd.ts";
export * from "./xenbus.ts";
export * from "./xenstore/index.ts";
