/**
 * `vbdkit xenstore`: Debian's xenstore-ls, -list, -read, -exists, -write, -rm, -chmod and -watch over the socket of a
 * running server, with their output (tools/xenstore/xenstore_client.c), for machines that do not have them.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Command, type OptionValues } from "commander";
import type { XenStore, XenStorePermission } from "../../xen/domain.ts";
import type { XenStoreClient } from "../../xen/xenstore/index.ts";
import { ExitCode, UsageError } from "../errors.ts";
import { print } from "../output.ts";
import { escapeValue, listedName, listedPath, unescapeValue } from "../xenstore-text.ts";

export function xenstoreCommand(): Command {
  const group = new Command("xenstore")
    .description("look into a xenstore: ls, list, read, exists, write, rm, chmod, watch")
    .option("-s, --socket <SOCKET>", "the xenstore's socket, or the folder of a running server")
    .addHelpText(
      "after",
      `
Without -s the socket is $XENSTORED_PATH, the one in $VBDKIT_MACHINE, or the system's own.

Examples:
  vbdkit xenstore -s /tmp/vbdkit-x1y2z3 ls -f
  vbdkit xenstore read /local/domain/0/name
  vbdkit xenstore watch -n 2 /local/domain/0/backend
`,
    );
  const add = (
    usage: string,
    description: string,
    act: (store: XenStoreClient, words: string[], options: OptionValues) => Promise<void>,
  ) => {
    const command = new Command(usage.split(" ")[0])
      .description(description)
      .arguments(usage.slice(usage.indexOf(" ") + 1))
      .action(async () => {
        await using store = await openStore(group.opts().socket);
        await act(store, command.args, command.opts());
      });
    group.addCommand(command);
    return command;
  };
  add("ls [PATH]", "the tree below PATH, with values", (store, [path], options) =>
    list(store, path ?? "/", 0, options),
  )
    .option("-f, --full", "the whole path of every node")
    .option("-p, --permissions", "permissions too");
  add("list <PATH...>", "the names of the children", async (store, paths, { paths: whole }) => {
    for (const path of paths) {
      for (const name of (await store.list(path)) ?? missing(path)) {
        print(whole ? below(path, name) : name);
      }
    }
  }).option("-p, --paths", "whole paths");
  add("read <PATH...>", "values", async (store, paths, { paths: shown, raw }) => {
    for (const path of paths) {
      const value = (await store.readBytes(path)) ?? missing(path);
      if (shown) process.stdout.write(`${path}: `);
      if (raw) process.stdout.write(value);
      else print(escapeValue(value));
    }
  })
    .option("-p, --paths", "the path before each value")
    .option("-R, --raw", "the bytes as they are, and no line's end");
  add("exists <PATH...>", "tells by its exit code whether all are there", async (store, paths) => {
    for (const path of paths) {
      if ((await store.readBytes(path)) === undefined) process.exitCode = ExitCode.failure;
    }
  });
  add(
    "write <PATH> <VALUE> [MORE...]",
    "writes values, all in one transaction",
    (store, words, { raw }) =>
      writeAll(store, words, raw ? (word) => Buffer.from(word) : unescapeValue),
  ).option("-R, --raw", "a backslash is a backslash");
  add("rm <PATH...>", "removes nodes and what is below them", removeAll).option(
    "-t, --tidy",
    "their parents too, where that leaves them empty",
  );
  add(
    "chmod <PATH> <PERMISSION...>",
    "sets permissions: n0 (owner 0, nobody else), r1, w2, b3",
    async (store, [path, ...words], options) => {
      await changePermissions(store, path!, words.map(parsePermission), options);
    },
  )
    .option("-r, --recursive", "of what is below it too")
    .option("-u, --upto", "of its parents too");
  add("watch <PATH...>", "prints what changes, until stopped", watch).option(
    "-n, --count <N>",
    "end after N events",
    parseCount,
  );
  return group;
}

async function openStore(given: string | undefined): Promise<XenStoreClient> {
  const { XenStoreClient, xenStoreSocketPath } = await import("../../xen/xenstore/index.ts");
  const { XENSTORED_PATH, VBDKIT_MACHINE } = process.env;
  const named = given ?? XENSTORED_PATH ?? VBDKIT_MACHINE;
  const path = named ?? xenStoreSocketPath(process.env);
  if (named === undefined && !existsSync(path)) {
    throw new UsageError(
      "which xenstore? Name its socket or a running server's folder with -s, XENSTORED_PATH or VBDKIT_MACHINE",
    );
  }
  const inFolder = join(path, "xenstored.sock");
  return await XenStoreClient.connect(existsSync(inFolder) ? inFolder : path);
}

function missing(path: string): never {
  throw new Error(`${path}: there is no such node`);
}

async function list(
  store: XenStore,
  path: string,
  depth: number,
  options: OptionValues,
): Promise<void> {
  const names = await store.list(path);
  // A node that goes away while we look is no error; one that never was is.
  if (names === undefined) return depth === 0 ? missing(path) : undefined;
  for (const name of names) {
    const child = below(path, name);
    const value = await store.readBytes(child);
    const access = options.permissions ? await store.getPermissions(child) : undefined;
    const permissions = access?.map(permission).join(",");
    print(
      options.full
        ? listedPath(child, value, permissions)
        : listedName(" ".repeat(depth) + name, value, permissions, listWidth()),
    );
    await list(store, child, depth + 1, options);
  }
}

/** As xenstore-ls: the terminal's width, or 80 columns. */
function listWidth(): number {
  return process.stdout.isTTY ? process.stdout.columns - 2 : 80;
}

/** A node that is not there needs no removing. */
async function removeAll(store: XenStore, paths: string[], options: OptionValues): Promise<void> {
  for (const path of paths) {
    if ((await store.readBytes(path)) !== undefined) await store.remove(path);
    let parent = parentOf(path);
    while (options.tidy && parent !== undefined && (await store.list(parent))?.length === 0) {
      await store.remove(parent);
      parent = parentOf(parent);
    }
  }
}

async function changePermissions(
  store: XenStore,
  path: string,
  permissions: XenStorePermission[],
  options: OptionValues,
): Promise<void> {
  await store.setPermissions(path, permissions);
  for (let up = options.upto ? parentOf(path) : undefined; up !== undefined; up = parentOf(up)) {
    await store.setPermissions(up, permissions);
  }
  if (!options.recursive) return;
  for (const name of (await store.list(path)) ?? []) {
    await changePermissions(store, below(path, name), permissions, { recursive: true });
  }
}

function below(path: string, name: string): string {
  return path === "/" ? `/${name}` : `${path}/${name}`;
}

/** Undefined above "/a", as for the root itself. */
function parentOf(path: string): string | undefined {
  const slash = path.lastIndexOf("/");
  return slash > 0 ? path.slice(0, slash) : undefined;
}

async function writeAll(
  store: XenStore,
  words: string[],
  bytesOf: (word: string) => Uint8Array,
): Promise<void> {
  if (words.length % 2 !== 0) throw new UsageError("write takes pairs: PATH VALUE");
  await store.transaction(async (operations) => {
    for (let i = 0; i < words.length; i += 2) {
      await operations.write(words[i]!, bytesOf(words[i + 1]!));
    }
  });
}

async function watch(store: XenStoreClient, paths: string[], options: OptionValues): Promise<void> {
  let left = (options.count as number | undefined) ?? Number.POSITIVE_INFINITY;
  const done = Promise.withResolvers<void>();
  for (const path of paths) {
    await store.watch(path, (changed) => {
      if (left <= 0) return;
      print(changed);
      if (--left === 0) done.resolve();
    });
  }
  const lost = await Promise.race([done.promise, store.closed]);
  if (lost !== undefined) throw lost;
}

const letters = { none: "n", read: "r", write: "w", both: "b" } as const;

function permission({ domid, access }: XenStorePermission): string {
  return `${letters[access]}${domid}`;
}

function parsePermission(word: string): XenStorePermission {
  const match = /^([nrwb])(\d{1,5})$/.exec(word);
  const access = Object.entries(letters).find(([, letter]) => letter === match?.[1])?.[0];
  if (match === null || access === undefined) {
    throw new UsageError(`"${word}" is not a permission: write n, r, w or b and a domid, as in r1`);
  }
  return { domid: Number(match[2]), access: access as XenStorePermission["access"] };
}

function parseCount(text: string): number {
  const count = Number(text);
  if (!Number.isSafeInteger(count) || count < 1)
    throw new UsageError(`--count ${text}: not a count`);
  return count;
}
