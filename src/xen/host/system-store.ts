/** The xenstore of the system: over the daemon's socket where it runs in this domain, else through the kernel, as
 * libxenstore goes about it (xs_open of xs.c). */
import { existsSync } from "node:fs";
import { XenStoreClient } from "../xenstore/client.ts";
import { xenStoreSocketPath } from "../xenstore/socket-path.ts";
import type { Devices } from "./devices.ts";
import { XenbusTransport } from "./xenbus-transport.ts";

/** `socket` is the path of the only one to try, where it is given. */
export async function openSystemStore(devices: Devices, socket?: string): Promise<XenStoreClient> {
  const path = socket ?? xenStoreSocketPath(process.env);
  const wanted = socket !== undefined || process.env.XENSTORED_PATH !== undefined;
  if (wanted || existsSync(path)) return await XenStoreClient.connect(path);
  return new XenStoreClient(new XenbusTransport(devices));
}
