/** Our own invariants, checked in production too. Never for what a peer, an image or a person sent: that is a value. */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`vbdkit: broken invariant: ${message}`);
}
