/**
 * A real Xen with a Linux dom0 under QEMU's emulation: boots, runs commands in dom0, ends. Needs no rights.
 *
 * The command line answers to qemu-system(1), xen-command-line(7) and what their emulated processor can do. dom0's
 * agent (root/agent) speaks lines over a serial port of virtio; scripts and what they print are files in a folder of the
 * host that dom0 mounts (9p).
 *
 * Invariant: QEMU ends with its Lab, and with this process, however that ends.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, globSync, openSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { keepCompiled, packCheckout } from "./checkout.ts";
import { type LabImages, labImages, type XenVersion } from "./images.ts";

const FOLDERS = join(tmpdir(), "vbdkit-lab-");
/** Seven seconds on a machine of 2022 with nothing else to do. */
const BOOT_LIMIT_SECONDS = 240;
const COMMAND_LIMIT_SECONDS = 180;
/** Longer than those by so much are the limits where time counts instructions: there a host that is busy is to be waited
 * for. */
const STEADY_PATIENCE = 5;
const KEEPING_LIMIT_SECONDS = 60;
const CHECKOUT_IMAGE = "checkout.squashfs";
/** Of the console, in an error. */
const LINES_SHOWN = 30;

/** What a command left. */
export interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface LabOptions {
  /** MiB of dom0. */
  readonly dom0Mebibytes?: number;
  /** MiB for guests, beside dom0. */
  readonly guestMebibytes?: number;
  /** A second console in dom0, for shell(). */
  readonly shell?: boolean;
  /** An instruction takes two nanoseconds, so that a host that is busy makes nothing late; else time is the host's. For
   * guests with one processor: several become slow. */
  readonly steadyTime?: boolean;
  /** Of Xen, with the Linux of the Debian release that has it; "4.17" if absent. */
  readonly version?: XenVersion;
  /** Further words of Xen's command line. */
  readonly xen?: string;
  /** Further words of dom0's kernel command line. */
  readonly linux?: string;
}

export interface RunOptions {
  /** Seconds after which the command is killed and run() throws. */
  readonly timeout?: number;
}

/** A command that runs in dom0. */
export interface LabProcess extends AsyncDisposable {
  /** Resolves when it has ended, whatever its status. */
  readonly outcome: Promise<Outcome>;
  /** What it has printed so far. */
  readonly output: { readonly stdout: string; readonly stderr: string };
  /** Sends a signal ("TERM", "KILL") to it and its children. */
  signal(name: string): void;
}

export class Lab implements AsyncDisposable {
  /** A folder that dom0 has at /lab. */
  readonly folder: string;
  readonly #qemu: ChildProcess;
  readonly #agent: Socket;
  readonly #patience: number;
  readonly #jobs = new Map<number, (status: number) => void>();
  #lastJob = 0;
  #ready: () => void = () => {};

  private constructor(folder: string, qemu: ChildProcess, options: LabOptions) {
    this.folder = folder;
    this.#patience = options.steadyTime === true ? STEADY_PATIENCE : 1;
    this.#qemu = qemu;
    // Each command that runs listens for the end of it.
    qemu.setMaxListeners(0);
    this.#agent = qemu.stdio[3] as Socket;
    createInterface({ input: this.#agent }).on("line", (line) => this.#heard(line));
  }

  static async boot(options: LabOptions = {}): Promise<Lab> {
    const images = await labImages(undefined, options.version);
    await removeFoldersOfTheDead();
    const folder = await mkdtemp(`${FOLDERS}${process.pid}-`);
    await mkdir(join(folder, "jobs"));
    await packCheckout(images.system, join(folder, CHECKOUT_IMAGE));
    const lab = new Lab(folder, await startQemu(images, folder, options), options);
    try {
      await lab.#untilReady();
      return lab;
    } catch (error) {
      await lab.#end();
      throw error;
    }
  }

  /** Xen's and dom0's console since the start. */
  get console(): string {
    return readFileSync(join(this.folder, "console.log"), "utf8").replaceAll("\r", "");
  }

  /** Runs a script of bash in dom0, in the checkout, to its end. */
  async run(script: string, options: RunOptions = {}): Promise<Outcome> {
    await using running = await this.start(script);
    const seconds = options.timeout ?? COMMAND_LIMIT_SECONDS * this.#patience;
    const outcome = await this.#within(seconds, `running: ${script}`, running.outcome);
    return outcome;
  }

  /** Like run(); anything but success throws. Returns what it printed. */
  async check(script: string, options: RunOptions = {}): Promise<string> {
    const { status, stdout, stderr } = await this.run(script, options);
    if (status === 0) return stdout;
    throw new Error(`status ${status} of: ${script}\n${stdout}${stderr}`);
  }

  /** Starts a script, which goes on beside others. Disposal kills what is left of it. */
  async start(script: string): Promise<LabProcess> {
    const number = ++this.#lastJob;
    const folder = join(this.folder, "jobs", String(number));
    await mkdir(folder);
    await writeFile(join(folder, "script"), script);
    const { promise: ended, resolve } = Promise.withResolvers<number>();
    this.#jobs.set(number, resolve);
    this.#agent.write(`run ${number}\n`);
    const text = async (name: string) => await readFile(join(folder, name), "utf8");
    const outcome = ended.then(async (status) => ({
      status,
      stdout: await text("stdout"),
      stderr: await text("stderr"),
    }));
    const signal = (name: string) => {
      this.#agent.write(`signal ${number} ${name}\n`);
    };
    return {
      outcome,
      get output() {
        // It has printed nothing before dom0 has begun it.
        const soFar = (name: string) =>
          existsSync(join(folder, name)) ? readFileSync(join(folder, name), "utf8") : "";
        return { stdout: soFar("stdout"), stderr: soFar("stderr") };
      },
      signal,
      [Symbol.asyncDispose]: async () => {
        if (!this.#jobs.has(number) || this.#qemu.exitCode !== null) return;
        signal("KILL");
        await outcome;
      },
    };
  }

  /** A prompt of dom0 on this process's terminal, until its end; resolves with the status of the shell. */
  async shell(): Promise<number> {
    const terminal = this.#qemu.stdio[4] as Socket;
    const { columns = 80, rows = 24 } = process.stdout;
    await using running = await this.start(
      `export TERM='${process.env.TERM ?? "dumb"}'\nexec <>/dev/hvc1 >&0 2>&0\n` +
        `stty sane cols ${columns} rows ${rows}\nexec setsid --ctty --wait bash -i`,
    );
    const { stdin, stdout } = process;
    terminal.pipe(stdout, { end: false });
    stdin.pipe(terminal);
    if (stdin.isTTY) stdin.setRawMode(true);
    try {
      return (await running.outcome).status;
    } finally {
      if (stdin.isTTY) stdin.setRawMode(false);
      stdin.unpipe(terminal);
      stdin.destroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#keepCompiled().catch(() => {
      // Later labs begin slower, which is all.
    });
    await this.#end();
  }

  /** What Node compiled in this lab, later ones need not. */
  async #keepCompiled(): Promise<void> {
    const script = 'cd /run/compile-cache/new; [ -z "$(ls)" ] || tar -cf /lab/compile-cache.tar .';
    await this.run(script, { timeout: KEEPING_LIMIT_SECONDS });
    const archive = join(this.folder, "compile-cache.tar");
    if (existsSync(archive)) await keepCompiled(archive);
  }

  async #end(): Promise<void> {
    // Nothing in there is worth an orderly end.
    if (this.#qemu.exitCode === null && this.#qemu.signalCode === null) {
      this.#qemu.kill("SIGKILL");
      await once(this.#qemu, "exit");
    }
    await rm(this.folder, { recursive: true, force: true });
  }

  async #untilReady(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#ready = resolve;
    await this.#within(BOOT_LIMIT_SECONDS * this.#patience, "booting", promise);
  }

  #heard(line: string): void {
    if (line === "ready") {
      this.#ready();
      return;
    }
    const [number, status] = line.split(" ").map(Number);
    this.#jobs.get(number!)?.(status!);
    this.#jobs.delete(number!);
  }

  /** Throws, with the end of the console, when it takes too long or QEMU ends. */
  async #within<T>(seconds: number, doing: string, work: Promise<T>): Promise<T> {
    const over = new AbortController();
    const failure = (why: string) => {
      const lines = this.console.trimEnd().split("\n").slice(-LINES_SHOWN).join("\n");
      throw new Error(`the lab ${why} while ${doing}\nThe end of its console:\n${lines}`);
    };
    try {
      return await Promise.race([
        work,
        once(this.#qemu, "exit", { signal: over.signal }).then(() => failure("ended")),
        once(AbortSignal.any([AbortSignal.timeout(seconds * 1000), over.signal]), "abort").then(
          () => failure(`had not finished after ${seconds} s`),
        ),
      ]);
    } finally {
      over.abort();
    }
  }
}

/** A process that is killed leaves its folder behind. */
async function removeFoldersOfTheDead(): Promise<void> {
  for (const folder of globSync(`${FOLDERS}*-*`)) {
    const owner = Number(folder.slice(FOLDERS.length).split("-")[0]);
    if (owner > 0 && !existsSync(`/proc/${owner}`)) {
      await rm(folder, { recursive: true, force: true });
    }
  }
}

async function startQemu(
  images: LabImages,
  folder: string,
  options: LabOptions,
): Promise<ChildProcess> {
  const { dom0Mebibytes = 768, guestMebibytes = 448 } = options;
  const { system } = images;
  const xen = [
    `dom0_mem=${dom0Mebibytes}M,max:${dom0Mebibytes}M`,
    "console=com1 com1=115200,8n1 loglvl=warning noreboot=0",
    // Without eager-fpu the registers of floating point get mixed up under emulation as soon as a guest runs.
    "spec-ctrl=no,eager-fpu",
    options.xen ?? "",
  ].join(" ");
  const linux = `console=hvc0 earlyprintk=xen quiet ${options.linux ?? ""}`;
  // dom0 finds them as /dev/vda and /dev/vdb, in this order.
  const disk = (id: string, file: string) => [
    ...["-drive", `file=${file},format=raw,if=none,id=${id},readonly=on`],
    ...["-device", `virtio-blk-pci,drive=${id}`],
  ];
  const words = [
    // A toolstack gives a disk ten seconds, which on a busy host are as few instructions as it has time for.
    ...(options.steadyTime === true
      ? ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=1,sleep=on"]
      : ["-accel", "tcg,thread=multi,tb-size=512"]),
    // An emulated processor with SMAP kills dom0 at its first iret. One processor: with two, events take milliseconds.
    ...["-machine", "pc", "-cpu", "max,-smap", "-smp", "1"],
    ...["-m", `${dom0Mebibytes + guestMebibytes + 64}`],
    ..."-nodefaults -no-user-config -display none -serial stdio -monitor none -no-reboot".split(
      " ",
    ),
    ...["-kernel", images.xen, "-append", xen],
    ...["-initrd", `${images.kernel} ${linux},${images.initramfs}`],
    ...disk("root", images.root),
    ...disk("checkout", join(folder, CHECKOUT_IMAGE)),
    ...["-device", "virtio-serial-pci"],
    ...["-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=agent"],
    ...(options.shell === true
      ? ["-chardev", "socket,id=shell,fd=4", "-device", "virtconsole,chardev=shell"]
      : []),
    ...["-virtfs", `local,id=lab,mount_tag=lab,path=${folder},security_model=none`],
  ];
  for (const data of ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"]) {
    words.push("-L", system.path(data));
  }
  const log = openSync(join(folder, "console.log"), "a");
  // The kernel ends QEMU with us: no handler of ours runs when we are killed.
  const program = system.command("usr/bin/qemu-system-x86_64");
  const child = spawn("setpriv", ["--pdeathsig", "KILL", ...program, ...words], {
    env: { ...process.env, QEMU_MODULE_DIR: system.path("usr/lib/x86_64-linux-gnu/qemu") },
    stdio: ["ignore", log, log, "pipe", "pipe"],
  });
  closeSync(log);
  await once(child, "spawn");
  return child;
}
