/** What `vbdkit connect` is told: a device that is there, by its vdev or directory, or a disk in xl's syntax, for which a
 * device is made. */
import { resolve } from "node:path";
import type { NewHostVbd } from "../index.ts";
import { UsageError } from "./errors.ts";
import { parseXlDisk } from "./xl-disk.ts";

/** `text` is as typed, for people. */
export type ConnectTarget =
  | { readonly text: string; readonly device: string }
  | {
      readonly text: string;
      readonly disk: NewHostVbd;
      /** The domain that serves it, by name or domid; undefined for our own. */
      readonly backend: string | undefined;
    };

/** Throws UsageError. */
export function connectTarget(words: readonly string[]): ConnectTarget {
  const text = words.join(" ");
  const [first] = words;
  if (words.length === 1 && !/[,=]/.test(first!)) {
    // Directories of the xenstore end in a device's number.
    if (first!.includes("/") && !/^(\/local\/domain\/\d+\/)?device\/[^/]+\/\d+$/.test(first!)) {
      throw new UsageError(
        `${first} is no device's directory; a disk that is to be served has a vdev: vdev=xvdb,target=${first}`,
      );
    }
    return { text, device: first! };
  }
  const disk = parseXlDisk(words);
  if (disk.cdrom || disk.target === undefined) {
    throw new UsageError("cdrom: the frontend of a drive is a guest's");
  }
  if (disk.backendType === "standalone") {
    throw new UsageError("backendtype=standalone is of virtio disks; write phy, qdisk or tap");
  }
  const { backend, backendType, format, script, discard } = disk;
  // Another domain has folders of its own.
  const path = backend === undefined && backendType !== "tap" && script === undefined;
  return {
    text,
    backend,
    disk: {
      vdev: disk.vdev,
      target: path ? resolve(disk.target) : disk.target,
      readOnly: disk.readOnly,
      ...(backendType === undefined ? {} : { backendType }),
      ...(format === undefined ? {} : { format }),
      ...(script === undefined ? {} : { script }),
      ...(discard === undefined ? {} : { discard }),
    },
  };
}
