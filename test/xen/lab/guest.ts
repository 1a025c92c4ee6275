/**
 * A guest of the lab's Xen, made by xl(1) as xl.cfg(5) says, and commands in it. Its agent (guest/agent) speaks over the
 * console, so that every kind of guest has it whose kernel has a console.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Lab, Outcome, RunOptions } from "./lab.ts";

const POLL_MILLISECONDS = 100;
/** GRUB reads a kernel in half a minute, and in some where others use the machine. */
const WAIT_LIMIT_SECONDS = 600;
const COMMAND_LIMIT_SECONDS = 180;
/** A terminal takes 4095 bytes as a line. */
const PIECE_LENGTH = 3000;

export interface GuestOptions {
  readonly name: string;
  /** "grub" is a PV guest that boots what GRUB finds on its disks. */
  readonly kind?: "pv" | "pvh" | "grub";
  readonly vcpus?: number;
  readonly mebibytes?: number;
  /** In the syntax of xl-disk-configuration(5). */
  readonly disks?: readonly string[];
  /** "tools" (the default) is dom0's root file system, on the read-only disk xvdz that dom0's kernel serves, with memory
   * over it; "/dev/xvda" an ext4 file system with /bin/busybox; "memory" nothing but busybox. */
  readonly root?: string;
  /** The disk xvdz, where something other than dom0's kernel is to serve it. */
  readonly rootDisk?: string;
  /** Further words of the kernel's command line. */
  readonly linux?: string;
  /** Further lines of xl.cfg(5). */
  readonly configuration?: string;
}

export class Guest implements AsyncDisposable {
  readonly name: string;
  readonly #lab: Lab;
  #domid: number;
  /** What earlier lives printed: each domain that it was has a log. */
  #earlier = "";
  #log: ConsoleLog;
  #lastJob = 0;

  private constructor(lab: Lab, name: string, domid: number, log: ConsoleLog) {
    this.#lab = lab;
    this.name = name;
    this.#domid = domid;
    this.#log = log;
  }

  /** Makes the guest and lets it run. */
  static async create(lab: Lab, options: GuestOptions): Promise<Guest> {
    const { name } = options;
    const tools = (options.root ?? "tools") === "tools" && options.kind !== "grub";
    if (tools && options.rootDisk === undefined) await lab.check("modprobe xen-blkback");
    const log = new ConsoleLog(lab, name);
    await lab.check(`cat >/run/xen/${name}.cfg <<'EOF'\n${configuration(options, tools)}EOF`);
    await lab.check(`xl create /run/xen/${name}.cfg`);
    const domid = Number(await lab.check(`xl domid ${name}`));
    return new Guest(lab, name, domid, log);
  }

  /** Another after each move. */
  get domid(): number {
    return this.#domid;
  }

  /** What it has printed since its creation. */
  get console(): string {
    return this.#earlier + this.#log.text;
  }

  /** Has it saved in a file of dom0; it does not run until it is restored. */
  async save(file: string): Promise<void> {
    await this.#lab.check(`xl save ${this.name} ${file}`);
  }

  async restore(file: string): Promise<void> {
    await this.#move(new ConsoleLog(this.#lab, this.name), `xl restore ${file}`);
  }

  /** Migrates it to the host that it is on. */
  async migrate(): Promise<void> {
    // Its name while both are there.
    const log = new ConsoleLog(this.#lab, `${this.name}--incoming`);
    await this.#move(log, `xl migrate -s '' ${this.name} 'xl migrate-receive'`);
  }

  async #move(log: ConsoleLog, command: string): Promise<void> {
    await this.#lab.check(command);
    this.#earlier += this.#log.text;
    this.#log = log;
    this.#domid = Number(await this.#lab.check(`xl domid ${this.name}`));
  }

  /** Resolves with what the console matches, once it does. */
  async waitFor(pattern: RegExp, seconds: number = WAIT_LIMIT_SECONDS): Promise<RegExpExecArray> {
    const end = performance.now() + seconds * 1000;
    for (;;) {
      const match = pattern.exec(this.console);
      if (match !== null) return match;
      if (!existsSync(this.#lab.folder)) throw new Error("the lab has ended");
      if (performance.now() > end) {
        throw new Error(`no ${pattern} from ${this.name} in ${seconds} s:\n${this.console}`);
      }
      await sleep(POLL_MILLISECONDS);
    }
  }

  /** Runs a script of sh in the guest to its end. */
  async run(script: string, options: RunOptions = {}): Promise<Outcome> {
    // What GRUB leaves on the line may stand before it.
    await this.waitFor(/@ready$/m);
    const number = ++this.#lastJob;
    const text = Buffer.from(script).toString("base64");
    const pieces = text.match(new RegExp(`.{1,${PIECE_LENGTH}}`, "g")) ?? [];
    const lines = [...pieces, "."].map((piece) => `${number} ${piece}\n`).join("");
    const tty = `$(xenstore-read /local/domain/${this.domid}/console/tty)`;
    await this.#lab.check(`cat >${tty} <<'EOF'\n${lines}EOF`);
    const seconds = options.timeout ?? COMMAND_LIMIT_SECONDS;
    const [, status] = await this.waitFor(new RegExp(`^@${number} = (\\d+)`, "m"), seconds);
    return {
      status: Number(status),
      stdout: this.#output(number, 1),
      stderr: this.#output(number, 2),
    };
  }

  /** Like run(); anything but success throws. Returns what it printed. */
  async check(script: string, options: RunOptions = {}): Promise<string> {
    const { status, stdout, stderr } = await this.run(script, options);
    if (status === 0) return stdout;
    throw new Error(`status ${status} in ${this.name} of: ${script}\n${stdout}${stderr}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lab.run(`xl destroy ${this.name}`);
  }

  #output(number: number, stream: number): string {
    const pieces = this.console.matchAll(new RegExp(`^@${number} ${stream} (\\S+)`, "gm"));
    return Buffer.from([...pieces].map((match) => match[1]).join(""), "base64").toString();
  }
}

/** What domains of a name print from now on: earlier ones may have had it. */
class ConsoleLog {
  readonly #file: string;
  readonly #start: number;

  constructor(lab: Lab, name: string) {
    this.#file = join(lab.folder, "console", `guest-${name}.log`);
    this.#start = this.#all.length;
  }

  get text(): string {
    return this.#all.slice(this.#start);
  }

  get #all(): string {
    return existsSync(this.#file) ? readFileSync(this.#file, "utf8").replaceAll("\r", "") : "";
  }
}

function configuration(options: GuestOptions, tools: boolean): string {
  const { name, kind = "pv", vcpus = 1, mebibytes = 192, disks = [], root = "tools" } = options;
  const { rootDisk = "vdev=xvdz,access=ro,target=/dev/vda" } = options;
  const all = tools ? [...disks, rootDisk] : disks;
  const folder = "/usr/lib/xen-lab";
  const lines = [
    `name = "${name}"`,
    `type = "${kind === "pvh" ? "pvh" : "pv"}"`,
    `vcpus = ${vcpus}`,
    `memory = ${mebibytes}`,
    `disk = [${all.map((disk) => `'${disk}'`).join(", ")}]`,
    ...["poweroff", "reboot", "crash"].map((event) => `on_${event} = "destroy"`),
    // A PVH guest dies of rdtscp otherwise.
    ...(kind === "pvh" ? ['tsc_mode = "native"'] : []),
    ...(kind === "grub"
      ? ['kernel = "/usr/lib/grub-xen/grub-x86_64-xen.bin"']
      : [
          `kernel = "${folder}/vmlinux"`,
          `ramdisk = "${folder}/guest-initramfs"`,
          `extra = "console=hvc0 quiet lab.root=${root} ${options.linux ?? ""}"`,
        ]),
    options.configuration ?? "",
  ];
  return `${lines.join("\n")}\n`;
}
