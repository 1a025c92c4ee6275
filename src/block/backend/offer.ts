/**
 * What a frontend wrote into its directory before it said Initialised (blkif.h; connect_ring and read_per_ring_refs of
 * xen-blkback's xenbus.c; both schemes of multi-page rings).
 *
 * Invariant: every number is within what we allowed, or the offer is refused with a reason; how much is read is bounded
 * by our limits, not by the frontend.
 */
import { type BlkifProtocol, parseBlkifProtocol } from "../../wire/blkif.ts";
import { XenError, type XenStoreOperations } from "../../xen/domain.ts";
import { readFlag, readNumber } from "../../xen/xenbus.ts";
import type { BackendLimits } from "../features.ts";

export interface FrontendOffer {
  readonly protocol: BlkifProtocol;
  /** feature-persistent. */
  readonly persistent: boolean;
  /** One or more, all with equally many pages. */
  readonly rings: readonly RingOffer[];
}
export interface RingOffer {
  /** A power of two of them. */
  readonly references: readonly number[];
  readonly port: number;
}

/** Reads the frontend's directory. Rejects with XenError("EINVAL") and what is wrong. */
export async function readOffer(
  store: XenStoreOperations,
  path: string,
  limits: BackendLimits,
): Promise<FrontendOffer> {
  const protocol = parseProtocol(await store.read(`${path}/protocol`));
  const queues = await readCount(store, path, "multi-queue-num-queues", limits.maxQueues);
  const pages = await readRingPages(store, path, 1 << limits.maxRingPageOrder);
  const rings: RingOffer[] = [];
  for (let queue = 0; queue < queues; queue++) {
    // With one queue the keys stand where they stood before there were several.
    const directory = queues === 1 ? path : `${path}/queue-${queue}`;
    rings.push(await readRing(store, directory, pages));
  }
  if (limits.dialect === "qemu-windows" && limits.sectorSize !== 512) {
    const known = await readFlag(store, `${path}/feature-large-sector-size`);
    if (!known) {
      throw new XenError("EINVAL", `the frontend does not know sectors of ${limits.sectorSize}`);
    }
  }
  return { protocol, persistent: await readFlag(store, `${path}/feature-persistent`), rings };
}

/** A missing key means x86_32-abi on x86, as Linux and tapback have it; ours write the key. */
function parseProtocol(text: string | undefined): BlkifProtocol {
  if (text === undefined) return "x86_32-abi";
  const protocol = parseBlkifProtocol(text);
  if (protocol === undefined) {
    throw new XenError("EINVAL", `unknown fe protocol ${JSON.stringify(text.slice(0, 40))}`);
  }
  return protocol;
}

/** A number from 1 to `maximum`; 1 where the key is missing. */
async function readCount(
  store: XenStoreOperations,
  path: string,
  key: string,
  maximum: number,
): Promise<number> {
  if ((await store.read(`${path}/${key}`)) === undefined) return 1;
  const count = await readNumber(store, `${path}/${key}`);
  if (count !== undefined && count >= 1 && count <= maximum) return count;
  throw new XenError("EINVAL", `${path}/${key} is no number from 1 to ${maximum}`);
}

/** Pages of each ring: 1 << ring-page-order, or else num-ring-pages, of which a power of two is used. */
async function readRingPages(
  store: XenStoreOperations,
  path: string,
  maximum: number,
): Promise<number> {
  const text = (await store.read(`${path}/ring-page-order`))?.trim();
  if (text === undefined) {
    const count = await readCount(store, path, "num-ring-pages", maximum);
    return 2 ** Math.floor(Math.log2(count));
  }
  const pages = /^\d{1,2}$/.test(text) ? 2 ** Number(text) : 0;
  if (pages >= 1 && pages <= maximum) return pages;
  throw new XenError("EINVAL", `${path}/ring-page-order asks for more than ${maximum} pages`);
}

/** ring-ref, or ring-ref0 and so on; a ring of one page may be under either name. */
async function readRing(
  store: XenStoreOperations,
  path: string,
  pages: number,
): Promise<RingOffer> {
  const references: number[] = [];
  for (let page = 0; page < pages; page++) {
    const numbered = await readNumber(store, `${path}/ring-ref${page}`);
    const single = page === 0 ? await readNumber(store, `${path}/ring-ref`) : undefined;
    const reference = (pages === 1 ? single : undefined) ?? numbered ?? single;
    if (reference === undefined) {
      throw new XenError("EINVAL", `reading ${path}/ring-ref${pages === 1 ? "" : page}`);
    }
    references.push(reference);
  }
  const port = await readNumber(store, `${path}/event-channel`);
  if (port === undefined) throw new XenError("EINVAL", `reading ${path}/event-channel`);
  return { references, port };
}
