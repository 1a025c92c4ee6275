/**
 * First bytes of the image formats that are often mistaken for raw disks.
 *
 * Only ever a reason to refuse: a guest that writes such a header on its raw disk must not get its image opened by
 * another driver, and an image must not be handed to a guest as if its metadata were the disk.
 */
import { allocateRegion, type MemoryRegion, SegmentList } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { BlockRequest, type BlockStore, type StoreSpec } from "./block-store.ts";
import { formatRefusal } from "./disk-syntax.ts";
import { errnoName, StoreError } from "./errors.ts";

/** Bytes, at offset 0: where every header below lies. */
export const PROBED_BYTES = 512;

const headers: readonly { format: string; offset: number; text: string }[] = [
  { format: "qcow2", offset: 0, text: "QFI\xfb" },
  { format: "qed", offset: 0, text: "QED\0" },
  { format: "vhd", offset: 0, text: "conectix" },
  { format: "vhdx", offset: 0, text: "vhdxfile" },
  { format: "vmdk", offset: 0, text: "KDMV" },
  { format: "vmdk", offset: 0, text: "COWD" },
  { format: "vmdk", offset: 0, text: "# Disk DescriptorFile" },
  { format: "vdi", offset: 0x40, text: "\x7f\x10\xda\xbe" },
  { format: "parallels", offset: 0, text: "WithoutFreeSpace" },
  { format: "parallels", offset: 0, text: "WithouFreSpacExt" },
];

/** The format that the first bytes of an image tell of, if any. A LUKS disk is as raw as any other. */
export function formatOf(bytes: Uint8Array): string | undefined {
  const text = Buffer.from(bytes).toString("latin1");
  return headers.find((header) => text.startsWith(header.text, header.offset))?.format;
}

/** Rejects with StoreError("EINVAL") where the store begins as an image of a format that no filter of the spec reads. */
export async function refuseFormat(
  store: BlockStore,
  spec: StoreSpec,
  reactor: Reactor,
): Promise<void> {
  const { size, block } = store.info;
  const length = Math.min(Math.max(PROBED_BYTES, block.minimum), size - (size % block.minimum));
  if (length === 0) return;
  using region = allocateRegion(length);
  await readStart(store, region, reactor);
  const format = formatOf(region.bytes);
  if (format === undefined || spec.filters.some(({ name }) => name === format)) return;
  throw formatRefusal(Object.values(spec.parameters)[0] ?? spec.driver, format, true);
}

function readStart(store: BlockStore, region: MemoryRegion, reactor: Reactor): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = new BlockRequest({
      completed({ status }) {
        if (status === 0) resolve();
        else reject(new StoreError(errnoName(status), "cannot read the first bytes of the disk"));
      },
    });
    request.length = region.bytes.length;
    request.segments = new SegmentList(1);
    request.segments.add(region, 0, region.bytes.length);
    store.submit(request);
    reactor.soon();
  });
}
