/**
 * Extents of a store as NBD's base:allocation puts them on the wire (proto.md, "Metadata querying"). Control plane:
 * a client asks once for megabytes.
 */
import type { Extent } from "../store/block-store.ts";
import { EXTENT_LENGTH, NBD_STATE_HOLE, NBD_STATE_ZERO, putU32 } from "../wire/nbd.ts";

/** Encodes at most `limit` extents from byte `at` on, neighbours of one state merged; answers their number. */
export async function collectExtents(
  extents: AsyncIterable<Extent>,
  limit: number,
  bytes: Uint8Array,
  at: number,
): Promise<number> {
  let count = 0;
  let state = -1;
  let length = 0;
  for await (const extent of extents) {
    const next = (extent.hole ? NBD_STATE_HOLE : 0) | (extent.zero ? NBD_STATE_ZERO : 0);
    if (next !== state) {
      if (count === limit) break;
      state = next;
      length = 0;
      count++;
    }
    length += extent.length;
    putU32(bytes, at + (count - 1) * EXTENT_LENGTH, length);
    putU32(bytes, at + (count - 1) * EXTENT_LENGTH + 4, state);
  }
  return count;
}
