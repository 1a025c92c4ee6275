/** What the process that is killed writes, and whoever restores its guest looks for. */
export const WRITERS = 24;
export const BLOCKS: number = WRITERS * 16;
export const BLOCK_BYTES = 8192;

/** Bytes that tell of their block and generation, and of their place in the block. */
export function contents(block: number, generation: number): Buffer {
  const bytes = Buffer.alloc(BLOCK_BYTES);
  fill(bytes, block * 65537 + generation);
  return bytes;
}

export function fill(bytes: Uint8Array, value: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < bytes.length; at += 4) view.setUint32(at, (value * 2654435761 + at) >>> 0);
}
