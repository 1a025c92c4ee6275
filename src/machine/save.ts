/** Writes a suspended guest as a stream of records (docs/save-format.md). */
import { Operation } from "../store/block-store.ts";
import { PAGE_SIZE, XenError, type XenStore } from "../xen/domain.ts";
import type { AttachedDisk } from "./attached-disk.ts";
import type { Guest } from "./guest.ts";
import {
  PAGES_PER_RECORD,
  type RecordWriter,
  type RunRecord,
  type SaveRecord,
} from "./save-format.ts";
import { savedDisk } from "./saved-disk.ts";

/** Takes the bytes of a stream one piece after the other; resolves when there is room for the next. */
export type Sink = (bytes: Uint8Array) => Promise<void>;

/** Nodes of one guest: a guest of its own may have a thousand, and what domain 0 puts below it is bounded, too. */
export const MAX_NODES = 8192;
export const MAX_DISKS = 1024;
/** Bytes of all requests that had not been answered; a guest has a few MiB in flight. */
export const MAX_REQUEST_BYTES_SAVED: number = 1 << 30;
/** As many as the largest rings hold, twice. */
export const MAX_REQUESTS = 65536;

/** All but the end, which says that whoever reads may go on. Requests are those of this moment. */
export async function writeGuest(
  guest: Guest,
  toolstack: XenStore,
  writer: RecordWriter,
  sink: Sink,
): Promise<void> {
  // In one step: what is answered from here on is done once more by whoever restores it.
  const disks = [...guest.disks];
  const requests = [...requestsOf(guest.name, disks)];
  const put = (record: SaveRecord): Promise<void> => sink(writer.record(record));
  await sink(writer.header());
  await put({ type: "guest", domid: guest.domid, name: guest.name, ...guest.shape });
  for (const run of guest.pages)
    await put({ type: "run", grants: grantsOf(guest, run.references) });
  for (const record of pagesOf(guest)) await put(record);
  for await (const record of nodesOf(guest, toolstack)) await put(record);
  if (disks.length > MAX_DISKS) {
    throw new XenError("E2BIG", `${guest.name} has more than ${MAX_DISKS} disks`);
  }
  for (const disk of disks) await put({ type: "disk", disk: savedDisk(disk) });
  for (const record of requests) await put(record);
}

/** As the entries of the grant table say; marks of mappings are their peers', who have to map anew. */
function grantsOf(guest: Guest, references: Uint32Array): RunRecord["grants"] {
  return Array.from(references, (reference) =>
    reference === 0 ? { reference, peer: 0, readOnly: false } : guest.grantOf(reference),
  );
}

function* pagesOf(guest: Guest): Generator<SaveRecord> {
  for (const [index, run] of guest.pages.entries()) {
    const bytes = run.region.bytes.subarray(run.start, run.start + run.count * PAGE_SIZE);
    let first = -1;
    for (let page = 0; page <= run.count; page++) {
      const holds = page < run.count && !isZero(bytes, page * PAGE_SIZE);
      if (holds && first < 0) first = page;
      if (first < 0 || (holds && page - first < PAGES_PER_RECORD)) continue;
      const held = bytes.subarray(first * PAGE_SIZE, page * PAGE_SIZE);
      yield { type: "pages", run: index, page: first, bytes: held };
      first = holds ? page : -1;
    }
  }
}

const ZEROES = new Uint8Array(PAGE_SIZE);

function isZero(bytes: Uint8Array, start: number): boolean {
  return Buffer.compare(bytes.subarray(start, start + PAGE_SIZE), ZEROES) === 0;
}

/** Whether a node of the guest's directory is not saved: the machine that makes a guest and attaches its disks writes it. */
export function isMadeAnew(path: string): boolean {
  return path === "name" || path === "domid" || path === "vm" || /^device\/vbd(\/|$)/.test(path);
}

/** Every node below the guest's own directory that is not made anew. */
async function* nodesOf(guest: Guest, toolstack: XenStore): AsyncGenerator<SaveRecord> {
  const root = `/local/domain/${guest.domid}`;
  const left = [""];
  let count = 0;
  for (let path = left.pop(); path !== undefined; path = left.pop()) {
    const names = (await toolstack.list(`${root}${path}`)) ?? [];
    for (const name of names) {
      const below = `${path}/${name}`;
      if (isMadeAnew(below.slice(1))) continue;
      const value = await toolstack.readBytes(`${root}${below}`);
      const permissions = await toolstack.getPermissions(`${root}${below}`);
      if (value === undefined || permissions === undefined) continue;
      if (++count > MAX_NODES) {
        throw new XenError("E2BIG", `${guest.name} has more than ${MAX_NODES} nodes`);
      }
      yield { type: "node", path: below.slice(1), permissions, value };
      left.push(below);
    }
  }
}

function* requestsOf(guest: string, disks: readonly AttachedDisk[]): Generator<SaveRecord> {
  let byteLength = 0;
  let count = 0;
  for (const [disk, { frontend }] of disks.entries()) {
    for (const request of frontend.outstanding()) {
      count++;
      if (request.operation <= Operation.write) byteLength += request.length;
      if (byteLength > MAX_REQUEST_BYTES_SAVED || count > MAX_REQUESTS) {
        throw new XenError("E2BIG", `${guest} has too much in flight to be saved`);
      }
      yield { type: "request", disk, ...request };
    }
  }
}
