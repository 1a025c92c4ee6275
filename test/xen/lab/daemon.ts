/** `vbdkit daemon` in dom0, over its lives: the one that a test starts, and those that follow. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Lab, LabProcess } from "./lab.ts";

const POLL_MILLISECONDS = 50;
const WAIT_LIMIT_SECONDS = 240;

/** What a script of dom0's prints, once that is nothing or ten seconds have passed: a daemon lets go of a disk's journals
 * just after the disk has closed, which is what others wait for. */
export function whatIsLeft(lab: Lab, script: string): Promise<string> {
  return lab.check(
    `for i in $(seq 50); do left=$(${script}); [ -z "$left" ] && break; sleep 0.2; done; echo -n "$left"`,
  );
}

export class LabDaemon {
  readonly #lab: Lab;
  readonly #words: string;
  #process: LabProcess;

  private constructor(lab: Lab, words: string, process: LabProcess) {
    this.#lab = lab;
    this.#words = words;
    this.#process = process;
  }

  /** Resolves when it serves. A toolstack may name our hotplug script then. */
  static async start(lab: Lab, words = ""): Promise<LabDaemon> {
    await lab.check("ln -sf /checkout/packaging/block-vbdkit /etc/xen/scripts/");
    const daemon = new LabDaemon(lab, words, await lab.start(`exec vbdkit daemon ${words}`));
    await daemon.#untilServes();
    return daemon;
  }

  /** What the life that runs has said. */
  get said(): string {
    return this.#process.output.stderr;
  }

  /** Ends it by SIGTERM and starts its successor; resolves when that serves. */
  async restart(): Promise<void> {
    this.#process.signal("TERM");
    const { status, stderr } = await this.#process.outcome;
    if (status !== 0) throw new Error(`the daemon ended with status ${status}: ${stderr}`);
    this.#process = await this.#lab.start(`exec vbdkit daemon ${this.#words}`);
    await this.#untilServes();
  }

  /** Kills the process that serves a guest by SIGKILL; resolves when its successor goes on with `vbds` of them. */
  async killGuestProcess(domid: number, vbds: number): Promise<void> {
    const before = this.#count();
    const title = `vbdkit daemon: domain ${domid}`;
    await this.#lab.check(`kill -9 $(ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) ${title}$/\\1/p')`);
    await this.goesOn(before + vbds);
  }

  /** Waits until the life that runs has taken up so many vbds that were connected. */
  async goesOn(vbds: number): Promise<void> {
    await this.#until(() => this.#count() >= vbds);
  }

  #count(): number {
    return this.said.split(": goes on:").length - 1;
  }

  async #untilServes(): Promise<void> {
    await this.#until(() => / serves .* of domain 0$/m.test(this.#process.output.stdout));
  }

  async #until(reached: () => boolean): Promise<void> {
    const end = performance.now() + WAIT_LIMIT_SECONDS * 1000;
    while (!reached()) {
      if (performance.now() > end) throw new Error(`the daemon says only: ${this.said}`);
      await sleep(POLL_MILLISECONDS);
    }
  }
}
