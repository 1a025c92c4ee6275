/**
 * dom0 of a lab, with a disk of each backend under its own blkfront, all in memory; and fio, which is the load.
 *
 * Invariant: whatever is done in dom0 has a limit of time, and an error says which step it was.
 */
import { LabDaemon } from "../../test/xen/lab/daemon.ts";
import { Lab } from "../../test/xen/lab/lab.ts";
import { fioJobs } from "../harness/fio.ts";

export const backends = ["vbdkit", "blkback", "qdisk"] as const;
export type Backend = (typeof backends)[number];

const DISK_MEBIBYTES = 16;
/** Of it, what a verification writes and reads back. */
const VERIFIED_MEBIBYTES = 1;
/** A step takes seconds; minutes where the host does much else. */
const STEP_LIMIT_SECONDS = 240;

/** What holds the data: an image for those that live in a process, as a user would have it, and for the kernel a RAM disk,
 * since it needs a device. Then the words of bash that attach the disk, and those that print who works for it. */
interface Disk {
  readonly device: string;
  readonly image: string;
  readonly attach: string;
  readonly worker: string;
}
const disks: Readonly<Record<Backend, Disk>> = {
  vbdkit: {
    device: "/dev/xvdb",
    image: "/tmp/vbdkit.img",
    attach: "vbdkit attach 0 vdev=xvdb,target=/tmp/vbdkit.img",
    worker: "ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) vbdkit daemon: domain 0$/\\1/p'",
  },
  blkback: {
    device: "/dev/xvdc",
    image: "/dev/ram0",
    attach: "xl block-attach 0 vdev=xvdc,backendtype=phy,target=/dev/ram0",
    worker: "ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) \\[0\\.xvdc-0\\]$/\\1/p'",
  },
  qdisk: {
    device: "/dev/xvdd",
    image: "/tmp/qdisk.img",
    attach: "start-qdisk; xl block-attach 0 vdev=xvdd,backendtype=qdisk,target=/tmp/qdisk.img",
    worker: "cat /run/xen/qemu-dom0.pid",
  },
};

export interface Load {
  readonly blockBytes: number;
  readonly depth: number;
  readonly direction: "read" | "write";
}

/** What a backend did in its turn. */
export interface Turn {
  readonly requestsPerSecond: number;
  /** Time of the processor that the backend took for a request; microseconds. */
  readonly backendMicroseconds: number;
}

export class Dom0 implements AsyncDisposable {
  readonly #lab: Lab;
  /** By backend, its process or thread. */
  readonly #workers: readonly number[];

  private constructor(lab: Lab, workers: readonly number[]) {
    this.#lab = lab;
    this.#workers = workers;
  }

  static async boot(): Promise<Dom0> {
    await using undo = new AsyncDisposableStack();
    // The host's other work costs patience then, and does not enter the figures.
    const lab = undo.use(await Lab.boot({ steadyTime: true }));
    const step = async (script: string) =>
      await lab.check(`set -e; ${script}`, { timeout: STEP_LIMIT_SECONDS });
    await step(
      `modprobe -a xen-blkfront xen-blkback; modprobe brd rd_nr=1 rd_size=${DISK_MEBIBYTES * 1024}`,
    );
    await LabDaemon.start(lab);
    const workers: number[] = [];
    for (const { device, image, attach, worker } of Object.values(disks)) {
      // A page that was never written is none, which would be quicker to read.
      await step(`dd if=/dev/zero of=${image} bs=1M count=${DISK_MEBIBYTES} conv=fsync`);
      await step(`${attach}; until [ -b ${device} ]; do usleep 10000; done`);
      workers.push(Number(await step(worker)));
    }
    undo.move();
    return new Dom0(lab, workers);
  }

  /** A turn of each, one after the other, in one process of fio: its start takes seconds. */
  async round(load: Load, seconds: number, order: readonly Backend[]): Promise<Map<Backend, Turn>> {
    const { blockBytes, depth, direction } = load;
    const words = order.map(
      (name) => `--name=${name} --stonewall --filename=${disks[name].device}`,
    );
    // Ticks of 10 ms; what stands before them in a line of /proc may hold spaces.
    const ticks = `ticks() { for pid in ${this.#workers.join(" ")}; do
        line=$(</proc/$pid/stat); set -- \${line##*) }; echo $((\${12} + \${13})); done; }`;
    const fio =
      `fio --direct=1 --ioengine=libaio --invalidate=0 --norandommap --rw=rand${direction} --bs=${blockBytes} ` +
      `--iodepth=${depth} --time_based --runtime=${seconds} --output-format=json --output=/tmp/fio.json ${words.join(" ")}`;
    const text = await this.#lab.check(
      `set -e; ${ticks}; ticks; ${fio}; ticks; cat /tmp/fio.json`,
      { timeout: STEP_LIMIT_SECONDS + seconds },
    );
    const times = text.split("\n", 2 * backends.length).map(Number);
    const jobs = fioJobs(text);
    return new Map(
      backends.map((name, index) => {
        const job = jobs.find(({ jobname }) => jobname === name)!;
        const { iops, total_ios: requests } = job[direction];
        const spent = (times[index + backends.length]! - times[index]!) * 10_000;
        return [name, { requestsPerSecond: iops, backendMicroseconds: spent / requests }];
      }),
    );
  }

  /** What fio writes to each is what it reads back, and the whole disk is what its image holds. */
  async verify(): Promise<void> {
    for (const { device, image } of Object.values(disks)) {
      // Past the page cache of the devices, which is another's than the backend's.
      const sum = (from: string) =>
        `"$(dd if=${from} bs=1M ${from.startsWith("/dev/") ? "iflag=direct " : ""}2>/dev/null | sha256sum)"`;
      await this.#lab.check(
        `set -e
        fio --name=verify --filename=${device} --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=16 \
          --size=${VERIFIED_MEBIBYTES}M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output=/dev/null
        [ ${sum(device)} = ${sum(image)} ]`,
        { timeout: STEP_LIMIT_SECONDS },
      );
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#lab[Symbol.asyncDispose]();
  }
}
