/** What the NBD tests share: temporary folders, foreign programs, and promises around single requests. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { allocateRegion, SegmentList } from "../../src/io/memory.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { NbdServer, type NbdServerOptions } from "../../src/nbd/index.ts";
import { BlockRequest, type BlockStore, type Operation } from "../../src/store/block-store.ts";
import { MemoryDouble } from "./memory-double.ts";

export interface Folder extends AsyncDisposable {
  readonly path: string;
  file(name: string): string;
}

export async function temporaryFolder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), "vbdkit-nbd-"));
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

export interface Result {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, for at most a minute. */
export async function run(program: string, ...parameters: string[]): Promise<Result> {
  const child = spawn(program, parameters, { stdio: ["ignore", "pipe", "pipe"], timeout: 60_000 });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (text) => {
    stdout += text;
  });
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  return { code, stdout, stderr };
}

/** Runs a program that must succeed; answers with what it printed. */
export async function succeed(program: string, ...parameters: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, ...parameters);
  if (code !== 0)
    throw new Error(`${program} ${parameters.join(" ")}: ${code}\n${stdout}${stderr}`);
  return stdout;
}

export interface ForeignServer extends AsyncDisposable {
  readonly uri: string;
  kill(): Promise<void>;
}

/** Starts a server that listens on `socket`, and waits until it does. */
export async function startServer(
  socket: string,
  program: string,
  ...parameters: string[]
): Promise<ForeignServer> {
  const child: ChildProcess = spawn(program, parameters, { stdio: ["ignore", "ignore", "pipe"] });
  let stderr = "";
  child.stderr?.on("data", (text) => {
    stderr += text;
  });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  for (let i = 0; !existsSync(socket); i++) {
    if (i > 500 || child.exitCode !== null) throw new Error(`${program} does not start: ${stderr}`);
    await sleep(10);
  }
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
  };
  return {
    uri: `nbd+unix:///?socket=${socket}`,
    kill,
    [Symbol.asyncDispose]: kill,
  };
}

export function startNbdkit(folder: Folder, ...parameters: string[]): Promise<ForeignServer> {
  const socket = folder.file("nbdkit.sock");
  return startServer(socket, "nbdkit", "-f", "-U", socket, ...parameters);
}

export interface Served extends AsyncDisposable {
  readonly reactor: Reactor;
  readonly store: MemoryDouble;
  readonly server: NbdServer;
  readonly folder: Folder;
  readonly uri: string;
  readonly socket: string;
}

/** A server of one disk in memory on a Unix socket. */
export async function serve(
  size: number,
  options: Partial<NbdServerOptions> & { readOnly?: boolean; minimum?: number } = {},
): Promise<Served> {
  const { readOnly, minimum, ...rest } = options;
  const reactor = new Reactor();
  const folder = await temporaryFolder();
  const store = new MemoryDouble(reactor, size, {
    ...(readOnly === undefined ? {} : { readOnly }),
    ...(minimum === undefined ? {} : { minimum }),
  });
  const server = new NbdServer([{ name: "", store, description: "a disk for tests" }], {
    reactor,
    ...rest,
  });
  const socket = folder.file("nbd.sock");
  const { uri } = await server.listen({ path: socket });
  return {
    reactor,
    store,
    server,
    folder,
    uri,
    socket,
    async [Symbol.asyncDispose]() {
      await server.close();
      await folder[Symbol.asyncDispose]();
    },
  };
}

/** Submits one request and resolves with its status. Data of a write is copied in, data of a read copied out. */
export function perform(
  store: BlockStore,
  reactor: Reactor,
  operation: Operation,
  offset: number,
  length: number,
  options: { flags?: number; data?: Uint8Array; pieces?: number } = {},
): Promise<{ status: number; data: Uint8Array }> {
  const pieces = options.pieces ?? 1;
  const region = allocateRegion(2 * length + pieces);
  const list = new SegmentList(pieces);
  const piece = Math.ceil(length / pieces);
  let filled = 0;
  for (let i = 0; i < pieces; i++) {
    const size = Math.min(piece, length - filled);
    // Gaps between the pieces, so that they are not merged.
    list.add(region, filled + i, size);
    if (options.data) region.bytes.set(options.data.subarray(filled, filled + size), filled + i);
    filled += size;
  }
  return new Promise((resolve) => {
    const request = new BlockRequest({
      completed({ status }) {
        const data = new Uint8Array(length);
        let at = 0;
        for (let i = 0; i < list.count; i++) {
          const start = list.starts[i]!;
          data.set(region.bytes.subarray(start, start + list.lengths[i]!), at);
          at += list.lengths[i]!;
        }
        region[Symbol.dispose]();
        resolve({ status, data });
      },
    });
    request.operation = operation;
    request.flags = options.flags ?? 0;
    request.offset = offset;
    request.length = length;
    request.segments = list;
    store.submit(request);
    reactor.settle();
  });
}
