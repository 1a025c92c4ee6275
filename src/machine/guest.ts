/**
 * A domain with frontends, and its life as a toolstack sees it: running, suspended, resumed, shut down, crashed, ended
 * (libxl_domain.c; the guest's half is drivers/xen/manage.c of Linux).
 *
 * Invariants: one change runs at a time; a guest that does not run sends nothing and hears of nothing; after `destroy`
 * nothing of it is left, whatever state it was in.
 */
import type { Duplex } from "node:stream";
import { Turns } from "../util/turns.ts";
import { type OwnPages, XenError, type XenStore } from "../xen/domain.ts";
import type {
  DomainOptions,
  EmbeddedDomain,
  EmbeddedMachine,
  ShutdownReason,
} from "../xen/embedded/index.ts";
import { GTF_readonly } from "../xen/embedded/layout.ts";
import type { AttachedDisk } from "./attached-disk.ts";
import { guarded, readAnswer, readerOf, sinkTo } from "./migrate.ts";
import { type Sink, writeGuest } from "./save.ts";
import { writeWhole } from "./save-file.ts";
import { type GuestRecord, RecordWriter, type RunRecord } from "./save-format.ts";

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
  readonly domain: EmbeddedDomain;
  readonly name: string;
  readonly #parts: GuestParts;
  readonly #turns = new Turns();
  /** The disks that are attached to it now. */
  readonly disks: Set<AttachedDisk> = new Set();
  readonly #pages: OwnPages[] = [];
  readonly #ended = new AbortController();
  #state: GuestState = "running";

  constructor(domain: EmbeddedDomain, parts: GuestParts) {
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

  /** Aborted when it does not run any more and will not again. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /** What it was made as. */
  get shape(): Omit<GuestRecord, "type" | "domid" | "name"> {
    const { pageCount, grantEntries, portCount, maptrackEntries } = this.domain.memory.shape;
    return {
      memoryPages: pageCount,
      grantEntries,
      portCount,
      maptrackEntries,
      shared: this.shared,
      ring: this.#parts.options.xenstore === "ring",
    };
  }

  /** Pages of the guest's own, in the order they were allocated: saved and restored with it, and so are their grants, under
   * the same references. */
  get pages(): readonly OwnPages[] {
    return this.#pages;
  }

  /** Zeroed pages side by side; undefined where the domain has no such run left. They are given back by `free`. */
  allocate(pageCount: number): OwnPages | undefined {
    const pages = this.domain.grants.allocate(pageCount);
    if (pages !== undefined) this.#pages.push(pages);
    return pages;
  }

  free(pages: OwnPages): void {
    const index = this.#pages.indexOf(pages);
    if (index >= 0) this.#pages.splice(index, 1);
    pages[Symbol.dispose]();
  }

  /** What an entry of the grant table says. */
  grantOf(reference: number): RunRecord["grants"][number] {
    const word = Atomics.load(this.domain.memory.grantWords, reference * 2);
    return { reference, peer: word >>> 16, readOnly: (word & GTF_readonly) !== 0 };
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

  /** Writes the guest to a file (docs/save-format.md), whole or not at all, and destroys it; a `checkpoint` leaves it as it
   * was, running or suspended. When it resolves, its disks may be opened by whoever restores it. Rejects with what stands
   * against it, with XenError("E2BIG") where it has too much, and with EINVAL where it is neither running nor suspended;
   * the guest is as it was then. `signal` gives up, as long as not all is written. */
  save(
    path: string,
    options: { readonly checkpoint?: boolean; readonly signal?: AbortSignal } = {},
  ): Promise<void> {
    const { checkpoint, signal } = options;
    return this.#turns.run(async () => {
      signal?.throwIfAborted();
      const ran = await this.#standStill();
      try {
        await writeWhole(path, async (sink) => {
          const writer = new RecordWriter();
          const unlessAborted: Sink = async (bytes) => {
            signal?.throwIfAborted();
            await sink(bytes);
          };
          await writeGuest(this, this.#parts.toolstack, writer, unlessAborted);
          await unlessAborted(writer.record({ type: "end" }));
        });
      } catch (error) {
        if (ran) await this.#goOn();
        throw error;
      }
      if (checkpoint !== true) {
        await this.#destroy(new XenError("ESHUTDOWN", `${this.name} was saved`));
      } else if (ran) await this.#resume({ cancelled: true });
    });
  }

  /** Sends the guest to a machine that receives it at the other end of the stream, which is this call's alone until it
   * settles, and destroys it here when it runs there. Where it does not come to run there, it runs on here, and the promise
   * rejects with the reason. Only where the connection is lost after all was sent it is not known who has the guest: it
   * stays suspended, the promise rejects with XenError("ECONNRESET"), and whoever knows calls `resume` or `destroy`.
   * Rejects with EOPNOTSUPP where a disk was given opened. */
  migrate(stream: Duplex): Promise<void> {
    return this.#turns.run(() => this.#migrate(stream));
  }

  async #migrate(stream: Duplex): Promise<void> {
    for (const disk of this.disks) disk.assertReopens();
    const ran = await this.#standStill();
    using _guard = guarded(stream);
    const writer = new RecordWriter();
    const sink = sinkTo(stream);
    let sent = false;
    let refusal: string | undefined;
    try {
      await writeGuest(this, this.#parts.toolstack, writer, sink);
      for (const disk of this.disks) await disk.closeBackend();
      sent = true;
      await sink(writer.record({ type: "end" }));
      refusal = await readAnswer(readerOf(stream));
    } catch (cause) {
      if (!sent) {
        if (ran) await this.#goOn();
        throw cause;
      }
      const message = `${this.name} was sent, and no answer came: if it runs there, destroy it here; if not, resume it`;
      throw new XenError("ECONNRESET", message, { cause });
    }
    if (refusal === undefined) {
      await this.#destroy(new XenError("ESHUTDOWN", `${this.name} has moved`));
      return;
    }
    if (ran) await this.#goOn();
    throw new XenError("ECONNREFUSED", `${this.name} was not taken: ${refusal}`);
  }

  /** The guest stays here after all. Why is the caller's to say: a disk that does not come back says so by its state. */
  async #goOn(): Promise<void> {
    await this.#resume({ cancelled: true }).catch(() => {});
  }

  /** Whether it ran before. */
  async #standStill(): Promise<boolean> {
    if (this.#state === "running") {
      await this.#suspend();
      return true;
    }
    this.#assert("suspend");
    return false;
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
    this.#ended.abort(error);
    await this.#abandon(error);
    this.#state = "dead";
    for (const pages of this.#pages.splice(0)) pages[Symbol.dispose]();
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
    if (reason === "suspend") return;
    this.#ended.abort(new XenError("ESHUTDOWN", `${this.name} does not run: ${reason}`));
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
