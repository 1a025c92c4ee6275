/**
 * What a vbd of a Xen host is served from: our own request where `vbdkit attach` made it, else the words of the toolstack
 * that did (libxl_disk.c; the params and script nodes of xen-vbd-interface).
 */
import { basename } from "node:path";
import { REQUEST_NODE } from "../daemon/host-disks.ts";
import type { DeviceRequest } from "../daemon/vbd-service.ts";
import type { BackendLimits } from "../index.ts";
import type { EngineChoice } from "../store/block-store.ts";
import type { XenStore } from "../xen/domain.ts";
import { readAttachRequest } from "./attach-request.ts";
import { diskOf } from "./attach-spec.ts";
import { UsageError } from "./errors.ts";

/** The hotplug script by which a toolstack says that a disk is ours. */
export const SCRIPT = "block-vbdkit";

/** What a vbd is served with unless it says otherwise. */
export interface DeviceDefaults {
  readonly engine: EngineChoice;
  readonly limits: Partial<BackendLimits>;
}

/** undefined where the vbd is none of ours. Throws UsageError for words that make no disk. */
export async function readDeviceRequest(
  store: XenStore,
  path: string,
  { engine, limits }: DeviceDefaults,
): Promise<DeviceRequest | undefined> {
  // A directory that is being written or removed.
  if ((await store.read(`${path}/frontend`)) === undefined) return undefined;
  const readOnly = !((await store.read(`${path}/mode`)) ?? "w").startsWith("w");
  const own = await store.read(`${path}/${REQUEST_NODE}`);
  if (own !== undefined) {
    const request = readAttachRequest(JSON.parse(own) as Record<string, unknown>);
    return {
      text: request.text,
      spec: request.spec,
      readOnly: readOnly || request.readOnly,
      engine: request.engine,
      limits: { ...limits, ...request.backend },
    };
  }
  const params = (await store.read(`${path}/params`)) ?? "";
  const text = targetOf(path, params, await store.read(`${path}/script`));
  if (text === undefined) return undefined;
  const spec = diskOf(text, undefined);
  for (const [name, value] of Object.entries(spec.parameters)) {
    if (name === "file" && !value.startsWith("/")) {
      throw new UsageError(`${value}: a daemon needs the whole path of a file`);
    }
  }
  return { text, spec, readOnly, engine, limits };
}

/** backendtype=tap writes `aio:TARGET` below vbd3; a disk with our script has the target as it was typed. */
function targetOf(path: string, params: string, script: string | undefined): string | undefined {
  if (script !== undefined && basename(script) === SCRIPT) return params.replace(/^aio:/, "");
  if (path.includes("/backend/vbd3/") && params.startsWith("aio:")) return params.slice(4);
  return undefined;
}
