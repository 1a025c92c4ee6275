/**
 * A running server: a machine, its disks, the NBD server before them, the control socket beside. `vbdkit serve` and
 * `vbdkit machine` are both this: one begins with disks, the other with guests.
 *
 * Invariant: disposal goes backwards (no new clients, requests in flight end, flush, detach, remove sockets), also
 * where starting failed half-way.
 */
import { join, resolve } from "node:path";
import type { Guest, Machine } from "../index.ts";
import { formatNbdUri, type NbdAddress } from "../nbd/uri.ts";
import type { ServerStatistics } from "../trace/statistics.ts";
import type { XenStoreClient } from "../xen/xenstore/index.ts";
import { type AttachRequest, readAttachRequest } from "./attach-request.ts";
import { banner } from "./banner.ts";
import { CONTROL_SOCKET, openControl, type RequestFields } from "./control.ts";
import { type ListedDisk, type ListedDomain, listDisk } from "./disk-list.ts";
import { type DiskName, DiskTable, type ServedDisk } from "./disk-table.ts";
import { UsageError } from "./errors.ts";
import { createGuest, type GuestKeeper, guestAnswers, textOf } from "./guest-answers.ts";
import { Leftovers } from "./leftovers.ts";
import { listen, nbdPlace, nbdVariables } from "./nbd-place.ts";
import type { ListenOptions, RunOptions } from "./options.ts";
import { checkPidfile, takePidfile } from "./pidfile.ts";
import type { Served } from "./run-server.ts";
import type { ServedDiskInfo, ServerInfo } from "./server-info.ts";
import { statisticsOf } from "./statistics.ts";
import { packageVersion } from "./version.ts";

export type ServerOptions = ListenOptions & Pick<RunOptions, "pidfile" | "verbose">;

/** What a server begins with. */
export interface ServerContents {
  readonly guests: readonly string[];
  readonly disks: readonly AttachRequest[];
}

/** Domain 0 sees what a toolstack sees. */
const DOM0 = 0;

/** Makes the guests, attaches the disks and listens. `signal` ends starting. */
export async function startServer(
  { guests, disks }: ServerContents,
  options: ServerOptions,
  signal: AbortSignal,
): Promise<RunningServer> {
  const place = nbdPlace(options);
  if (options.pidfile !== undefined) checkPidfile(options.pidfile);
  const { Machine, NbdServer, XenStoreClient } = await import("../index.ts");
  await using stack = new AsyncDisposableStack();
  const leftovers = stack.use(new Leftovers(options.machine));
  const machine = stack.use(
    await Machine.start({
      // Whoever is told of them may be in another folder.
      ...(options.machine === undefined ? {} : { directory: resolve(options.machine) }),
      ...(options.xenstore === undefined ? {} : { xenstoreSocket: resolve(options.xenstore) }),
      ...(options.state === undefined ? {} : { state: resolve(options.state) }),
      onStateNote: (line) => process.stderr.write(`vbdkit: ${line}\n`),
      ontrace: ({ kind, message }) => {
        // A ring that was halted or a device that failed is told in any case: somebody's disk stands still.
        const grave = kind === "halted" || kind === "failed";
        // Statistics come only where log_stats asked for them.
        if (grave || kind === "statistics" || options.verbose)
          process.stderr.write(`vbdkit: ${kind}: ${message}\n`);
      },
    }),
  );
  leftovers.addFolder(machine.directory);
  leftovers.addSocket(machine.xenstoreSocket);
  for (const name of guests) await createGuest(machine, name);
  const nbd = stack.use(new NbdServer([], { reactor: machine.reactor }));
  const table = stack.use(new DiskTable(machine, nbd));
  for (const request of disks) await table.attach(request, signal);
  const address = await listen(nbd, place, () => machine.directory, leftovers);
  const store = stack.use(new XenStoreClient(machine.embedded.xenstore.connect(DOM0)));
  const server = new RunningServer({
    ...{ machine, table, store, address },
    activated: place.inherited.length > 0,
  });
  stack.use(await openControl(machine.directory, answersOf(server)));
  leftovers.addSocket(join(machine.directory, CONTROL_SOCKET));
  if (options.pidfile !== undefined) stack.use(takePidfile(options.pidfile));
  server.own(stack.move());
  return server;
}

interface ServerParts {
  readonly machine: Machine;
  readonly table: DiskTable;
  /** The machine's, as domain 0 has it. */
  readonly store: XenStoreClient;
  readonly address: NbdAddress;
  readonly activated: boolean;
}

export class RunningServer implements Served, GuestKeeper {
  readonly machine: Machine;
  readonly table: DiskTable;
  readonly activated: boolean;
  readonly #store: XenStoreClient;
  readonly #address: NbdAddress;
  readonly #ends = new AsyncDisposableStack();

  constructor({ machine, table, store, address, activated }: ServerParts) {
    this.table = table;
    this.activated = activated;
    this.machine = machine;
    this.#store = store;
    this.#address = address;
  }

  /** Everything that ends with the server. */
  own(parts: AsyncDisposable): void {
    this.#ends.use(parts);
  }

  async info(): Promise<ServerInfo> {
    const disks = await Promise.all([...this.table].map((entry) => this.#infoOf(entry)));
    return {
      version: packageVersion(),
      pid: process.pid,
      directory: this.machine.directory,
      xenstoreSocket: this.machine.xenstoreSocket,
      uri: this.#firstUri,
      uptimeSeconds: Math.round(process.uptime()),
      domains: [...this.machine.guests.values()].map(({ domid, name }) => ({ domid, name })),
      disks,
    };
  }

  async #infoOf({ guest, text, disk, export: { name } }: ServedDisk): Promise<ServedDiskInfo> {
    return {
      disk: text,
      domain: guest.name,
      vdev: disk.vdev,
      export: name,
      uri: this.#uri(name),
      store: disk.store.info,
      attachment: await disk.information(),
    };
  }

  async banner(): Promise<string> {
    return banner(await this.info());
  }

  async inFlight(): Promise<number> {
    const { disks } = await this.statistics();
    return disks.reduce((sum, disk) => sum + disk.inFlight, 0);
  }

  async statistics(): Promise<ServerStatistics> {
    return statisticsOf(await this.info(), process.uptime());
  }

  /** Of one guest, or of all. */
  async list(name: string | undefined): Promise<ListedDomain[]> {
    const guests = name === undefined ? this.machine.guests.values() : [this.table.guest(name)];
    return await Promise.all([...guests].map((guest) => this.listedDomain(guest)));
  }

  readonly listedDomain = async (guest: Guest): Promise<ListedDomain> => {
    const disks = await Promise.all(this.table.disksOf(guest).map((entry) => this.listed(entry)));
    return {
      name: guest.name,
      domid: guest.domid,
      state: guest.state,
      disks: disks.sort((left, right) => left.handle - right.handle),
    };
  };

  async listed(entry: ServedDisk): Promise<ListedDisk> {
    return await listDisk(entry, this.table, this.#store, (name) => this.#uri(name));
  }

  /** By nbdkit's names and by those of Xen's tools. */
  environment(): Record<string, string> {
    return {
      ...nbdVariables(this.#address, this.#firstUri),
      XENSTORED_PATH: this.machine.xenstoreSocket,
      VBDKIT_MACHINE: this.machine.directory,
    };
  }

  /** Of the first disk; where there is none yet, a client without a name gets the first that comes. */
  get #firstUri(): string {
    const [first] = this.table;
    return this.#uri(first?.export.name ?? "");
  }

  #uri(exportName: string): string {
    return formatNbdUri({ address: this.#address, exportName });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}

function answersOf(server: RunningServer): Parameters<typeof openControl>[1] {
  const { table } = server;
  return {
    ...guestAnswers(server),
    info: () => server.info(),
    stats: () => server.statistics(),
    list: ({ domain }) => server.list(domain === undefined ? undefined : textOf("domain", domain)),
    attach: async (fields, { signal }) =>
      await server.listed(await table.attach(readAttachRequest(fields), signal)),
    detach: async (fields, { note }) => {
      await table.detach(diskNameOf(fields), fields.force === true, note);
      return true;
    },
    resize: async (fields) => {
      const { size, relative, shrink } = fields;
      if (typeof size !== "number") throw new UsageError("size: write a number of bytes");
      const how = { size, relative: relative === true, shrink: shrink === true };
      return await server.listed(await table.resize(diskNameOf(fields), how));
    },
  };
}

function diskNameOf({ domain, vdev }: RequestFields): DiskName {
  return { domain: textOf("domain", domain), vdev: textOf("vdev", vdev) };
}
