/**
 * Who may do what to a node (docs/misc/xenstore.txt, "Permissions"; perm_for_conn in the C daemon): the first entry
 * names the owner and what everyone else may do, the others name exceptions. Domain 0 and the owner may do all.
 */
import type { XenStorePermission } from "../domain.ts";

/** Bits of what a domain may do to a node. */
export const READ = 1;
export const WRITE = 2;
export const OWN = 4;

interface Entry extends XenStorePermission {
  /** It names a domain that was not there, or has died: shown, but worth nothing to a later domain of that number. */
  readonly gone?: true;
}

export type Permissions = readonly [Entry, ...Entry[]];

/** Whose rights count: a domain, and the one it serves as device model (XS_SET_TARGET). */
export interface Subject {
  readonly domid: number;
  readonly target: number | undefined;
}

const letters = { none: "n", read: "r", write: "w", both: "b" } as const;
const bits = { none: 0, read: READ, write: WRITE, both: READ | WRITE } as const;

/** What nobody but domain 0 may touch. */
export const PRIVATE: Permissions = [{ domid: 0, access: "none" }];

export function isPrivileged(subject: Subject): boolean {
  return subject.domid === 0;
}

export function ownerOf(permissions: Permissions): number {
  return permissions[0].domid;
}

/** The bits that `subject` has. */
export function accessOf(subject: Subject, permissions: Permissions): number {
  const [owner] = permissions;
  const names = ({ domid }: Entry): boolean => domid === subject.domid || domid === subject.target;
  if (isPrivileged(subject) || names(owner)) return READ | WRITE | OWN;
  const entry = permissions.find((other) => other.gone !== true && names(other)) ?? owner;
  return bits[entry.access];
}

/** The same list, worth nothing to domains for which `exists` says no. The owner must exist. */
export function withoutDomains(
  permissions: Permissions,
  exists: (domid: number) => boolean,
): Permissions {
  const [owner, ...others] = permissions;
  return [
    owner,
    ...others.map((entry): Entry => (exists(entry.domid) ? entry : { ...entry, gone: true })),
  ];
}

export function formatPermission({ domid, access }: XenStorePermission): string {
  return `${letters[access]}${domid}`;
}

/** undefined where `text` is not as in "r5". */
export function parsePermission(text: string): XenStorePermission | undefined {
  const match = /^([nrwb])(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const access = (["none", "read", "write", "both"] as const).find(
    (name) => letters[name] === match[1],
  );
  const domid = Number(match[2]);
  return access === undefined || domid > 0xffff ? undefined : { domid, access };
}
