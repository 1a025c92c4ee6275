/**
 * `vbdkit attach --machine xen`: a disk in a guest of the Xen that we run on, served by this very process until somebody
 * detaches it. There is no server in between: a guest's slow disk disturbs nobody else's.
 */
import { HostVbd } from "../machine/host-vbd.ts";
import { formatSize } from "../util/size.ts";
import { XenError, type XenStore } from "../xen/domain.ts";
import { openHost } from "../xen/host/index.ts";
import type { AttachRequest } from "./attach-request.ts";
import { UsageError } from "./errors.ts";
import { findByName } from "./find-by-name.ts";
import type { DiskOptions } from "./options.ts";
import { print, printJson } from "./output.ts";
import type { StopSignal } from "./signals.ts";

interface XenAttachOptions extends DiskOptions {
  json?: true;
  verbose?: true;
}

/** Resolves when the disk is detached again: by a signal, by the guest, or by its death. */
export async function attachToXen(
  request: AttachRequest,
  options: XenAttachOptions,
  stop: StopSignal,
): Promise<void> {
  refuse(request, options);
  await using domain = await openHost();
  const guest = await findDomain(domain.store, request.domain ?? "");
  const { readOnly, cdrom, engine, backend, spec } = request;
  await using vbd = await HostVbd.attach(domain, spec, {
    domid: guest.domid,
    ...{ vdev: request.vdev, readOnly, cdrom, engine, backend },
    ontrace: ({ kind, message }) => {
      const grave = kind === "halted" || kind === "failed";
      if (grave || kind === "statistics" || options.verbose) {
        process.stderr.write(`vbdkit: ${kind}: ${message}\n`);
      }
    },
  });
  const { size, readOnly: refusesWrites } = vbd.store.info;
  const access = readOnly || refusesWrites ? "r" : "w";
  const { frontend: frontendPath, backend: backendPath } = vbd.paths;
  const name = guest.name ?? String(guest.domid);
  if (options.json) {
    const { domid } = guest;
    printJson({ domain: name, domid, vdev: vbd.vdev, size, access, frontendPath, backendPath });
  } else {
    const note = access === "r" ? ", read-only" : "";
    print(`${vbd.vdev} of ${name}: ${formatSize(size)}${note}; Ctrl-C detaches it`);
  }
  await Promise.race([stop.stopped(), vbd.ended]);
}

function refuse({ link }: AttachRequest, options: DiskOptions): void {
  if (link !== "thread") throw new UsageError("--link: on Xen the backend is this process");
  if (options.frontend !== undefined || options.protocol !== undefined) {
    const name = options.protocol === undefined ? "--frontend" : "--protocol";
    throw new UsageError(`${name}: the frontend is the guest's own, and decides by itself`);
  }
}

interface NamedDomain {
  readonly domid: number;
  /** Absent where the domain has none, or we may not read it. */
  readonly name: string | undefined;
}

/** By domid or name. Rejects with an Error that names the nearest, and those there are. */
async function findDomain(store: XenStore, wanted: string): Promise<NamedDomain> {
  const domids = ((await store.list("/local/domain")) ?? []).filter((text) =>
    /^\d{1,5}$/.test(text),
  );
  const domains = await Promise.all(
    domids.map(async (domid): Promise<NamedDomain> => {
      const name = await store.read(`/local/domain/${domid}/name`).catch(missingIfForbidden);
      return { domid: Number(domid), name };
    }),
  );
  const byDomid = domains.find(({ domid }) => String(domid) === wanted);
  return byDomid ?? findByName("domain", wanted, domains, ({ name, domid }) => name ?? `${domid}`);
}

function missingIfForbidden(error: unknown): undefined {
  if (error instanceof XenError && error.code === "EACCES") return undefined;
  throw error;
}
