/** Xen's own C xenstored (Debian's xen-utils-4.17), with a hypervisor made of xenstored-shim.c. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { XenError } from "../../src/xen/domain.ts";
import { connectSocket } from "../../src/xen/xenstore/socket-transport.ts";
import type { XenStoreTransport } from "../../src/xen/xenstore/transport.ts";
import { unpacked } from "./debian.ts";

const source = join(import.meta.dirname, "xenstored-shim.c");

export class GenuineXenstored implements AsyncDisposable {
  /** Of domain 0, as XENSTORED_PATH wants it. */
  readonly socket: string;
  readonly #scratch: string;
  readonly #process: ChildProcess;
  readonly #exit: Promise<unknown>;

  private constructor(scratch: string, child: ChildProcess) {
    this.#scratch = scratch;
    this.socket = join(scratch, "socket");
    this.#process = child;
    this.#exit = once(child, "exit");
  }

  /** `words` are further options of xenstored(8). */
  static async start(words: readonly string[] = []): Promise<GenuineXenstored> {
    const scratch = mkdtempSync(join(tmpdir(), "vbdkit-xenstored-"));
    const shim = join(scratch, "shim.so");
    execFileSync("gcc", ["-shared", "-fPIC", "-O2", "-o", shim, source, "-lpthread"]);
    const { path, environment } = await unpacked("xen-utils-4.17");
    const output = openSync(join(scratch, "log"), "w");
    const child = spawn(
      path("usr/lib/xen-4.17/bin/xenstored"),
      // A client that reads late is not what is compared.
      ["--no-fork", "--internal-db=on", "--timeout", "watch-event=0", ...words],
      {
        env: {
          ...environment,
          LD_PRELOAD: shim,
          VBDKIT_DIRECTORY: scratch,
          XENSTORED_RUNDIR: scratch,
        },
        stdio: ["ignore", output, output],
      },
    );
    closeSync(output);
    const daemon = new GenuineXenstored(scratch, child);
    (await daemon.connect(0)).close();
    return daemon;
  }

  /** A connection of domain 0, or of a domain that was introduced, which speaks through its ring. */
  async connect(domid: number): Promise<XenStoreTransport> {
    const path = domid === 0 ? this.socket : join(this.#scratch, `domain-${domid}`);
    for (;;) {
      try {
        return await connectSocket(path);
      } catch (error) {
        // It does not listen yet.
        const { code } = error as XenError;
        const runs = this.#process.exitCode === null && this.#process.signalCode === null;
        if (!runs || (code !== "ENOENT" && code !== "ECONNREFUSED")) {
          throw new Error(this.state, { cause: error });
        }
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  }

  /** What the hypervisor says of a domain from now on. Resolves when the daemon has looked. */
  async hypervisor(word: "dead" | "shutdown" | "alive", domid: number): Promise<void> {
    const socket = connect(join(this.#scratch, "hypervisor"));
    socket.write(`${word} ${domid}`);
    for await (const _ of socket);
  }

  /** Whether it runs, and what it printed. */
  get state(): string {
    const { exitCode, signalCode } = this.#process;
    const log = readFileSync(join(this.#scratch, "log"), "utf8");
    return `xenstored ${signalCode ?? exitCode ?? "runs"}: ${log}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#exit;
    rmSync(this.#scratch, { recursive: true });
  }
}
