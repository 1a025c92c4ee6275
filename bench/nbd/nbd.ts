/** What comes out of the ring over NBD, beside other NBD servers of the same file, under fio and nbdcopy. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { fio, fioContender } from "../harness/fio.ts";
import type { Aim, Contender, Group, OpenedRow, Row } from "../harness/group.ts";
import type { Workload } from "../harness/load.ts";
import { rateOf } from "../harness/rate.ts";
import { DATA_BYTES, type Scratch } from "../harness/scratch.ts";
import {
  NBDKIT,
  NBDKIT_ONE,
  NbdServer,
  OURS,
  QEMU,
  QEMU_URING,
  STORAGE_DAEMON,
  servers,
} from "./servers.ts";

const KIB = 1024;
const NBDKITS = [NBDKIT, NBDKIT_ONE];
const QEMUS = [QEMU, QEMU_URING, STORAGE_DAEMON];

interface FioRow extends Workload {
  readonly connections: number;
  readonly summary: string;
  readonly aims: readonly Aim[];
}

const onlyTold: readonly Aim[] = [{ against: NBDKITS }, { against: QEMUS }];
const deep = [by(NBDKITS, 1.3), by(QEMUS, 1.8)];
const shallow = [by(NBDKITS, 1.3), by(QEMUS, 1)];

const fioRows: Readonly<Record<string, FioRow>> = {
  "4k-read-1": { ...of(100, 4, 1), summary: "4 KiB reads, depth 1", aims: shallow },
  "4k-write-1": { ...of(0, 4, 1), summary: "4 KiB writes, depth 1", aims: shallow },
  "4k-read-32": { ...of(100, 4, 32), summary: "4 KiB reads, depth 32", aims: deep },
  "4k-write-32": { ...of(0, 4, 32), summary: "4 KiB writes, depth 32", aims: deep },
  "4k-mixed-32": { ...of(70, 4, 32), summary: "4 KiB, 70 % reads, depth 32", aims: onlyTold },
  "4k-read-32-x4": {
    ...of(100, 4, 32, 4),
    summary: "4 KiB reads, 4 connections of depth 32",
    aims: onlyTold,
  },
  "128k-read-8": {
    ...of(100, 128, 8),
    summary: "128 KiB reads, depth 8",
    aims: [by(NBDKITS, 1.1), { against: QEMUS }],
  },
  "128k-write-8": {
    ...of(0, 128, 8),
    summary: "128 KiB writes, depth 8",
    aims: [by(NBDKITS, 1), { against: QEMUS }],
  },
  "128k-read-8-x4": {
    ...of(100, 128, 8, 4),
    summary: "128 KiB reads, 4 connections of depth 8",
    aims: onlyTold,
  },
};

function of(readPercent: number, kibibytes: number, depth: number, connections = 1) {
  return { readPercent, blockBytes: kibibytes * KIB, depth, connections };
}

function by(against: readonly string[], least: number): Aim {
  return { against, least };
}

const copyAims = [by(NBDKITS, 1), { against: QEMUS }];
const copyRows = {
  "copy-out": { out: true, connections: 1, summary: "nbdcopy to nowhere, 1 connection" },
  "copy-out-x4": { out: true, connections: 4, summary: "nbdcopy to nowhere, 4 connections" },
  "copy-in": { out: false, connections: 1, summary: "nbdcopy from a file, 1 connection" },
} as const;

const shortRows = new Set(["4k-read-32"]);

export const nbd: Group = {
  name: "nbd",
  summary: "vbdkit serve beside other NBD servers, one raw file in the page cache, a Unix socket",
  columns: Object.keys(servers),
  rows: [
    ...Object.entries(fioRows).map(
      ([name, row]): Row => ({
        name,
        summary: row.summary,
        unit: rateOf(row.blockBytes).unit,
        aims: row.aims,
        short: shortRows.has(name),
        open: (scratch) => openFioRow(scratch, name, row),
      }),
    ),
    ...Object.entries(copyRows).map(
      ([name, row]): Row => ({
        name,
        summary: row.summary,
        unit: "MiB/s",
        aims: copyAims,
        open: (scratch) => openCopyRow(scratch, name, row.out, row.connections),
      }),
    ),
  ],
};

async function openFioRow(scratch: Scratch, name: string, row: FioRow): Promise<OpenedRow> {
  const { blockBytes, connections, readPercent } = row;
  const { figure } = rateOf(blockBytes);
  const jobs = [`--numjobs=${connections}`];
  return openRow(
    scratch,
    name,
    readPercent < 100,
    ({ name: server, uri }) => fioContender(server, row, [...engine(uri), ...jobs], figure),
    blockBytes,
  );
}

function engine(uri: string): string[] {
  return ["--ioengine=nbd", `--uri=${uri}`];
}

async function openCopyRow(
  scratch: Scratch,
  name: string,
  out: boolean,
  connections: number,
): Promise<OpenedRow> {
  const source = scratch.file("disk", "data");
  const words = [`--connections=${connections}`];
  return openRow(scratch, name, !out, ({ name: server, uri }) => ({
    name: server,
    // Copies are short: as many as there is time for.
    async measure(seconds) {
      let copies = 0;
      const began = performance.now();
      const passed = () => (performance.now() - began) / 1000;
      for (; copies === 0 || passed() < seconds; copies++) {
        await promisify(execFile)("nbdcopy", [...words, ...(out ? [uri, "null:"] : [source, uri])]);
      }
      return (copies * DATA_BYTES) / KIB ** 2 / passed();
    },
  }));
}

/** Where they write ours has a file of its own, which is verified. */
async function openRow(
  scratch: Scratch,
  name: string,
  writes: boolean,
  contender: (server: NbdServer) => Contender,
  blockBytes: number = 64 * KIB,
): Promise<OpenedRow> {
  await using undo = new AsyncDisposableStack();
  const running: NbdServer[] = [];
  const fileOf = (who: string) =>
    writes ? scratch.file("disk", `${name}-${who}`, blockBytes) : scratch.file("disk", "data");
  const ours = fileOf("ours");
  const theirs = fileOf("theirs");
  if (writes) for (const file of [ours, theirs]) undo.defer(() => scratch.remove(file));
  for (const server of Object.keys(servers)) {
    const file = server === OURS ? ours : theirs;
    running.push(undo.use(await NbdServer.start(server, file, scratch.socket())));
  }
  const ends = undo.move();
  return {
    contenders: running.map(contender),
    async verify() {
      const server = running.find((each) => each.name === OURS)!;
      if (writes) await verifyWriting(server, blockBytes);
      await verifyReading(server, join(scratch.folder, "copied"));
    },
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

/** fio writes what it can recognise, and reads it again. */
async function verifyWriting({ uri }: NbdServer, blockBytes: number): Promise<void> {
  const pattern = ["--rw=randwrite", `--bs=${blockBytes}`, "--iodepth=32", "--size=16M"];
  // Without the last word it leaves a file where it was started.
  const verify = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"];
  await fio([...engine(uri), ...pattern, ...verify]);
}

/** What comes out is what lies in the file. */
async function verifyReading({ uri, file }: NbdServer, copy: string): Promise<void> {
  await promisify(execFile)("nbdcopy", ["--flush", uri, copy]);
  await promisify(execFile)("cmp", [copy, file]).catch(({ stdout, stderr }) => {
    throw new Error(`what comes out is not what lies in the file: ${stdout}${stderr}`);
  });
}
