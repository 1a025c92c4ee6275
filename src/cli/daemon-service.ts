/** The part of `vbdkit daemon` that serves: the vbds of one guest, or of all of them, in this process. */
import { VbdService } from "../daemon/vbd-service.ts";
import type { Domain } from "../xen/domain.ts";
import { type DaemonSettings, journalsOf } from "./daemon-settings.ts";
import { readDeviceRequest } from "./device-request.ts";
import { UsageError } from "./errors.ts";

/** What can be asked of it: another size for a disk, in bytes. Plain data. */
export interface DaemonQuestion {
  /** Of the backend. */
  readonly path: string;
  readonly size: number;
  readonly shrink: boolean;
}

/** Serves the vbds of one guest, or of all. */
export async function startService(
  domain: Domain,
  settings: DaemonSettings,
  guest: number | undefined,
): Promise<VbdService> {
  const { kinds, engine, limits, verbose } = settings;
  const below = guest === undefined ? "" : `/${guest}`;
  return await VbdService.start({
    domain,
    roots: kinds.map((kind) => `/local/domain/${domain.id}/backend/${kind}${below}`),
    levels: guest === undefined ? 2 : 1,
    journals: journalsOf(settings),
    resolve: (path) => readDeviceRequest(domain.store, path, { engine, limits }),
    ontrace: ({ kind, message }) => {
      // A state that was toggled is for who wants to know; a disk that stands still is for everyone.
      if (kind === "state" && !verbose) return;
      process.stderr.write(`vbdkit: ${kind}: ${message}\n`);
    },
  });
}

export async function answerOf(
  service: VbdService,
  { path, size, shrink }: DaemonQuestion,
): Promise<true> {
  const vbd = service.vbds.find((each) => each.path === path);
  if (vbd === undefined) throw new UsageError(`${path}: is not served here`);
  if (vbd.store === undefined) {
    throw new UsageError("the guest is not connected: change the size of the image itself");
  }
  const before = vbd.store.info.size;
  if (size < before && !shrink) {
    throw new UsageError(`${size} bytes are fewer than ${before}: --shrink loses the end of it`);
  }
  await vbd.store.resize(size);
  return true;
}
