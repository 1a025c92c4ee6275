/** Copies bytes from `source` to `target`, which must not overlap. Nothing is allocated: Buffer's copy takes positions,
 * where Uint8Array's set wants a new view each time. */
export function copyBytes(
  source: Uint8Array,
  sourceStart: number,
  target: Uint8Array,
  targetStart: number,
  length: number,
): void {
  Buffer.prototype.copy.call(source, target, targetStart, sourceStart, sourceStart + length);
}
