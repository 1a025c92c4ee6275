/**
 * The disks of a running machine as its commands see them: attached to a guest by name, each an NBD export, detached when
 * nobody uses it any more.
 *
 * Invariant: a disk is in the table from the moment that both its ends are connected until it is gone, also while it
 * waits for its last client, and when its backend has died.
 */
import type { AttachedDisk, Guest, Machine, NbdExport, NbdServer } from "../index.ts";
import type { StoreSpec } from "../store/block-store.ts";
import { formatSize } from "../util/size.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import type { AttachRequest } from "./attach-request.ts";
import { UsageError } from "./errors.ts";
import { findByName } from "./find-by-name.ts";

export interface ServedDisk {
  readonly guest: Guest;
  readonly text: string;
  readonly disk: AttachedDisk;
  readonly export: NbdExport;
  readonly link: string;
  /** Why it serves nobody any more: its backend died, or broke the protocol. */
  error: string | undefined;
  /** Resolves when it is detached; set once somebody asked for that. */
  gone: Promise<void> | undefined;
}

export interface DiskName {
  /** A guest by name or domid. */
  readonly domain: string;
  readonly vdev: string;
}

export class DiskTable implements AsyncDisposable {
  readonly #machine: Machine;
  readonly #nbd: NbdServer;
  readonly #disks = new Set<ServedDisk>();
  readonly #attaching = new Set<Promise<unknown>>();
  readonly #closed = new AbortController();

  constructor(machine: Machine, nbd: NbdServer) {
    this.#machine = machine;
    this.#nbd = nbd;
  }

  [Symbol.iterator](): Iterator<ServedDisk> {
    return this.#disks.values();
  }

  clients(entry: ServedDisk): number {
    return this.#nbd.clients(entry.export);
  }

  /** Rejects with an Error that names the nearest, and those there are. */
  guest(name: string): Guest {
    const guests = [...this.#machine.guests.values()];
    const byDomid = guests.find(({ domid }) => name === String(domid));
    if (byDomid !== undefined) return byDomid;
    if (name === "0" || name === "Domain-0") {
      throw new Error("Domain-0 has the backends; name a guest");
    }
    return findByName("there is no domain", name, guests, (guest) => guest.name);
  }

  /** As `guest`, of one that can be asked for something. Throws an Error that says what would help. */
  runningGuest(name: string): Guest {
    const guest = this.guest(name);
    if (guest.state === "suspend") {
      throw new Error(`${guest.name} is suspended; vbdkit resume ${guest.name} lets it run on`);
    }
    if (guest.state !== "running") {
      throw new Error(`${guest.name} does not run (${guest.state}); vbdkit destroy ends it`);
    }
    return guest;
  }

  /** Throws as `guest`, and XenError("EINVAL") for a vdev that is none. */
  find({ domain, vdev }: DiskName): ServedDisk {
    const guest = this.guest(domain);
    const disks = this.disksOf(guest);
    if (disks.length === 0) throw new Error(`${guest.name} has no disks`);
    const number = tryVdev(vdev);
    const named = number === undefined ? vdev : vdevName(number);
    return findByName(`${guest.name} has no disk`, named, disks, (entry) => entry.disk.vdev);
  }

  /** Resolves when the guest has the disk and clients can use it. `signal` gives up. */
  async attach(request: AttachRequest, signal: AbortSignal): Promise<ServedDisk> {
    const attached = this.#attach(request, AbortSignal.any([signal, this.#closed.signal]));
    this.#attaching.add(attached);
    try {
      return await attached;
    } finally {
      this.#attaching.delete(attached);
    }
  }

  async #attach(request: AttachRequest, signal: AbortSignal): Promise<ServedDisk> {
    const { domain, vdev, spec, text } = request;
    const named = domain === null ? undefined : this.runningGuest(domain);
    const number = parseVdev(vdev);
    for (const { guest, disk, gone } of this.#disks) {
      if (guest !== named || disk.vdev !== vdevName(number)) continue;
      throw new Error(
        gone === undefined
          ? `${guest.name} has ${disk.vdev} already; choose another vdev`
          : `${disk.vdev} of ${guest.name} is being detached: it goes with its last NBD client, or now with vbdkit detach --force`,
      );
    }
    await using undo = new AsyncDisposableStack();
    const { link, engine, backend, frontend, readOnly, cdrom, kind } = request;
    const disk = undo.use(
      await this.#machine.attach(spec, {
        ...(named === undefined ? {} : { guest: named }),
        vdev,
        link,
        engine,
        backend,
        frontend,
        readOnly,
        cdrom,
        removable: cdrom,
        kind,
        signal,
      }),
    );
    signal.throwIfAborted();
    const guest = this.#machine.guests.get(disk.domid)!;
    const name = request.exportName ?? `${guest.name}/${disk.vdev}`;
    const entry = this.#serve(guest, disk, text, name);
    undo.move();
    return entry;
  }

  /** Throws StoreError("EINVAL") where the export's name is taken. */
  #serve(guest: Guest, disk: AttachedDisk, text: string, exportName: string): ServedDisk {
    const entry: ServedDisk = {
      guest,
      text,
      disk,
      link: disk.options.link ?? "thread",
      export: { name: exportName, store: disk.store, description: text },
      error: undefined,
      gone: undefined,
    };
    this.#nbd.add(entry.export);
    disk.store.subscribe({
      failed: (error) => {
        entry.error = error.message;
      },
    });
    this.#disks.add(entry);
    return entry;
  }

  /** Serves the disks of a guest that came with them, as a restored one does. */
  adopt(guest: Guest): readonly ServedDisk[] {
    return [...guest.disks].map((disk) => {
      const text = disk.spec === undefined ? disk.vdev : diskText(disk.spec);
      return this.#serve(guest, disk, text, `${guest.name}/${disk.vdev}`);
    });
  }

  /** Cuts off the clients of a guest that is gone, and of its disks. */
  async forget(guest: Guest): Promise<void> {
    for (const entry of this.disksOf(guest)) {
      this.#disks.delete(entry);
      await this.#nbd.remove(entry.export, { force: true });
    }
  }

  disksOf(guest: Guest): readonly ServedDisk[] {
    return [...this.#disks].filter((entry) => entry.guest === guest);
  }

  /** Resolves when the disk is gone from its guest: once its last client has left, or soon where `force` cuts them off.
   * `note` is told of clients that are waited for, and of an image that is not closed yet. A guest that is suspended could
   * not let go of it: throws as `runningGuest`. */
  async detach(name: DiskName, force: boolean, note: (message: string) => void): Promise<void> {
    const entry = this.find(name);
    const { disk, guest } = entry;
    const what = `${disk.vdev} of ${guest.name}`;
    if (force) {
      // It does not wait for what was asked for before.
      await this.#nbd.remove(entry.export, { force });
      this.#disks.delete(entry);
      if (await disk.detachByForce()) return;
      note(`${what} is gone, but its disk answers nothing: it stays open until it does`);
      return;
    }
    if (guest.state === "suspend") this.runningGuest(guest.name);
    const clients = this.clients(entry);
    if (clients > 0) {
      const who = clients === 1 ? "an NBD client uses" : `${clients} NBD clients use`;
      note(`${who} ${what}: it goes with the last of them, or now with --force`);
    }
    entry.gone ??= this.#remove(entry);
    await entry.gone;
  }

  async #remove(entry: ServedDisk): Promise<void> {
    try {
      await entry.disk.announceDetach();
      await this.#nbd.remove(entry.export);
      await entry.disk[Symbol.asyncDispose]();
    } finally {
      this.#disks.delete(entry);
    }
  }

  /** `size` in bytes, added to what there is where `relative`. Smaller ones lose data, and need `shrink`. */
  async resize(
    name: DiskName,
    { size, relative, shrink }: { size: number; relative: boolean; shrink: boolean },
  ): Promise<ServedDisk> {
    const entry = this.find(name);
    const { disk } = entry;
    const guest = this.runningGuest(entry.guest.name);
    // Its backend is at Closing, and would answer the new size to nobody.
    if (entry.gone !== undefined) {
      throw new Error(`${disk.vdev} of ${guest.name} is being detached: its size stays`);
    }
    const wanted = relative ? disk.size + size : size;
    const { minimum } = disk.info.block;
    if (!Number.isSafeInteger(wanted) || wanted <= 0 || wanted % minimum !== 0) {
      throw new UsageError(`${wanted} bytes are no size: write a multiple of ${minimum} above 0`);
    }
    if (wanted < disk.size && !shrink) {
      const sizes = `${disk.vdev} of ${guest.name} has ${formatSize(disk.size)}`;
      throw new UsageError(
        `${sizes}: what is beyond ${formatSize(wanted)} would be lost; say --shrink`,
      );
    }
    await disk.resize(wanted);
    return entry;
  }

  /** Gives up what is being attached, and offers no more what a guest that does not run would not answer. The disks are the
   * machine's to detach. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort(new Error("the machine ends"));
    await Promise.allSettled(this.#attaching);
    for (const guest of this.#machine.guests.values()) {
      if (guest.state !== "running") await this.forget(guest);
    }
  }
}

/** The disk as a person would type it. */
function diskText({ driver, parameters, filters }: StoreSpec): string {
  const its = [parameters, ...filters.map((filter) => filter.parameters)];
  const pairs = its.flatMap((some) =>
    Object.entries(some).map(([name, value]) => `${name}=${value}`),
  );
  return [...filters.flatMap(({ name }) => ["--filter", name]), driver, ...pairs].join(" ");
}

function tryVdev(text: string): number | undefined {
  try {
    return parseVdev(text);
  } catch {
    return undefined;
  }
}
