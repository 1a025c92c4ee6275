/** A machine without Xen, with virtual block devices. */
export { AttachedDisk, type AttachmentInformation, type Link } from "./attached-disk.ts";
export type { BackendReport, RingReport, StoreFacts } from "./backend-protocol.ts";
export type { ForeignDisk } from "./foreign-backend.ts";
export { Guest, type GuestState } from "./guest.ts";
export { HostFrontend, type HostFrontendOptions, type NewHostVbd } from "./host-frontend.ts";
export { HostVbd, type HostVbdOptions } from "./host-vbd.ts";
export type { InheritedRequest } from "./inherited-requests.ts";
export { type AttachOptions, type GuestOptions, Machine, type MachineOptions } from "./machine.ts";
export type { RestoreOptions } from "./restore.ts";
export type { RingIndexes } from "./ring-indexes.ts";
export type { SavedDisk } from "./saved-disk.ts";
