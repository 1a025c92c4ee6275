/** What a worker or a child process is given so that it can become a domain of the machine. */
import type { MessagePort } from "node:worker_threads";

/** Where a domain is found by a thread of the machine's process. */
export type DomainRecord =
  | {
      readonly domid: number;
      /** Over a SharedArrayBuffer. */
      readonly memory: Uint8Array;
      /** The eventfd that wakes it; undefined where it waits on its upcall word. */
      readonly bell: number | undefined;
    }
  | {
      readonly domid: number;
      /** The machine's folder, where it is a shared domain. */
      readonly directory: string;
    };

/** A domain came, or ended. */
export type Announcement = { readonly came: DomainRecord } | { readonly ended: number };

export interface WorkerTicket {
  readonly where: "worker";
  readonly self: DomainRecord;
  readonly others: readonly DomainRecord[];
  readonly announcements: MessagePort;
  readonly xenstore: MessagePort;
  /** For `new Worker(url, { workerData: ticket, transferList })` or postMessage. */
  readonly transferList: MessagePort[];
}

/** Survives JSON. */
export interface ProcessTicket {
  readonly where: "process";
  readonly domid: number;
  readonly directory: string;
  readonly transferList: readonly [];
}

export type DomainTicket = WorkerTicket | ProcessTicket;
