/**
 * A running server: a machine, its disks, the NBD server before them, the control socket beside.
 *
 * Invariant: disposal goes backwards (no new clients, requests in flight end, flush, detach, remove sockets), also
 * where starting failed half-way.
 */
import { join, resolve } from "node:path";
import type { AttachedDisk, BackendLimits, FrontendLimits, Machine, NbdServer } from "../index.ts";
import { formatNbdUri, type NbdAddress } from "../nbd/uri.ts";
import type { EngineChoice, StoreSpec } from "../store/block-store.ts";
import type { ServerStatistics } from "../trace/statistics.ts";
import { catalogue, driverNames } from "./catalogue.ts";
import { CONTROL_SOCKET, openControl } from "./control.ts";
import { checkName, groupDisks } from "./disks.ts";
import { UsageError } from "./errors.ts";
import { backendKnobs, frontendKnobs } from "./knobs.ts";
import { Leftovers } from "./leftovers.ts";
import { keepPipesBlocking } from "./output.ts";
import { checkPidfile, takePidfile } from "./pidfile.ts";
import type { ServerInfo } from "./server-info.ts";
import { pathOfSocket, takeInheritedSockets } from "./socket-activation.ts";
import { statisticsOf } from "./statistics.ts";
import { packageVersion } from "./version.ts";

/** The options of `vbdkit serve`, as commander names them. */
export interface ServeOptions {
  unix?: string;
  port?: number;
  ip?: string;
  readonly?: true;
  exportName?: string;
  pidfile?: string;
  filter?: string[];
  run?: string;
  exitWithParent?: true;
  xenstore?: string;
  machine?: string;
  engine: EngineChoice;
  link: "thread" | "worker" | "process";
  shared?: true;
  vdev: string;
  backend?: string[];
  frontend?: string[];
  maxRingPageOrder?: number;
  maxIndirectSegments?: number;
  maxPersistentGrants?: number;
  persistent: boolean;
  discard: boolean;
  protocol?: "x86_64-abi" | "x86_32-abi" | "native";
  json?: true;
  verbose?: true;
}

interface ServedDisk {
  readonly words: string;
  readonly name: string;
  readonly disk: AttachedDisk;
}

/** Opens the disks, attaches them and listens. `signal` ends starting. */
export async function startServer(
  words: readonly string[],
  options: ServeOptions,
  signal: AbortSignal,
): Promise<RunningServer> {
  const inherited = takeInheritedSockets();
  if (inherited.length > 0 && (options.unix ?? options.port) !== undefined) {
    throw new UsageError("the socket is the one in LISTEN_FDS: leave --unix and --port out");
  }
  if (inherited.length > 0) keepPipesBlocking();
  if (options.ip !== undefined && options.port === undefined) {
    throw new UsageError("--ip is the address for --port, which is not given");
  }
  if (options.pidfile !== undefined) checkPidfile(options.pidfile);
  const knobs = knobsOf(options);
  const specs = await parseDisks(words, options);
  const { Machine, NbdServer } = await import("../index.ts");
  const stack = new AsyncDisposableStack();
  try {
    const leftovers = stack.use(new Leftovers(options.machine));
    const machine = stack.use(
      await Machine.start({
        // Whoever is told of them may be in another folder.
        ...(options.machine === undefined ? {} : { directory: resolve(options.machine) }),
        ...(options.xenstore === undefined ? {} : { xenstoreSocket: resolve(options.xenstore) }),
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
    const disks: ServedDisk[] = [];
    for (const [index, { text, spec }] of specs.entries()) {
      const vdev = vdevAt(options.vdev, index);
      const disk = stack.use(
        await machine.attach(spec, attachOptions(options, knobs, vdev, signal)),
      );
      const name = options.exportName ?? (specs.length === 1 ? "" : vdev);
      disks.push({ words: text, name, disk });
    }
    const exports = disks.map(({ name, disk, words: description }) => ({
      name,
      store: disk.store,
      description,
    }));
    const nbd = stack.use(new NbdServer(exports, { reactor: machine.reactor }));
    const address =
      inherited.length > 0
        ? await listenOn(nbd, inherited)
        : await listen(nbd, options, machine.directory);
    if (inherited.length === 0 && "path" in address) leftovers.addSocket(address.path);
    const server = new RunningServer(machine, disks, address, stack, inherited.length > 0);
    stack.use(
      await openControl(machine.directory, {
        info: () => server.info(),
        stats: () => server.statistics(),
      }),
    );
    leftovers.addSocket(join(machine.directory, CONTROL_SOCKET));
    if (options.pidfile !== undefined) stack.use(takePidfile(options.pidfile));
    return server;
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

/** Listens where the options say, or else on a socket in the machine's folder. */
async function listen(nbd: NbdServer, options: ServeOptions, folder: string): Promise<NbdAddress> {
  const { unix = "-", ip = "127.0.0.1", port } = options;
  const path = unix === "-" ? join(folder, "nbd.sock") : resolve(unix);
  return (await nbd.listen(port === undefined ? { path } : { host: ip, port })).address;
}

/** Listens on sockets that were opened for us; the first is the one we tell of. */
async function listenOn(nbd: NbdServer, descriptors: readonly number[]): Promise<NbdAddress> {
  const addresses: NbdAddress[] = [];
  for (const fd of descriptors) {
    // Before Node has the socket: it may give the descriptor another number.
    const path = pathOfSocket(fd);
    const { address } = await nbd.listen({ fd });
    addresses.push("path" in address && path !== undefined ? { path } : address);
  }
  return addresses[0]!;
}

export class RunningServer implements AsyncDisposable {
  readonly #machine: Machine;
  readonly #disks: readonly ServedDisk[];
  readonly #address: NbdAddress;
  readonly #stack: AsyncDisposableStack;
  /** Whoever started us opened the socket and knows where it is. */
  readonly activated: boolean;

  constructor(
    machine: Machine,
    disks: readonly ServedDisk[],
    address: NbdAddress,
    stack: AsyncDisposableStack,
    activated: boolean,
  ) {
    this.#machine = machine;
    this.#disks = disks;
    this.#address = address;
    this.#stack = stack;
    this.activated = activated;
  }

  async info(): Promise<ServerInfo> {
    const disks = this.#disks.map(async ({ words, name, disk }) => ({
      disk: words,
      vdev: disk.vdev,
      export: name,
      uri: this.#uri(name),
      store: disk.store.info,
      attachment: await disk.information(),
    }));
    return {
      version: packageVersion(),
      pid: process.pid,
      directory: this.#machine.directory,
      xenstoreSocket: this.#machine.xenstoreSocket,
      uri: this.#uri(this.#disks[0]!.name),
      uptimeSeconds: Math.round(process.uptime()),
      disks: await Promise.all(disks),
    };
  }

  async statistics(): Promise<ServerStatistics> {
    return statisticsOf(await this.info(), process.uptime());
  }

  /** What `--run` gives to its command, by nbdkit's names and by those of Xen's tools. */
  environment(): Record<string, string> {
    const address = this.#address;
    const unix = "path" in address;
    return {
      uri: this.#uri(this.#disks[0]!.name),
      unixsocket: unix ? address.path : "",
      port: unix ? "" : String(address.port),
      nbd: unix ? `nbd:unix:${address.path}` : `nbd:${address.host}:${address.port}`,
      XENSTORED_PATH: this.#machine.xenstoreSocket,
      VBDKIT_MACHINE: this.#machine.directory,
    };
  }

  #uri(exportName: string): string {
    return formatNbdUri({ address: this.#address, exportName });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

async function parseDisks(
  words: readonly string[],
  options: ServeOptions,
): Promise<{ text: string; spec: StoreSpec }[]> {
  const { parseDisk } = await import("../index.ts");
  const drivers = driverNames();
  const groups = groupDisks(words, drivers);
  for (const group of groups) checkName(group, drivers);
  if (groups.length > 1 && options.exportName !== undefined) {
    throw new UsageError("--export-name names one export; several disks are named by their vdevs");
  }
  return groups.map((group) => {
    const spec = parseDisk(group, options.filter);
    return { text: group.join(" "), spec: options.shared ? unlocked(spec) : spec };
  });
}

/** A disk that others may write at the same time. Only a driver that locks keeps them out. */
function unlocked(spec: StoreSpec): StoreSpec {
  const driver = catalogue().drivers.find(({ name }) => name === spec.driver);
  if (driver?.parameters.some(({ name }) => name === "lock") !== true) {
    throw new UsageError(`--shared: driver ${spec.driver} locks nothing that could be shared`);
  }
  return { ...spec, parameters: { lock: "off", ...spec.parameters } };
}

interface Knobs {
  readonly backend: Partial<BackendLimits>;
  readonly frontend: Partial<FrontendLimits>;
}

function knobsOf({ backend = [], frontend = [] }: ServeOptions): Knobs {
  const note = (message: string) => process.stderr.write(`vbdkit: note: ${message}\n`);
  return { backend: backendKnobs(backend, note), frontend: frontendKnobs(frontend, note) };
}

function attachOptions(options: ServeOptions, knobs: Knobs, vdev: string, signal: AbortSignal) {
  const shared = defined({
    maxRingPageOrder: options.maxRingPageOrder,
    maxIndirectSegments: options.maxIndirectSegments,
    persistent: options.persistent,
  });
  return {
    vdev,
    link: options.link,
    engine: options.engine,
    readOnly: options.readonly === true,
    signal,
    backend: {
      ...shared,
      ...defined({ maxPersistentGrants: options.maxPersistentGrants, discard: options.discard }),
      ...knobs.backend,
    },
    frontend: { ...shared, ...defined({ protocol: options.protocol }), ...knobs.frontend },
  };
}

/** Without the fields that are undefined: an option that was not given leaves the default of the library. */
function defined<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as never;
}

/** xvda, xvdb ... : the vdev of disk `index` where the first has `first`. */
function vdevAt(first: string, index: number): string {
  if (index === 0) return first;
  const match = /^(xvd|sd|hd)([a-z])$/.exec(first);
  const letter = match === null ? 0 : match[2]!.charCodeAt(0) + index;
  if (match === null || letter > 0x7a) {
    throw new UsageError(`--vdev ${first} leaves no name for disk ${index + 1}: use xvda ... xvdz`);
  }
  return match[1] + String.fromCharCode(letter);
}
