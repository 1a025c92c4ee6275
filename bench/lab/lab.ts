/**
 * On a real Xen (test/xen/lab): dom0's own blkfront before three backends in one boot, each with a RAM disk of its own:
 * ours, Linux's blkback, QEMU's qdisk. fio in dom0 is the load. The processor is emulated, which costs JavaScript seven to
 * ten times what it costs elsewhere, and compiled C far less.
 */
import { Lab } from "../../test/xen/lab/lab.ts";
import type { Aim, Contender, Group, OpenedRow, Row } from "../harness/group.ts";

const [OURS, BLKBACK, QDISK] = ["vbdkit", "blkback", "qdisk"] as const;
/** Whose disk is which device of dom0's, all of the same size. */
const devices = { [OURS]: "/dev/xvdb", [BLKBACK]: "/dev/xvdc", [QDISK]: "/dev/xvdd" } as const;
const DISK_KIB = 32 * 1024;
const slow = { timeout: 300 };

/** Attaches the disks; each is a block device before the next is made. */
const SET_UP = `set -e
modprobe -a xen-blkfront xen-blkback
modprobe brd rd_nr=3 rd_size=${DISK_KIB}
for disk in /dev/ram0 /dev/ram1 /dev/ram2; do dd if=/dev/urandom of=$disk bs=1M count=${DISK_KIB / 1024} 2>/dev/null; done
await() { until [ -b $1 ]; do sleep 0.1; done; }
vbdkit attach 0 vdev=xvdb,target=/dev/ram0
await ${devices[OURS]}
xl block-attach 0 vdev=xvdc,backendtype=phy,target=/dev/ram1
await ${devices[BLKBACK]}
start-qdisk
xl block-attach 0 vdev=xvdd,backendtype=qdisk,target=/dev/ram2
await ${devices[QDISK]}`;

type Direction = "read" | "write";

interface Load {
  readonly blockBytes: number;
  readonly depth: number;
  readonly direction: Direction;
}

/** Of a job of fio in dom0: requests per second, and microseconds of the processor for each, the kernel's too. */
async function run(
  lab: Lab,
  device: string,
  { blockBytes, depth, direction }: Load,
  seconds: number,
): Promise<{ requestsPerSecond: number; processorMicroseconds: number }> {
  // Jiffies of 10 ms in which the processor, of which there is one, did something.
  const busy = `awk '/^cpu / {print $2 + $3 + $4 + $7 + $8}' /proc/stat`;
  const fio =
    `fio --name=load --filename=${device} --direct=1 --ioengine=libaio --invalidate=0 --rw=rand${direction} ` +
    `--bs=${blockBytes} --iodepth=${depth} --time_based --runtime=${seconds} --output-format=json --output=/tmp/fio.json`;
  const text = await lab.check(`set -e; ${busy}; ${fio}; ${busy}; cat /tmp/fio.json`, slow);
  const [before, after] = text.split("\n", 2).map(Number);
  const [job] = JSON.parse(text.slice(text.indexOf("{"))).jobs;
  const { iops, total_ios: requests } = job[direction];
  return {
    requestsPerSecond: iops,
    processorMicroseconds: ((after! - before!) * 10_000) / requests,
  };
}

async function openRow(
  load: Load,
  figure: "requestsPerSecond" | "processorMicroseconds",
): Promise<OpenedRow> {
  await using undo = new AsyncDisposableStack();
  const lab = undo.use(await Lab.boot());
  const daemon = undo.use(await lab.start("exec vbdkit daemon"));
  while (!daemon.output.stdout.includes("serves vbd3")) {
    if (daemon.output.stderr !== "") throw new Error(daemon.output.stderr);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await lab.check(SET_UP, slow);
  const contenders = Object.entries(devices).map(
    ([name, device]): Contender => ({
      name,
      measure: async (seconds) => (await run(lab, device, load, seconds))[figure],
    }),
  );
  const ends = undo.move();
  return {
    contenders,
    /** What each backend has on its RAM disk is what its frontend reads, and what fio has written is what it finds. */
    async verify() {
      for (const [index, device] of Object.values(devices).entries()) {
        await lab.check(
          `set -e
          fio --name=verify --filename=${device} --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=16 \
            --size=2M --verify=crc32c --verify_fatal=1 --output=/dev/null
          dd if=${device} iflag=direct bs=1M 2>/dev/null | cmp - /dev/ram${index}`,
          slow,
        );
      }
    },
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

function row(name: string, summary: string, load: Load, aims: readonly Aim[]): Row {
  const open = () => openRow(load, "requestsPerSecond");
  return { name, summary, unit: "IOPS", aims, open };
}

const deep: readonly Aim[] = [
  { against: [QDISK], least: 1.5 },
  { against: [BLKBACK], least: 0.7 },
];
const shallow: readonly Aim[] = [{ against: [QDISK], least: 1 }, { against: [BLKBACK] }];

const directions = ["read", "write"] as const;

export const lab: Group = {
  name: "lab",
  summary: "on a real Xen, emulated: vbdkit daemon beside Linux's blkback and QEMU's qdisk",
  columns: [OURS, BLKBACK, QDISK],
  rows: [
    ...directions.flatMap((direction) => [
      row(
        `4k-${direction}-1`,
        `4 KiB, random ${direction}, one at a time`,
        { blockBytes: 4096, depth: 1, direction },
        shallow,
      ),
      row(
        `4k-${direction}-16`,
        `4 KiB, random ${direction}, 16 at a time`,
        { blockBytes: 4096, depth: 16, direction },
        deep,
      ),
      row(
        `64k-${direction}-8`,
        `64 KiB, random ${direction}, 8 at a time`,
        { blockBytes: 65_536, depth: 8, direction },
        [{ against: [QDISK], least: 1.3 }, { against: [BLKBACK] }],
      ),
    ]),
    {
      name: "4k-read-16-cpu",
      summary: "the processor's time for a 4 KiB read, 16 at a time",
      unit: "µs",
      lessIsBetter: true,
      aims: [{ against: [QDISK] }, { against: [BLKBACK] }],
      open: () =>
        openRow({ blockBytes: 4096, depth: 16, direction: "read" }, "processorMicroseconds"),
    },
  ],
};
