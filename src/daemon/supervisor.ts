/**
 * A process for each guest that has vbds of ours, begun and ended as their directories come and go, and begun again when
 * one dies: its successor goes on with the rings that are there.
 *
 * Invariants: at most one process serves a guest; one that dies over and over is given up, and said so; the supervisor
 * itself touches nothing of a guest but the names of its directories.
 */
import type { Clock } from "../util/clock.ts";
import type { XenStore } from "../xen/domain.ts";
import { DeviceWatch } from "./device-watch.ts";

/** Deaths of a guest's process that are borne within a while: one that dies oftener dies of what it does. */
const MAX_DEATHS = 5;
const DEATHS_WINDOW_MILLISECONDS = 60_000;
/** Before it is begun again; twice as long after each further death. */
const PAUSE_MILLISECONDS = 100;

export interface GuestProcess {
  /** Finishes what was taken and ends. */
  leave(): Promise<void>;
  /** Resolves when it has ended, by itself or not. */
  readonly ended: Promise<string>;
}

export interface SupervisorOptions<P extends GuestProcess> {
  readonly store: XenStore;
  /** backend/vbd3 and the like: the directories in them are domids. */
  readonly roots: readonly string[];
  readonly clock: Clock;
  start(domid: number): P;
  /** Something a person should know. */
  onnote(message: string): void;
}

interface Guest<P> {
  readonly domid: number;
  process: P | undefined;
  deaths: number[];
  /** It has vbds, or may have. */
  wanted: boolean;
  /** Its process was asked to end. */
  leaving: boolean;
}

export class Supervisor<P extends GuestProcess> implements AsyncDisposable {
  readonly #options: SupervisorOptions<P>;
  readonly #guests = new Map<number, Guest<P>>();
  readonly #found: ReadonlySet<string>[];
  readonly #watches: DeviceWatch[] = [];
  #ending = false;

  static async start<P extends GuestProcess>(
    options: SupervisorOptions<P>,
  ): Promise<Supervisor<P>> {
    const supervisor = new Supervisor(options);
    const { store, onnote } = options;
    for (const [index, root] of options.roots.entries()) {
      const watch = await DeviceWatch.open({
        ...{ store, root, levels: 2 },
        onchange: async (paths) => {
          supervisor.#found[index] = paths;
          supervisor.#update();
        },
        onerror: (error) => onnote(`${root}: ${String(error)}`),
      });
      supervisor.#watches.push(watch);
    }
    return supervisor;
  }

  private constructor(options: SupervisorOptions<P>) {
    this.#options = options;
    this.#found = options.roots.map(() => new Set<string>());
  }

  /** The process that serves a guest now. */
  process(domid: number): P | undefined {
    return this.#guests.get(domid)?.process;
  }

  get domids(): readonly number[] {
    return [...this.#guests.keys()];
  }

  #update(): void {
    // A guest's directory may stay when its last vbd has gone: a driver domain may not remove it.
    const names = this.#found.flatMap((paths) => [...paths].map((path) => path.split("/").at(-2)!));
    const domids = new Set(names.filter((name) => /^\d{1,5}$/.test(name)).map(Number));
    for (const guest of this.#guests.values()) {
      if (domids.has(guest.domid)) guest.wanted = true;
      else void this.#end(guest);
    }
    for (const domid of domids) {
      if (this.#ending || this.#guests.has(domid)) continue;
      const guest: Guest<P> = {
        ...{ domid, process: undefined, deaths: [] },
        ...{ wanted: true, leaving: false },
      };
      this.#guests.set(domid, guest);
      this.#begin(guest);
    }
  }

  #begin(guest: Guest<P>): void {
    let process: P;
    try {
      process = this.#options.start(guest.domid);
    } catch (error) {
      this.#died(guest, `cannot be begun (${String(error)})`);
      return;
    }
    guest.process = process;
    guest.leaving = false;
    void process.ended.then((how) => {
      guest.process = undefined;
      if (!guest.wanted || this.#ending) this.#forget(guest);
      else if (guest.leaving) this.#begin(guest);
      else this.#died(guest, how);
    });
  }

  /** Another of its number may have come meanwhile. */
  #forget(guest: Guest<P>): void {
    if (this.#guests.get(guest.domid) === guest) this.#guests.delete(guest.domid);
  }

  #died(guest: Guest<P>, how: string): void {
    const { clock, onnote } = this.#options;
    const now = clock.now();
    guest.deaths = guest.deaths.filter((death) => now - death < DEATHS_WINDOW_MILLISECONDS);
    const who = `the process of domain ${guest.domid} ${how}`;
    if (guest.deaths.push(now) > MAX_DEATHS) {
      onnote(`${who} over and over: its disks are not served until the daemon is restarted`);
      return;
    }
    onnote(`${who}: begun again`);
    clock.after(PAUSE_MILLISECONDS << (guest.deaths.length - 1), () => {
      if (guest.wanted && !this.#ending) this.#begin(guest);
      else if (guest.process === undefined) this.#forget(guest);
    });
  }

  /** Its last vbd has gone. */
  async #end(guest: Guest<P>): Promise<void> {
    if (!guest.wanted) return;
    guest.wanted = false;
    if (guest.process === undefined) this.#forget(guest);
    if (guest.leaving) return;
    guest.leaving = true;
    await guest.process?.leave();
    // A new one may have come while the process ended.
    for (const watch of this.#watches) watch.poke();
  }

  /** Has every process finish what it took and end; their vbds stay as they are. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending = true;
    for (const watch of this.#watches) await watch[Symbol.asyncDispose]();
    await Promise.all(
      [...this.#guests.values()].map(async ({ process }) => {
        await process?.leave();
        await process?.ended;
      }),
    );
  }
}
