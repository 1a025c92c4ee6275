/** What a server says of itself: `vbdkit serve --json`, the control socket, `vbdkit info`. Plain data, stable names. */
import type { AttachmentInformation } from "../index.ts";
import type { BlockStoreInfo } from "../store/block-store.ts";

export interface ServerInfo {
  readonly version: string;
  readonly pid: number;
  /** The server's folder, with its sockets. */
  readonly directory: string;
  readonly xenstoreSocket: string;
  /** NBD URI of the first disk; where there is none, of the first that comes. */
  readonly uri: string;
  readonly uptimeSeconds: number;
  /** The guests. */
  readonly domains: readonly { readonly domid: number; readonly name: string }[];
  readonly disks: readonly ServedDiskInfo[];
}

export interface ServedDiskInfo {
  /** As typed. */
  readonly disk: string;
  /** The guest's name. */
  readonly domain: string;
  readonly vdev: string;
  /** NBD export name. */
  readonly export: string;
  readonly uri: string;
  /** What a reader of the NBD export meets: the frontend. */
  readonly store: BlockStoreInfo;
  /** What was negotiated, and the counters of ring and grants. */
  readonly attachment: AttachmentInformation;
}
