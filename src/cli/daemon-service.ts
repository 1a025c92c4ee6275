/** The part of `vbdkit daemon` that serves: the vbds of one guest, or of all of them, in this process. */
import { join } from "node:path";
import { VbdService } from "../daemon/vbd-service.ts";
import type { Domain } from "../xen/domain.ts";
import type { DaemonSettings } from "./daemon-settings.ts";
import { readDeviceRequest } from "./device-request.ts";
import { UsageError } from "./errors.ts";
import { plain } from "./output.ts";

/** What can be asked of it; plain data. */
export type DaemonQuestion =
  | { readonly ask: "vbds" }
  | {
      readonly ask: "resize";
      readonly path: string;
      readonly size: number;
      readonly shrink: boolean;
    };

/** A vbd that is served now. */
export interface DaemonVbd {
  readonly path: string;
  readonly disk: string;
  readonly connected: boolean;
  readonly negotiated: unknown;
  readonly counters: unknown;
}

/** Folder of the journals, in that of the daemon. */
export function journalsOf({ folder }: DaemonSettings): string {
  return join(folder, "journals");
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
  question: DaemonQuestion,
): Promise<readonly DaemonVbd[] | true> {
  if (question.ask === "vbds") {
    return service.vbds.map(({ path, request, backend }) => ({
      path,
      disk: request.text,
      connected: backend.negotiated !== undefined,
      negotiated: JSON.parse(JSON.stringify(backend.negotiated ?? null, plain)),
      counters: JSON.parse(JSON.stringify(backend.counters ?? null, plain)),
    }));
  }
  const { path, size, shrink } = question;
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
