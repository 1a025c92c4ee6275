/**
 * A domain with frontends, and its life as a toolstack sees it: running, suspended, resumed, shut down, crashed, ended
 * (libxl_domain.c; the guest's half is drivers/xen/manage.c of Linux).
 *
 * Invariants: one change runs at a time; a guest that does not run sends nothing and hears of nothing; after `destroy`
 * nothing of it is left, whatever state it was in.
 */
import { Turns } from "../util/turns.ts";
import { type Domain, XenError, type XenStore } from "../xen/domain.ts";
import type { DomainOptions, EmbeddedMachine, ShutdownReason } from "../xen/embedded/index.ts";
import type { AttachedDisk } from "./attached-disk.ts";

/** "suspend", "poweroff", "reboot" and "crash" are reasons why it does not run (sched.h). */
export type GuestState = "running" | ShutdownReason | "dead";

export interface GuestParts {
  readonly name: string;
  readonly options: DomainOptions;
  readonly embedded: EmbeddedMachine;
  /** The xenstore as domain 0 has it. */
  readonly toolstack: XenStore;
  readonly onended: () => void;
}

export class Guest implements AsyncDisposable {
  readonly domain: Domain;
  readonly name: string;
  readonly #parts: GuestParts;
  readonly #turns = new Turns();
  /** The disks that are attached to it now. */
  readonly disks: Set<AttachedDisk> = new Set();
  #state: GuestState = "running";

  constructor(domain: Domain, parts: GuestParts) {
    this.domain = domain;
    this.name = parts.name;
    this.#parts = parts;
  }

  get domid(): number {
    return this.domain.id;
  }

  /** Whether other processes can reach its memory. */
  get shared(): boolean {
    return this.#parts.options.shared === true;
  }

  get state(): GuestState {
    return this.#state;
  }

  /** Stops the guest as it is: its disks send nothing, and what was answered is not looked at. Ports, grants and watches
   * stay. Rejects with XenError("EINVAL") where it does not run. */
  suspend(): Promise<void> {
    return this.#turns.run(() => this.#suspend());
  }

  /** Goes on after a suspension: `cancelled`, with the rings and grants that there are; otherwise as a restored domain does,
   * with new ones, on which what was in flight is sent again. Rejects with XenError("EINVAL") where it is not suspended, and
   * with the first disk's error where one does not come back. */
  resume(options: { readonly cancelled?: boolean } = {}): Promise<void> {
    return this.#turns.run(() => this.#resume(options));
  }

  /** Detaches the disks in good order, then stops for good. `destroy` ends the domain. */
  shutdown(reason: "poweroff" | "reboot"): Promise<void> {
    return this.#turns.run(async () => {
      this.#assert("running");
      await this.#detachAll();
      this.#stop(reason);
    });
  }

  /** Stops at once, from whatever it was doing: requests of its disks end with EIO. `destroy` ends the domain. */
  crash(): Promise<void> {
    return this.#turns.run(async () => {
      if (this.#state === "dead") throw new XenError("EINVAL", `${this.name} is dead`);
      this.#stop("crash");
      await this.#abandon(new XenError("EIO", `${this.name} crashed`));
    });
  }

  /** Ends the domain, and closes the backends of its disks. Requests end with EIO. Idempotent. */
  destroy(): Promise<void> {
    return this.#turns.run(() => this.#destroy(new XenError("EIO", `${this.name} was destroyed`)));
  }

  async #suspend(): Promise<void> {
    this.#assert("running");
    for (const disk of this.disks) await disk.suspend();
    this.#stop("suspend");
  }

  async #resume(options: { readonly cancelled?: boolean }): Promise<void> {
    this.#assert("suspend");
    this.#parts.embedded.resumeDomain(this.domid);
    this.#state = "running";
    const resumed = await Promise.allSettled([...this.disks].map((disk) => disk.resume(options)));
    const failed = resumed.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  async #destroy(error: XenError): Promise<void> {
    if (this.#state === "dead") return;
    await this.#abandon(error);
    this.#state = "dead";
    try {
      await this.#parts.embedded.destroyDomain(this.domid);
      await this.#detachAll();
    } finally {
      this.#parts.onended();
    }
  }

  #stop(reason: ShutdownReason): void {
    this.#parts.embedded.shutdownDomain(this.domid, reason);
    this.#state = reason;
  }

  #assert(state: GuestState): void {
    if (this.#state === state) return;
    const is = this.#state === "suspend" ? "suspended" : this.#state;
    throw new XenError(
      "EINVAL",
      `${this.name} is not ${state === "suspend" ? "suspended" : state}, but ${is}`,
    );
  }

  async #abandon(error: XenError): Promise<void> {
    await Promise.all([...this.disks].map(({ frontend }) => frontend.abandon(error)));
  }

  async #detachAll(): Promise<void> {
    await Promise.all([...this.disks].map((disk) => disk[Symbol.asyncDispose]()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }
}
