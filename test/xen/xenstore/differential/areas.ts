/**
 * The tree that operations are about: a few areas, each with a node at its top that is always there. Where transactions
 * of the two daemons differ on purpose, they do so within the areas that they touch, so that making these anew makes
 * the trees equal again.
 */

/** Of the domains that act; each owns its directory. */
export const guests = [1, 2, 3, 4] as const;
/** The only one that is released and introduced again. */
export const MORTAL = 4;
/** There, as the hypervisor says, but never introduced. */
export const STRANGER = 5;
/** Not there. */
export const NOBODY = 40;

/** The top of each area with its permissions. */
export const areas: ReadonlyMap<string, readonly string[]> = new Map<string, readonly string[]>([
  ["/a", ["b0"]],
  ["/b", ["n0", "b1", "r2", "w3"]],
  ["/c", ["n1", "r2", "b4"]],
  ...[0, ...guests].map((domid) => [`/local/domain/${domid}`, [`n${domid}`]] as const),
]);
/** A directory whose list is longer than a message. */
export const BIG = "/big";
export const bigNames: readonly string[] = Array.from(
  { length: 300 },
  (_, index) => `child-number-${index}`,
);

/** Where a canonical path lies: an area's top, or the first name, or "@...". */
export function areaOf(path: string): string {
  const [, domain] = /^(\/local\/domain\/\d+)(?:\/|$)/.exec(path) ?? [];
  return domain ?? /^[/@][^/]*/.exec(path)?.[0] ?? path;
}

/** The absolute form of a path that a client of `domid` wrote. */
export function absolute(path: string, domid: number): string {
  return /^[/@]/.test(path) ? path : `/local/domain/${domid}/${path}`;
}
