/**
 * The device files through which Linux lends a process Xen's tables (drivers/xen/gntdev.c, gntalloc.c, evtchn.c).
 *
 * Invariant: a file is opened when it is first needed and no other ever is, /dev/xen/privcmd least of all: whoever has
 * that is the hypervisor's equal.
 */
import { closeSync, constants, openSync } from "node:fs";
import { type Ffi, requireFfi } from "../../io/ffi.ts";
import { XenError } from "../domain.ts";
import { readGrantLimit } from "./grant-limit.ts";

export type DeviceName = "gntdev" | "gntalloc" | "evtchn" | "xenbus";

/** What an open device may be asked for; the kernel's, or a double of it. */
export interface Devices {
  readonly calls: Ffi;
  /** A descriptor that does not block. Throws XenError with the code of open(2). */
  open(name: DeviceName): number;
  close(descriptor: number): void;
  /** Pages that all processes together may grant by gntalloc. */
  grantLimit(): number;
}

/** The module that makes each file, for people. */
const modules: Readonly<Record<DeviceName, string>> = {
  gntdev: "xen-gntdev",
  gntalloc: "xen-gntalloc",
  evtchn: "xen-evtchn",
  xenbus: "xenbus",
};

/** Those of `now` are opened at once, for whoever gives up the right to. */
export function systemDevices(now: readonly DeviceName[] = []): Devices {
  const calls = requireFfi("a domain of a Xen host");
  const opened = new Map(now.map((name) => [name, open(name)]));
  return {
    calls,
    open(name) {
      const descriptor = opened.get(name);
      opened.delete(name);
      return descriptor ?? open(name);
    },
    close: closeSync,
    grantLimit: readGrantLimit,
  };
}

function open(name: DeviceName): number {
  const path = `/dev/xen/${name}`;
  try {
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (cause) {
    const { code = "EIO", message } = cause as NodeJS.ErrnoException;
    const hint =
      code === "ENOENT" || code === "ENXIO"
        ? `: is this a domain of Xen, with ${modules[name]} loaded?`
        : "";
    throw new XenError(code, `${path}: ${message}${hint}`, { cause });
  }
}
