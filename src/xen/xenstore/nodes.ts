/**
 * What a domain may do to nodes: read, list, write, make, remove, and their permissions (docs/misc/xenstore.txt;
 * errors as the C daemon gives them).
 *
 * Invariant: an error never tells whether a node is there to somebody who may not know: what the nearest node above
 * does not permit is EACCES, whatever the real reason (errno_from_parents).
 */
import type { XsdError } from "../../wire/xenstore.ts";
import type { KnownDomain } from "./domains.ts";
import { parentPath } from "./paths.ts";
import { accessOf, isPrivileged, OWN, ownerOf, type Permissions, WRITE } from "./permissions.ts";
import { nodeBytes, type TreeNode } from "./tree.ts";
import type { View } from "./view.ts";

/** Somebody who acts on a view of the tree, within limits. */
export interface Actor {
  readonly subject: KnownDomain;
  readonly view: View;
}

/** The node, if `subject` has all of `need` there. */
export function findNode(actor: Actor, path: string, need: number): TreeNode | XsdError {
  const { subject, view } = actor;
  const node = view.get(path);
  if (node !== undefined && (accessOf(subject, node.permissions) & need) === need) return node;
  const error = node === undefined ? "ENOENT" : "EACCES";
  const above = nearestAbove(view, path)?.node;
  return above !== undefined && accessOf(subject, above.permissions) & need ? error : "EACCES";
}

export function writeNode(actor: Actor, path: string, value: Uint8Array): XsdError | undefined {
  const { view } = actor;
  const node = findNode(actor, path, WRITE);
  if (node === "ENOENT") return makeNode(actor, path, value);
  if (typeof node === "string") return node;
  if (isTooBig(actor, node, { value })) return refused(view, "ENOSPC");
  const growth = value.length - node.value.length;
  if (takesTooMuch(actor, ownerOf(node.permissions), growth)) return refused(view, "ENOMEM");
  view.setValue(path, value);
  view.changed(path, false, []);
  return undefined;
}

/** Nothing happens where the node is there. */
export function makeDirectory(actor: Actor, path: string): XsdError | undefined {
  const node = findNode(actor, path, WRITE);
  if (node === "ENOENT") return makeNode(actor, path, new Uint8Array(0));
  return typeof node === "string" ? node : undefined;
}

/** Nothing happens where the node is missing but its parent is there. */
export function removeNode(actor: Actor, path: string): XsdError | undefined {
  const { view } = actor;
  const node = findNode(actor, path, WRITE);
  if (node === "ENOENT") return view.get(parentPath(path)) === undefined ? node : undefined;
  if (typeof node === "string") return node;
  if (path === "/") return "EINVAL";
  removeTree(view, path);
  return undefined;
}

/** Removes a node other than "/" with all below it, whoever owns it. */
export function removeTree(view: View, path: string): void {
  const parent = view.get(parentPath(path));
  const removed = view.remove(path);
  const permissions = new Map(removed.map((gone) => [gone.path, gone.node.permissions]));
  if (parent !== undefined) permissions.set(parentPath(path), parent.permissions);
  for (const gone of removed) {
    const above = permissions.get(parentPath(gone.path));
    const before = above === undefined ? [] : [above];
    view.changed(gone.path, gone.path !== path, [gone.node.permissions, ...before]);
  }
}

export function setNodePermissions(
  actor: Actor,
  path: string,
  permissions: Permissions,
): XsdError | undefined {
  const { subject, view } = actor;
  const node = findNode(actor, path, WRITE | OWN);
  if (typeof node === "string") return node;
  // A domain that could give nodes away could make others exceed their limits (XSA-352).
  if (!isPrivileged(subject) && ownerOf(permissions) !== ownerOf(node.permissions)) return "EPERM";
  if (isTooBig(actor, node, { permissions })) return refused(view, "ENOSPC");
  const before = view.readable(path);
  view.setPermissions(path, permissions);
  // Of special nodes, that would say that a domain came or went.
  if (!path.startsWith("@")) view.changed(path, false, before);
  return undefined;
}

/** Makes a node and those missing above it: with the permissions of the nearest one above, but the maker's own. */
function makeNode(actor: Actor, path: string, value: Uint8Array): XsdError | undefined {
  const { subject, view } = actor;
  const nearest = nearestAbove(view, path);
  if (nearest === undefined) return "EINVAL";
  const names = path.slice(nearest.path === "/" ? 1 : nearest.path.length + 1).split("/");
  const [owner, ...others] = nearest.node.permissions;
  const permissions: Permissions = isPrivileged(subject)
    ? nearest.node.permissions
    : [{ ...owner, domid: subject.domid }, ...others];
  if (!isPrivileged(subject)) {
    if (view.owned(subject.domid, names.length) > subject.limit("nodes")) return "ENOSPC";
    const childrenBytes = nearest.node.childrenBytes + (names[0] as string).length + 1;
    if (isTooBig(actor, nearest.node, { childrenBytes })) return refused(view, "ENOSPC");
    const innerBytes = Math.max(0, ...names.slice(1).map((name) => name.length + 1));
    const made = { permissions, value: new Uint8Array(0), childrenBytes: innerBytes };
    if (isTooBig(actor, made, {}) || isTooBig(actor, made, { value, childrenBytes: 0 })) {
      return refused(view, "ENOSPC");
    }
    const growth =
      names.length * (nearest.path.length + nodeBytes(made)) + path.length + value.length;
    if (takesTooMuch(actor, subject.domid, growth)) return refused(view, "ENOMEM");
  }
  let parent = nearest.path === "/" ? "" : nearest.path;
  for (const [index, name] of names.entries()) {
    parent = `${parent}/${name}`;
    view.create(parent, permissions, index === names.length - 1 ? value : undefined);
  }
  view.changed(path, false, []);
  return undefined;
}

/** In the midst of a change. */
function refused(view: View, error: "ENOSPC" | "ENOMEM"): XsdError {
  view.spoil();
  return error;
}

type NodeSize = Pick<TreeNode, "value" | "permissions" | "childrenBytes">;

function isTooBig({ subject }: Actor, node: NodeSize, changes: Partial<NodeSize>): boolean {
  if (isPrivileged(subject)) return false;
  const { value, permissions, childrenBytes } = node;
  return nodeBytes({ value, permissions, childrenBytes, ...changes }) >= subject.limit("nodeBytes");
}

/** Whether `growth` more bytes of nodes of `owner` are more than the actor may cause. */
function takesTooMuch({ subject, view }: Actor, owner: number, growth: number): boolean {
  if (isPrivileged(subject) || growth <= 0) return false;
  return view.ownedBytes(owner) + subject.watchBytes + growth > subject.limit("memoryBytes");
}

/** The lowest node that is there, strictly above `path` ("/" is above itself). */
function nearestAbove(view: View, path: string): { path: string; node: TreeNode } | undefined {
  let above = path;
  do {
    above = parentPath(above);
    const node = view.get(above);
    if (node !== undefined) return { path: above, node };
  } while (above !== "/");
  return undefined;
}
