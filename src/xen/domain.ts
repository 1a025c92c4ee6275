/**
 * The hypervisor port: what a driver sees of the machine it runs on. Two worlds stand behind it, `embedded` (domains
 * share memory without Xen) and `host` (gntdev, evtchn, xenbus); nobody above can tell which.
 *
 * Everything used per request (maps, grants, events) works on reused arrays and answers with statuses of
 * grant_table.h; only the control plane returns promises.
 */
import type { MemoryRegion } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";

/** Bytes of a page, of a grant and of a ring page, on every architecture (XEN_PAGE_SIZE). */
export const PAGE_SIZE = 4096;

/** A domain as its own drivers see it. Disposal ends its ports, mappings, grants and watches, in that order. */
export interface Domain extends AsyncDisposable {
  readonly id: number;
  readonly grants: GrantTable;
  readonly events: EventChannels;
  readonly store: XenStore;
  /** The reactor of the thread this domain lives on: events are delivered from its kicks. */
  readonly reactor: Reactor;
}

/** The domain that asks, whatever its number (xen.h). It is a name for calls; grant entries hold numbers. */
export const DOMID_SELF = 0x7ff0;

/** Numbers from here on name no domain (xen.h); DOMID_SELF is the first of them. */
export const DOMID_FIRST_RESERVED = 0x7ff0;

/** Statuses of grant_table.h (GNTST_*), as every operation answers them. */
export const GrantStatus = {
  okay: 0,
  generalError: -1,
  badDomain: -2,
  badGrantReference: -3,
  badHandle: -4,
  badVirtualAddress: -5,
  badDeviceAddress: -6,
  noDeviceSpace: -7,
  permissionDenied: -8,
  badPage: -9,
  badCopyArgument: -10,
  addressTooBig: -11,
  tryAgain: -12,
  noSpace: -13,
} as const;
export type GrantStatus = (typeof GrantStatus)[keyof typeof GrantStatus];

/** Pages of our own memory that a peer may be granted. They are zeroed when allocated and, with disposal, go back
 * to the domain unless a peer still maps one: such a page is quarantined, never used again. */
export interface OwnPages extends Disposable {
  /** Page i is the PAGE_SIZE bytes of `region` at `start + i * PAGE_SIZE`. */
  readonly region: MemoryRegion;
  /** Bytes. */
  readonly start: number;
  readonly count: number;
  /** Grant reference of page i, or 0 while it is not granted (references below 8 are reserved). */
  readonly references: Uint32Array;
  /** Grants page `index`; false when no grant entry is free. Where a reference is `wanted`, as a restored domain does whose
   * peers know it, false too when that one cannot be had. */
  grant(index: number, peer: number, readOnly: boolean, wanted?: number): boolean;
  /** gnttab_end_foreign_access: false while the peer maps the page; the grant then stays. */
  endAccess(index: number): boolean;
}

/** A batch of grants to map, reused: the caller fills the count, the references and the accesses, `map` the rest. */
export class GrantMapBatch {
  count = 0;
  /** Whoever maps them gives all of a batch back at once. A world in which pages that are mapped together can only be
   * unmapped together then maps them so, which is cheaper; otherwise each alone. */
  together = false;
  readonly references: Uint32Array;
  /** 0 or 1. */
  readonly readOnly: Uint8Array;
  /** GrantStatus of each; the fields below are set where it is okay. */
  readonly statuses: Int8Array;
  readonly handles: Uint32Array;
  readonly regions: (MemoryRegion | undefined)[];
  /** Byte in the region. */
  readonly starts: Float64Array;

  constructor(capacity: number) {
    this.references = new Uint32Array(capacity);
    this.readOnly = new Uint8Array(capacity);
    this.statuses = new Int8Array(capacity);
    this.handles = new Uint32Array(capacity);
    this.regions = new Array<MemoryRegion | undefined>(capacity).fill(undefined);
    this.starts = new Float64Array(capacity);
  }
}

/** Several pages of a peer mapped side by side, as a ring needs them. Disposal unmaps. */
export interface ContiguousMapping extends Disposable {
  readonly bytes: Uint8Array;
}

/** One end of a copy: bytes of a page that `peer` granted us (which may be DOMID_SELF), from `offset` in that page; or
 * memory of our own. */
export type GrantCopyEnd =
  | { readonly peer: number; readonly reference: number; readonly offset: number }
  | Uint8Array;

/** One GNTTABOP_copy. Each end is a grant or memory of our own; a page of ours is its bytes. */
export interface GrantCopy {
  readonly source: GrantCopyEnd;
  readonly destination: GrantCopyEnd;
  /** Bytes; of a granted page never beyond its end. Of nothing it need not look at the grants. */
  readonly length: number;
  status: GrantStatus;
}

/** Parts of pages that one peer granted, and images of those pages in our memory: byte n of a page is byte n of its image.
 * Reused; the caller fills all but the statuses. */
export interface GrantCopyBatch {
  readonly count: number;
  readonly references: Uint32Array;
  /** First byte of the part; the part ends within the page. */
  readonly offsets: Uint16Array;
  /** Bytes of the part. */
  readonly lengths: Uint16Array;
  readonly regions: readonly (MemoryRegion | undefined)[];
  /** Byte in the region where the image begins. */
  readonly starts: Float64Array;
  /** GrantStatus of each. */
  readonly statuses: Int8Array;
}

export interface GrantTable {
  /** Whether single pages can be granted and ended per request; on a host, gntalloc's pages stay granted for life. */
  readonly grantsPages: boolean;
  /** Whether the pages of a request cost less here when they are copied than mapped and unmapped. */
  readonly prefersCopy: boolean;
  /** Pages that `allocate` could still give, though not side by side. */
  readonly freePages: number;
  /** Pages that could still be granted. */
  readonly freeEntries: number;
  /** Zeroed pages that lie side by side; undefined when the domain has no such run left. */
  allocate(pageCount: number): OwnPages | undefined;
  /** Maps `batch.count` pages of `peer`, each with its own status. */
  map(peer: number, batch: GrantMapBatch): void;
  /** Unmaps one page; a handle that is not ours answers badHandle. */
  unmap(handle: number): GrantStatus;
  mapContiguous(
    peer: number,
    references: readonly number[],
    readOnly: boolean,
  ): ContiguousMapping | Exclude<GrantStatus, 0>;
  copy(operations: readonly GrantCopy[]): void;
  /** Copies parts of pages of `peer` to (`toPeer`: from) their images, each with its own status. */
  copyPages(peer: number, batch: GrantCopyBatch, toPeer: boolean): void;
  /** Calls back once when `count` grant entries are free, as gnttab_request_free_callback. */
  whenFree(count: number, callback: () => void): Disposable;
  readonly counters: GrantCounters;
}

export interface GrantCounters {
  /** Entries of our own table that are granted now. */
  readonly granted: number;
  /** Pages of peers that we map now. */
  readonly mapped: number;
  /** Since the domain began. */
  readonly maps: number;
  readonly unmaps: number;
  readonly copies: number;
  /** Pages lost because a peer still mapped them when we wanted them back. */
  readonly quarantined: number;
}

/** A domain may be named DOMID_SELF everywhere. */
export interface EventChannels {
  /** EVTCHNOP_alloc_unbound: a port that `peer` may bind, the lowest that is free. Throws XenError("ENOSPC") when none
   * is, and ("EINVAL") where `peer` is no domain's number. */
  allocateUnbound(peer: number): EventChannel;
  /** EVTCHNOP_bind_interdomain. Throws XenError("ESRCH") when there is no such domain, ("ENOSPC") when no port of ours
   * is free, and ("EINVAL") when the port is not offered to us. */
  bindInterdomain(peer: number, port: number): EventChannel;
  readonly counters: {
    /** Notifications sent. */ readonly sent: number;
    /** Events delivered to handlers. */ readonly delivered: number;
  };
}

export interface EventChannel extends Disposable {
  readonly port: number;
  /** The peer's end is served by this thread, and so does nothing while we work. */
  readonly sharesThread: boolean;
  /** Sets the peer's pending bit; several before its delivery are one. Does nothing once the peer is gone. */
  notify(): void;
  /** Called from the reactor, with the pending bit already cleared. */
  onevent: (() => void) | undefined;
  /** Masked events stay pending and are delivered by unmask. */
  mask(): void;
  unmask(): void;
}

/** What went wrong, by the names of the xenstore protocol and of errno.h. */
export class XenError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "XenError";
    this.code = code;
  }
}

/** Reads and writes of a xenstore, or of one transaction in it. Rejects with XenError (EACCES, EINVAL, EAGAIN ...). */
export interface XenStoreOperations {
  /** undefined where there is no such node; EACCES rejects. Values are text; bytes that are not UTF-8 are kept as
   * latin-1 (`readBytes` gives them exactly). */
  read(path: string): Promise<string | undefined>;
  readBytes(path: string): Promise<Uint8Array | undefined>;
  /** Names of the children; undefined where there is no such node. */
  list(path: string): Promise<string[] | undefined>;
  /** Makes missing parents. */
  write(path: string, value: string | Uint8Array): Promise<void>;
  mkdir(path: string): Promise<void>;
  /** Removes a node and all below it; nothing happens where it is missing. */
  remove(path: string): Promise<void>;
  getPermissions(path: string): Promise<XenStorePermission[] | undefined>;
  setPermissions(path: string, permissions: readonly XenStorePermission[]): Promise<void>;
}

/** The first entry names the owner and what everyone else may do. */
export interface XenStorePermission {
  readonly domid: number;
  readonly access: "none" | "read" | "write" | "both";
}

export interface XenStore extends XenStoreOperations, AsyncDisposable {
  /** Runs the body in a transaction, again on EAGAIN (a bounded number of times); aborts when it throws. */
  transaction<T>(body: (operations: XenStoreOperations) => Promise<T>): Promise<T>;
  /** Calls back for the node and everything below it, once at once, with the path that changed. Resolves when the
   * watch is set. Calls for one path that were not delivered yet are coalesced. */
  watch(path: string, callback: (path: string) => void): Promise<AsyncDisposable>;
}
