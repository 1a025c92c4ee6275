/**
 * What is asked of a running machine's guests as a whole: made, suspended, resumed, shut down, destroyed, saved, restored
 * and moved (Guest and Machine of the library do it; xl has the words).
 *
 * Invariant: a guest that is gone has no exports and no clients; one that stays, because something failed, has them all.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Guest, Machine } from "../index.ts";
import { ffi } from "../io/ffi.ts";
import type { StoreSpec } from "../store/block-store.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import { readStoreSpec } from "./attach-request.ts";
import type { Answers, Asker, RequestFields } from "./control.ts";
import type { ListedDomain } from "./disk-list.ts";
import type { DiskTable } from "./disk-table.ts";
import { UsageError } from "./errors.ts";
import { checkGuestName } from "./guest-name.ts";

/** A guest that is gone from here. */
export interface GoneDomain {
  readonly name: string;
  readonly domid: number;
}

/** A guest that came here. */
export interface ArrivedDomain extends ListedDomain {
  /** Requests that were in flight when it stood still, and have been done once more. */
  readonly inherited: number;
}

export interface GuestKeeper {
  readonly machine: Machine;
  readonly table: DiskTable;
  listedDomain(guest: Guest): Promise<ListedDomain>;
}

/** Drivers whose contents are in the memory of the machine. */
const FORGETFUL = "memory";

export function guestAnswers(keeper: GuestKeeper): Answers {
  const { machine, table, listedDomain } = keeper;
  const guestOf = (fields: RequestFields): Guest => table.guest(textOf("domain", fields.domain));
  const gone = async (guest: Guest): Promise<GoneDomain> => {
    await table.forget(guest);
    return { name: guest.name, domid: guest.domid };
  };
  return {
    create: async ({ name }) => {
      const wanted = checkGuestName(textOf("name", name));
      return await listedDomain(await createGuest(machine, wanted));
    },
    suspend: async (fields) => {
      const guest = table.runningGuest(textOf("domain", fields.domain));
      await guest.suspend();
      return await listedDomain(guest);
    },
    resume: async (fields) => {
      const guest = guestOf(fields);
      if (guest.state === "running") throw new Error(`${guest.name} runs already`);
      // Its disks go on with the rings that there are, where they still are.
      await guest.resume({ cancelled: true });
      return await listedDomain(guest);
    },
    shutdown: async (fields, { note }) => {
      const guest = table.runningGuest(textOf("domain", fields.domain));
      await Promise.all(
        table
          .disksOf(guest)
          .map(({ disk: { vdev } }) => table.detach({ domain: guest.name, vdev }, false, note)),
      );
      await guest.shutdown("poweroff");
      // on_poweroff="destroy", xl's default.
      await guest.destroy();
      return await gone(guest);
    },
    destroy: async (fields) => {
      const guest = guestOf(fields);
      await guest.destroy();
      return await gone(guest);
    },
    save: async (fields, { note, signal }) => {
      const guest = guestOf(fields);
      const { checkpoint, pause } = fields;
      for (const { disk, text } of table.disksOf(guest)) {
        if (disk.spec?.driver !== FORGETFUL) continue;
        note(`${disk.vdev} (${text}) is empty when it is restored: its contents are not saved`);
      }
      // Left paused, it is there with all that belongs to it.
      const paused = pause === true && guest.state === "running";
      if (paused) await guest.suspend();
      const stays = checkpoint === true || pause === true;
      try {
        await guest.save(textOf("file", fields.file), { checkpoint: stays, signal });
      } catch (error) {
        if (paused) await guest.resume({ cancelled: true }).catch(() => {});
        throw error;
      }
      return stays ? await listedDomain(guest) : await gone(guest);
    },
    restore: async (fields, asker) => {
      const options = restoreOptions(fields, asker);
      return await arrive(
        await machine.restore(textOf("file", fields.file), options),
        keeper,
        asker,
      );
    },
    migrate: async (fields, { signal }) => {
      const guest = guestOf(fields);
      await using stream = await openStream(fields, signal);
      await guest.migrate(stream);
      return await gone(guest);
    },
    receive: async (fields, asker) => {
      await using stream = await openStream(fields, asker.signal);
      try {
        const guest = await machine.receive(stream, restoreOptions(fields, asker));
        return await arrive(guest, keeper, asker);
      } catch (error) {
        // Whoever still sends would not hear why not from a socket that is closed.
        if (!stream.closed) await once(stream.resume(), "close").catch(() => {});
        throw error;
      }
    },
  };
}

/** Where it can be, a guest is within reach of backends in other processes. */
export function createGuest(machine: Machine, name: string): Promise<Guest> {
  return machine.createGuest({ name, shared: ffi() !== undefined });
}

/** Serves its disks, and waits for what was in flight. */
async function arrive(
  guest: Guest,
  { table, listedDomain }: GuestKeeper,
  { note }: Asker,
): Promise<ArrivedDomain> {
  const requests = table
    .adopt(guest)
    .flatMap(({ disk }) => disk.inherited.map(({ outcome }) => ({ vdev: disk.vdev, outcome })));
  const outcomes = await Promise.allSettled(requests.map(({ outcome }) => outcome));
  for (const [index, outcome] of outcomes.entries()) {
    if (outcome.status === "fulfilled") continue;
    note(`${requests[index]!.vdev}: what was in flight failed: ${String(outcome.reason)}`);
  }
  return { ...(await listedDomain(guest)), inherited: requests.length };
}

function restoreOptions(
  { name, disks }: RequestFields,
  { signal }: Asker,
): NonNullable<Parameters<Machine["restore"]>[1]> {
  const specs = new Map<string, StoreSpec>();
  for (const [vdev, spec] of Object.entries((disks ?? {}) as RequestFields)) {
    specs.set(vdevName(parseVdev(vdev)), readStoreSpec(spec));
  }
  return {
    signal,
    ...(name === undefined ? {} : { name: checkGuestName(textOf("name", name)) }),
    disk: ({ vdev, spec }) => {
      const disk = specs.get(vdev) ?? spec;
      if (disk === null) throw new UsageError(`${vdev} had been given opened: name it with --disk`);
      return disk;
    },
  };
}

/** To whoever carries the bytes from one machine to the other. It is destroyed with the asker, and at the end. */
async function openStream(
  { socket }: RequestFields,
  signal: AbortSignal,
): Promise<Socket & AsyncDisposable> {
  const stream = connect(textOf("socket", socket));
  const stop = () => stream.destroy(signal.reason as Error);
  signal.addEventListener("abort", stop);
  stream.once("close", () => signal.removeEventListener("abort", stop));
  await once(stream, "connect");
  return stream;
}

export function textOf(name: string, value: unknown): string {
  if (typeof value === "string") return value;
  throw new UsageError(`${name}: write a text`);
}
