/** Where the NBD server of a command listens: on sockets that were opened for us, where the options say, or in a private
 * folder. */
import { join, resolve } from "node:path";
import type { NbdServer } from "../nbd/server.ts";
import type { NbdAddress } from "../nbd/uri.ts";
import { UsageError } from "./errors.ts";
import type { Leftovers } from "./leftovers.ts";
import type { NbdOptions } from "./options.ts";
import { keepPipesBlocking } from "./output.ts";
import { pathOfSocket, takeInheritedSockets } from "./socket-activation.ts";

export interface NbdPlace {
  readonly options: NbdOptions;
  /** Descriptors of sockets that somebody else opened for us. */
  readonly inherited: readonly number[];
}

/** Throws UsageError for options that contradict each other. */
export function nbdPlace(options: NbdOptions): NbdPlace {
  const inherited = takeInheritedSockets();
  if (inherited.length > 0 && (options.unix ?? options.port) !== undefined) {
    throw new UsageError("the socket is the one in LISTEN_FDS: leave --unix and --port out");
  }
  if (inherited.length > 0) keepPipesBlocking();
  if (options.ip !== undefined && options.port === undefined) {
    throw new UsageError("--ip is the address for --port, which is not given");
  }
  return { options, inherited };
}

/** `folder` is where a socket lies that nobody named. A socket of ours is told to `leftovers`. */
export async function listen(
  nbd: NbdServer,
  { options, inherited }: NbdPlace,
  folder: () => string,
  leftovers: Leftovers,
): Promise<NbdAddress> {
  if (inherited.length > 0) return await listenOn(nbd, inherited);
  const { unix = "-", ip = "127.0.0.1", port } = options;
  if (port !== undefined) return (await nbd.listen({ host: ip, port })).address;
  const path = unix === "-" ? join(folder(), "nbd.sock") : resolve(unix);
  const { address } = await nbd.listen({ path });
  leftovers.addSocket(path);
  return address;
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

/** What `--run` gives to its command, by nbdkit's names. */
export function nbdVariables(address: NbdAddress, uri: string): Record<string, string> {
  const unix = "path" in address;
  return {
    uri,
    unixsocket: unix ? address.path : "",
    port: unix ? "" : String(address.port),
    nbd: unix ? `nbd:unix:${address.path}` : `nbd:${address.host}:${address.port}`,
  };
}
