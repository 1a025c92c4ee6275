/** The NBD servers that are compared, each a process with one raw file on a Unix socket, as its own documentation starts
 * it. */
import { type ChildProcess, spawn } from "node:child_process";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { endChild, profiling } from "../harness/child.ts";

export const OURS = "vbdkit";
export const NBDKIT = "nbdkit";
export const NBDKIT_ONE = "nbdkit 1 thr.";
export const QEMU = "qemu-nbd";
export const QEMU_URING = "qemu-nbd uring";
export const STORAGE_DAEMON = "qemu-s-daemon";

const program = join(import.meta.dirname, "../../bin/vbdkit.js");
/** Clients of one server at most: more than any row has. */
const CLIENTS = 8;
const PATIENCE_MILLISECONDS = 20_000;
const LOOK_MILLISECONDS = 20;

/** The command of each, without locks: all have the file at once, and one of them is at work. */
export const servers: Readonly<
  Record<string, (file: string, socket: string) => readonly [string, ...string[]]>
> = {
  [OURS]: (file, socket) => [
    process.execPath,
    ...process.execArgv,
    ...profiling(),
    program,
    "serve",
    "--shared",
    "--unix",
    socket,
    "file",
    file,
  ],
  [NBDKIT]: (file, socket) => ["nbdkit", "-f", "-U", socket, "file", file],
  [NBDKIT_ONE]: (file, socket) => ["nbdkit", "-f", "-t", "1", "-U", socket, "file", file],
  [QEMU]: (file, socket) => qemuNbd(file, socket, "threads"),
  [QEMU_URING]: (file, socket) => qemuNbd(file, socket, "io_uring"),
  [STORAGE_DAEMON]: (file, socket) => [
    "qemu-storage-daemon",
    "--blockdev",
    `driver=file,node-name=disk,filename=${file},locking=off`,
    "--nbd-server",
    `addr.type=unix,addr.path=${socket},max-connections=${CLIENTS}`,
    "--export",
    // As all the others: the export has no name.
    "type=nbd,id=export,node-name=disk,name=,writable=on",
  ],
};

function qemuNbd(file: string, socket: string, engine: string): readonly [string, ...string[]] {
  const image = `driver=raw,file.driver=file,file.filename=${file},file.locking=off`;
  const mode = ["-t", "-e", String(CLIENTS), "--image-opts", `${image},file.aio=${engine}`];
  return ["qemu-nbd", ...mode, "-k", socket];
}

export class NbdServer implements AsyncDisposable {
  readonly name: string;
  readonly uri: string;
  readonly file: string;
  readonly #child: ChildProcess;

  /** Resolves when it accepts clients. */
  static async start(name: string, file: string, socket: string): Promise<NbdServer> {
    const [command, ...words] = servers[name]!(file, socket);
    const child = spawn(command, words, { stdio: ["ignore", "ignore", "pipe"] });
    let complaints = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      complaints = (complaints + text).slice(-1000);
    });
    const server = new NbdServer(name, file, socket, child);
    const late = performance.now() + PATIENCE_MILLISECONDS;
    while (!(await accepts(socket))) {
      if (child.exitCode === null && performance.now() < late) await sleep(LOOK_MILLISECONDS);
      else {
        await server[Symbol.asyncDispose]();
        throw new Error(`${name} does not serve: ${complaints}`);
      }
    }
    return server;
  }

  private constructor(name: string, file: string, socket: string, child: ChildProcess) {
    this.name = name;
    this.file = file;
    this.uri = `nbd+unix:///?socket=${socket}`;
    this.#child = child;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.#child);
  }
}

/** Whether somebody listens; who only looks hangs up at once, which servers are used to. */
function accepts(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect(path, () => {
    socket.destroy();
    resolve(true);
  });
  socket.on("error", () => resolve(false));
  return promise;
}
