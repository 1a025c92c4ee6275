/** What Xen's event_channel.c would say of the ports of some domains, in plain data. */
import { DOMID_SELF } from "../../src/xen/domain.ts";
import type { PortStatus } from "../../src/xen/embedded/index.ts";
import { isDomid } from "../../src/xen/embedded/layout.ts";

/** Port 0 included. */
export const PORTS = 6;

interface Port {
  status: PortStatus;
  pending: boolean;
  masked: boolean;
  /** Events that its handler has had. */
  heard: number;
}

type Table = Map<number, Port>;

const closed: PortStatus = { state: "closed" };

export class PortModel {
  readonly #tables = new Map<number, Table>();

  /** A domain comes, perhaps after one of the same number. */
  come(domid: number): void {
    this.#tables.set(domid, new Map());
  }

  /** Its ports end with it, and its peers' ports are unbound again. */
  die(domid: number): void {
    this.reset(domid);
    this.#tables.delete(domid);
  }

  ports(domid: number): number[] {
    return [...(this.#tables.get(domid)?.keys() ?? [])];
  }

  #port(domid: number, port: number): Port | undefined {
    return this.#tables.get(domid)?.get(port);
  }

  status(domid: number, port: number): PortStatus {
    return this.#port(domid, port)?.status ?? closed;
  }

  heard(domid: number, port: number): number {
    return this.#port(domid, port)!.heard;
  }

  /** The new port, or the code of the error. */
  allocate(domid: number, peer: number): number | string {
    const named = peer === DOMID_SELF ? domid : peer;
    if (!isDomid(named)) return "EINVAL";
    return this.#take(domid, { state: "unbound", domid: named });
  }

  #take(domid: number, status: PortStatus): number | string {
    const table = this.#tables.get(domid)!;
    for (let port = 1; port < PORTS; port++) {
      if (table.has(port)) continue;
      table.set(port, { status, pending: false, masked: false, heard: 0 });
      return port;
    }
    return "ENOSPC";
  }

  bind(domid: number, peer: number, port: number): number | string {
    const named = peer === DOMID_SELF ? domid : peer;
    if (!this.#tables.has(named)) return "ESRCH";
    if (!(port > 0 && port < PORTS && Number.isInteger(port))) return "EINVAL";
    const offered = this.#port(named, port);
    const status: PortStatus = { state: "interdomain", domid: named, port };
    const local = this.#take(domid, status);
    if (typeof local === "string") return local;
    if (offered?.status.state !== "unbound" || offered.status.domid !== domid) {
      this.#tables.get(domid)!.delete(local);
      return "EINVAL";
    }
    offered.status = { state: "interdomain", domid, port: local };
    this.#port(domid, local)!.pending = true;
    return local;
  }

  notify(domid: number, port: number): void {
    const status = this.status(domid, port);
    if (status.state === "interdomain") this.#port(status.domid, status.port)!.pending = true;
  }

  mask(domid: number, port: number, masked: boolean): void {
    this.#port(domid, port)!.masked = masked;
  }

  close(domid: number, port: number): void {
    const status = this.status(domid, port);
    this.#tables.get(domid)!.delete(port);
    if (status.state !== "interdomain") return;
    const other = this.#port(status.domid, status.port);
    if (other !== undefined) other.status = { state: "unbound", domid };
  }

  reset(domid: number): void {
    for (const port of this.ports(domid)) this.close(domid, port);
  }

  /** Everybody has looked at what is pending. */
  settle(): void {
    for (const table of this.#tables.values()) {
      for (const port of table.values()) {
        if (!port.pending || port.masked) continue;
        port.pending = false;
        port.heard++;
      }
    }
  }
}
