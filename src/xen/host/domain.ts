/**
 * The domain that this process runs in, on Xen: dom0, a driver domain, or any guest. The grant devices and event channels
 * are the kernel's (devices.ts), the xenstore is the system's.
 */
import type { Reactor } from "../../io/reactor.ts";
import { threadReactor } from "../../io/reactor.ts";
import { DOMID_FIRST_RESERVED, type Domain, XenError, type XenStore } from "../domain.ts";
import { type Devices, systemDevices } from "./devices.ts";
import { HostEventChannels } from "./event-channels.ts";
import { HostGrantTable } from "./grant-table.ts";
import { openSystemStore } from "./system-store.ts";

export interface HostOptions {
  /** The thread's own if absent. */
  readonly reactor?: Reactor;
  /** Opens what a backend needs at once, for a process that gives up its rights then. */
  readonly backend?: boolean;
  /** Of the xenstore; where the system's is found if absent: XENSTORED_PATH, /run/xenstored/socket, /dev/xen/xenbus. */
  readonly xenstoreSocket?: string;
}

/** Opens the domain that this process runs in. Rejects with XenError (ENOENT, EACCES ...) where there is no Xen, or we may
 * not ask it. */
export async function openHost(options: HostOptions = {}): Promise<Domain> {
  const devices = systemDevices(options.backend === true ? ["gntdev", "evtchn"] : []);
  await using undo = new AsyncDisposableStack();
  const store = undo.use(await openSystemStore(devices, options.xenstoreSocket));
  const domid = (await store.read("domid"))?.trim() ?? "";
  if (!/^\d{1,5}$/.test(domid) || Number(domid) >= DOMID_FIRST_RESERVED) {
    throw new XenError("ENOENT", "the xenstore does not say which domain this is (node `domid`)");
  }
  undo.move();
  return new HostDomain(Number(domid), store, options.reactor ?? threadReactor(), devices);
}

/** The xenstore of the system alone, for whoever plays the toolstack. Rejects with XenError. */
export async function openHostStore(): Promise<XenStore> {
  return await openSystemStore(systemDevices());
}

export class HostDomain implements Domain {
  readonly id: number;
  readonly store: XenStore;
  readonly reactor: Reactor;
  readonly grants: HostGrantTable;
  readonly events: HostEventChannels;
  readonly #ends = new AsyncDisposableStack();

  /** Takes over `store`. */
  constructor(id: number, store: XenStore, reactor: Reactor, devices: Devices) {
    this.id = id;
    this.store = this.#ends.use(store);
    this.reactor = reactor;
    this.grants = this.#ends.use(new HostGrantTable(devices));
    this.events = this.#ends.use(new HostEventChannels(devices, reactor));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}
