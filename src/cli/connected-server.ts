/**
 * A disk of a backend of somebody else's, served over NBD: `vbdkit connect`.
 *
 * Invariant: disposal goes backwards (no new clients, requests in flight end, flush, close the device, remove what we
 * made), also where starting failed half-way.
 */
import type { HostFrontend, Negotiated } from "../index.ts";
import { formatNbdUri, type NbdAddress } from "../nbd/uri.ts";
import type { BlockStoreInfo } from "../store/block-store.ts";
import type { Domain } from "../xen/domain.ts";
import { MachineFolder } from "../xen/embedded/machine-folder.ts";
import { frontendLimitsOf } from "./attach-request.ts";
import { connectBanner } from "./banner.ts";
import type { ConnectTarget } from "./connect-target.ts";
import { findGuest } from "./host-world.ts";
import { Leftovers } from "./leftovers.ts";
import { listen, nbdPlace, nbdVariables } from "./nbd-place.ts";
import type { FrontendOptions, NbdOptions, RunOptions } from "./options.ts";
import { checkPidfile, takePidfile } from "./pidfile.ts";
import type { Served } from "./run-server.ts";
import { packageVersion } from "./version.ts";

export interface ConnectOptions extends NbdOptions, FrontendOptions, RunOptions {
  exportName?: string;
  readonly?: true;
  force?: true;
}

/** What `vbdkit connect --json` prints. */
export interface ConnectInfo {
  readonly version: string;
  readonly pid: number;
  /** As typed. */
  readonly disk: string;
  readonly vdev: string;
  /** Of the NBD export. */
  readonly uri: string;
  readonly frontendPath: string;
  readonly backendPath: string;
  readonly store: BlockStoreInfo;
  readonly negotiated: Negotiated;
}

/** Connects and listens. `signal` ends starting. */
export async function startConnected(
  target: ConnectTarget,
  options: ConnectOptions,
  signal: AbortSignal,
): Promise<Served> {
  const limits = frontendLimitsOf(options);
  const place = nbdPlace(options);
  if (options.pidfile !== undefined) checkPidfile(options.pidfile);
  const { NbdServer } = await import("../index.ts");
  const { openHost } = await import("../xen/host/index.ts");
  await using stack = new AsyncDisposableStack();
  const domain = stack.use(await openHost());
  const device = stack.use(await openDevice(domain, target, options, { limits, signal }));
  const { store } = device;
  const lost = Promise.withResolvers<Error>();
  let flushes = true;
  store.subscribe({
    failed: (error) => {
      flushes = false;
      lost.resolve(error);
    },
  });
  const leftovers = stack.use(new Leftovers(undefined));
  // It can go when the socket in it has gone.
  const folder = stack.use(new MachineFolder(undefined));
  const nbd = new NbdServer([], { reactor: domain.reactor });
  stack.defer(() =>
    nbd.close().catch((error: unknown) => {
      // What cannot be flushed any more has been told of.
      if (flushes) throw error;
    }),
  );
  const name = options.exportName ?? "";
  const readOnly = options.readonly === true;
  nbd.add({ name, store, description: target.text, readOnly });
  const address = await listen(nbd, place, () => privateFolder(folder, leftovers), leftovers);
  if (options.pidfile !== undefined) stack.use(takePidfile(options.pidfile));
  return new ConnectedServer(
    { device, text: target.text, lost: lost.promise, address, name },
    place.inherited.length > 0,
    stack.move(),
  );
}

function privateFolder(folder: MachineFolder, leftovers: Leftovers): string {
  const { path } = folder;
  leftovers.addFolder(path);
  return path;
}

async function openDevice(
  domain: Domain,
  target: ConnectTarget,
  { force, readonly: readOnly }: ConnectOptions,
  how: Parameters<typeof HostFrontend.open>[2],
): Promise<HostFrontend> {
  const { HostFrontend } = await import("../index.ts");
  if ("device" in target) {
    return await HostFrontend.open(domain, target.device, { ...how, force: force === true });
  }
  const { disk, backend } = target;
  const where =
    backend === undefined ? {} : { backendDomid: (await findGuest(domain.store, backend)).domid };
  const given = { ...disk, ...where, readOnly: disk.readOnly === true || readOnly === true };
  return await HostFrontend.make(domain, given, how);
}

interface ConnectedParts {
  readonly device: HostFrontend;
  readonly text: string;
  readonly lost: Promise<Error>;
  readonly address: NbdAddress;
  readonly name: string;
}

class ConnectedServer implements Served {
  readonly activated: boolean;
  readonly lost: Promise<Error>;
  readonly #parts: ConnectedParts;
  readonly #ends: AsyncDisposableStack;

  constructor(parts: ConnectedParts, activated: boolean, ends: AsyncDisposableStack) {
    this.#parts = parts;
    this.lost = parts.lost;
    this.activated = activated;
    this.#ends = ends;
  }

  get #uri(): string {
    const { address, name } = this.#parts;
    return formatNbdUri({ address, exportName: name });
  }

  environment(): Record<string, string> {
    return nbdVariables(this.#parts.address, this.#uri);
  }

  async info(): Promise<ConnectInfo> {
    const { device, text } = this.#parts;
    const { store, paths } = device;
    return {
      version: packageVersion(),
      pid: process.pid,
      disk: text,
      vdev: store.device.name,
      uri: this.#uri,
      frontendPath: paths.frontend,
      backendPath: paths.backend,
      store: store.info,
      negotiated: store.negotiated,
    };
  }

  async banner(): Promise<string> {
    return connectBanner(await this.info());
  }

  async inFlight(): Promise<number> {
    return this.#parts.device.store.outstanding().length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends.disposeAsync();
  }
}
