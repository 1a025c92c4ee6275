/** What tests of the xenstore's state share: a folder, and all that is in a xenstore. */
import { accessSync, constants } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { XenStorePermission } from "../../../src/xen/domain.ts";
import { XenStoreClient } from "../../../src/xen/xenstore/client.ts";
import type { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { formatPermission } from "../../../src/xen/xenstore/permissions.ts";

interface Folder extends AsyncDisposable {
  /** A path in it. */
  file(name: string): string;
}

/** In memory where that can be: thousands of daemons begin and end, and each waits for its disk. */
export async function fastFolder(): Promise<Folder> {
  let parent = tmpdir();
  try {
    accessSync("/dev/shm", constants.W_OK);
    parent = "/dev/shm";
  } catch {}
  const path = await mkdtemp(join(parent, "vbdkit-test-"));
  return {
    file: (name: string) => join(path, name),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

/** A line for each node: path, permissions, value in hexadecimal. */
export async function wholeTree(daemon: XenStoreDaemon): Promise<string[]> {
  await using client = new XenStoreClient(daemon.connect(0));
  const lines: string[] = [];
  const line = (path: string, permissions: XenStorePermission[] | undefined, value?: Uint8Array) =>
    lines.push(
      `${path} ${permissions?.map(formatPermission).join()} = ${Buffer.from(value ?? []).toString("hex")}`,
    );
  for (const path of ["@introduceDomain", "@releaseDomain"]) {
    line(path, await client.getPermissions(path));
  }
  const waiting = ["/"];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    line(path, await client.getPermissions(path), await client.readBytes(path));
    for (const name of ((await client.list(path)) ?? []).reverse()) {
      waiting.push(path === "/" ? `/${name}` : `${path}/${name}`);
    }
  }
  return lines;
}
