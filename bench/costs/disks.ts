/** Many disks of a machine that cost nothing themselves, and a load on each. */
import { Machine } from "../../src/index.ts";
import type { AttachedDisk } from "../../src/machine/attached-disk.ts";
import type { AttachOptions, Machine as MachineType } from "../../src/machine/machine.ts";
import type { StoreSpec } from "../../src/store/block-store.ts";
import { Load } from "../harness/load.ts";
import type { Cost } from "./costs.ts";

const DISKS_PER_GUEST = 4;
const DISK_BYTES = 1 << 20;

export class Disks implements AsyncDisposable {
  readonly machine: MachineType;
  readonly disks: readonly AttachedDisk[];
  /** What all disks together took to connect. Milliseconds. */
  readonly milliseconds: number;

  /** Disks in memory, or of zeroes. */
  static async attach(
    { vbds = 1, queues, filters = 0, persistent }: Cost,
    driver: "memory" | "null" = "memory",
  ): Promise<Disks> {
    const machine = await Machine.start();
    const guests = Array.from({ length: Math.ceil(vbds / DISKS_PER_GUEST) }, () =>
      machine.createGuest(),
    );
    const guestOf = await Promise.all(guests);
    // A filter that was asked to delay nothing hands everything on.
    const spec: StoreSpec = {
      driver,
      parameters: { size: String(DISK_BYTES) },
      filters: Array.from({ length: filters }, () => ({ name: "delay", parameters: {} })),
    };
    const options = (index: number): AttachOptions => ({
      vdev: `d${index}`,
      guest: guestOf[Math.floor(index / DISKS_PER_GUEST)]!,
      ...(queues === undefined
        ? {}
        : { frontend: { maxQueues: queues }, backend: { maxQueues: queues } }),
      ...(persistent === undefined ? {} : { backend: { persistent } }),
    });
    const began = performance.now();
    const disks = await Promise.all(
      Array.from({ length: vbds }, (_, index) => machine.attach(spec, options(index))),
    );
    return new Disks(machine, disks, performance.now() - began);
  }

  private constructor(machine: MachineType, disks: readonly AttachedDisk[], milliseconds: number) {
    this.machine = machine;
    this.disks = disks;
    this.milliseconds = milliseconds;
  }

  /** A load of reads on each disk, of which the stamped pages are written first. */
  async loads(depth: number): Promise<readonly Load[]> {
    const workload = { readPercent: 100, blockBytes: 4096, depth };
    return await Promise.all(
      this.disks.map(async (disk) => {
        const load = new Load(disk.frontend, this.machine.reactor, workload, DISK_BYTES);
        await disk.write(0, load.freshDisk());
        return load;
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.machine[Symbol.asyncDispose]();
  }
}
