/**
 * Makes a guest of a stream of records (docs/save-format.md), in a new domain of a machine.
 *
 * Invariant: nothing in the stream is believed: a record out of its order, beyond a limit or beyond what the guest has is
 * one XenError, and nothing of the guest is left then. No disk is touched before the end of the stream was seen.
 */
import type { OutstandingRequest } from "../block/index.ts";
import { type BlockStore, Operation, type StoreSpec } from "../store/block-store.ts";
import { oneLine } from "../util/one-line.ts";
import { type OwnPages, PAGE_SIZE, XenError, type XenStorePermission } from "../xen/domain.ts";
import { isDomid } from "../xen/embedded/layout.ts";
import type { Guest } from "./guest.ts";
import type { AttachOptions, GuestOptions } from "./machine.ts";
import { isMadeAnew, MAX_DISKS, MAX_NODES, MAX_REQUEST_BYTES_SAVED, MAX_REQUESTS } from "./save.ts";
import {
  type GuestRecord,
  type NodeRecord,
  type PagesRecord,
  type RecordReader,
  RecordType,
  type RequestRecord,
  type RunRecord,
} from "./save-format.ts";
import { parseSavedDisk, type SavedDisk } from "./saved-disk.ts";

export interface RestoreOptions {
  /** Instead of the name that it was saved under. */
  readonly name?: string;
  /** What is attached for a disk: its own `spec` if absent. A stream from elsewhere names any file it likes: whoever does not
   * trust it chooses here. */
  disk?(saved: SavedDisk): StoreSpec | BlockStore | Promise<StoreSpec | BlockStore>;
  /** Gives up connecting the disks. */
  readonly signal?: AbortSignal;
}

/** What a restorer needs of the machine. */
export interface Nursery {
  createGuest(options: GuestOptions): Promise<Guest>;
  writeNode(path: string, value: Uint8Array, permissions: XenStorePermission[]): Promise<void>;
  attach(
    disk: BlockStore | StoreSpec,
    options: AttachOptions,
    requests: readonly OutstandingRequest[],
  ): Promise<unknown>;
}

export async function restoreGuest(
  nursery: Nursery,
  reader: RecordReader,
  options: RestoreOptions,
): Promise<Guest> {
  await reader.header();
  const first = await reader.next();
  if (first.type !== "guest") throw broken("it does not begin with a guest");
  await using undo = new AsyncDisposableStack();
  const { name = first.name } = options;
  const { memoryPages, grantEntries, portCount, maptrackEntries, shared, ring } = first;
  const shape = { memoryPages, grantEntries, portCount, maptrackEntries, shared };
  const store = ring ? ({ xenstore: "ring" } as const) : {};
  const guest = undo.use(await create(nursery, { name, ...shape, ...store }));
  const restorer = new Restorer(nursery, guest, first);
  await restorer.readAll(reader);
  await restorer.attachAll(options);
  undo.move();
  return guest;
}

async function create(nursery: Nursery, options: GuestOptions): Promise<Guest> {
  try {
    return await nursery.createGuest(options);
  } catch (error) {
    // Numbers that no domain can have, or that this machine has no memory for.
    if (error instanceof RangeError) throw broken(error.message);
    throw error;
  }
}

function broken(what: string): XenError {
  return new XenError("EINVAL", `this guest cannot be restored: ${what}`);
}

class Restorer {
  readonly #nursery: Nursery;
  readonly #guest: Guest;
  readonly #saved: GuestRecord;
  readonly #runs: OwnPages[] = [];
  readonly #disks: { readonly saved: SavedDisk; readonly requests: RequestRecord[] }[] = [];
  #nodes = 0;
  #requests = 0;
  #requestBytes = 0;

  constructor(nursery: Nursery, guest: Guest, saved: GuestRecord) {
    this.#nursery = nursery;
    this.#guest = guest;
    this.#saved = saved;
  }

  async readAll(reader: RecordReader): Promise<void> {
    for (let before: number = RecordType.run; ; ) {
      const record = await reader.next();
      if (RecordType[record.type] < before) throw broken(`a ${record.type} comes too late`);
      before = RecordType[record.type];
      if (record.type === "run") this.#run(record);
      else if (record.type === "pages") this.#pages(record);
      else if (record.type === "node") await this.#node(record);
      else if (record.type === "disk") this.#disk(record.disk);
      else if (record.type === "request") this.#request(record);
      else if (record.type === "end") return;
      else throw broken(`a ${record.type} is not expected`);
    }
  }

  async attachAll(options: RestoreOptions): Promise<void> {
    for (const { saved, requests } of this.#disks) {
      const { spec, ...attach } = saved;
      const disk = (await options.disk?.(saved)) ?? spec;
      if (disk === null) {
        throw broken(`${saved.vdev} had been given opened: say with \`disk\` what it is now`);
      }
      const { signal } = options;
      await this.#nursery.attach(
        disk,
        { ...attach, guest: this.#guest, ...(signal === undefined ? {} : { signal }) },
        requests,
      );
    }
  }

  #run({ grants }: RunRecord): void {
    const pages = this.#guest.allocate(grants.length);
    if (pages === undefined) throw broken("it has more pages than its memory");
    this.#runs.push(pages);
    for (const [i, { reference, peer, readOnly }] of grants.entries()) {
      if (reference === 0) continue;
      if (!isDomid(peer) || !pages.grant(i, peer, readOnly, reference)) {
        throw broken(`grant ${reference} cannot be had`);
      }
    }
  }

  #pages({ run, page, bytes }: PagesRecord): void {
    const pages = this.#runs[run];
    if (pages === undefined || page + bytes.length / PAGE_SIZE > pages.count) {
      throw broken(`it has no page ${page} of run ${run}`);
    }
    pages.region.bytes.set(bytes, pages.start + page * PAGE_SIZE);
  }

  async #node({ path, permissions, value }: NodeRecord): Promise<void> {
    if (++this.#nodes > MAX_NODES) throw broken(`it has more than ${MAX_NODES} nodes`);
    if (isMadeAnew(path)) throw broken(`node ${oneLine(path)} is none of a saved guest`);
    const { domid } = this.#guest;
    const own = permissions.map(({ domid: whose, access }, i) => {
      if (whose === this.#saved.domid) return { domid, access };
      if (!isDomid(whose)) throw broken(`node ${oneLine(path)} is of a domain that cannot be`);
      // What a node takes is its owner's to bear (XSA-352).
      return { domid: i === 0 ? 0 : whose, access };
    });
    await this.#nursery.writeNode(`/local/domain/${domid}/${path}`, value, own);
  }

  #disk(value: unknown): void {
    if (this.#disks.length === MAX_DISKS) throw broken(`it has more than ${MAX_DISKS} disks`);
    this.#disks.push({ saved: parseSavedDisk(value), requests: [] });
  }

  #request(request: RequestRecord): void {
    const disk = this.#disks[request.disk];
    if (disk === undefined) throw broken(`a request is for disk ${request.disk}, which is none`);
    if (request.operation <= Operation.write) this.#requestBytes += request.length;
    if (++this.#requests > MAX_REQUESTS || this.#requestBytes > MAX_REQUEST_BYTES_SAVED) {
      throw broken("it has too many requests in flight");
    }
    disk.requests.push(request);
  }
}
