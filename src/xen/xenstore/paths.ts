/**
 * Paths of the xenstore (docs/misc/xenstore.txt, "Store"; canonicalize in the C daemon).
 *
 * Invariant: a path that `canonicalPath` gave is absolute ("/", "/a/b") or special ("@introduceDomain"), has no empty
 * names and obeys the limits; everything below the daemon's requests takes only such paths.
 */
import { XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX } from "../../wire/xenstore.ts";

export const INTRODUCE_DOMAIN = "@introduceDomain";
export const RELEASE_DOMAIN = "@releaseDomain";

/** The directory of a domain; relative paths begin there. */
export function domainPath(domid: number): string {
  return `/local/domain/${domid}`;
}

/** The absolute form of what a client of `domid` wrote; undefined where it is no path, or has more than `characters`
 * below the directory of a domain. `special` admits "@...". */
export function canonicalPath(
  text: string,
  domid: number,
  special = false,
  characters: number = XENSTORE_REL_PATH_MAX,
): string | undefined {
  if (!/^[-\w/@]+$/.test(text)) return undefined;
  if (text.startsWith("@")) {
    return special && text.length <= characters && !/\/$|\/\//.test(text) ? text : undefined;
  }
  const path = text.startsWith("/") ? text : `${domainPath(domid)}/${text}`;
  if (path === "/") return path;
  if (path.endsWith("/") || path.includes("//")) return undefined;
  // The limit is on what follows the domain's directory, so that a path is as good absolute as relative (XSA-323).
  const prefix = /^\/local\/domain\/\d{1,5}\//.exec(path)?.[0].length ?? 0;
  if (path.length - prefix > characters) return undefined;
  return path.length <= XENSTORE_ABS_PATH_MAX ? path : undefined;
}

/** "/a" for "/a/b"; "/" for "/a", for itself and for special paths. */
export function parentPath(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash > 0 ? path.slice(0, slash) : "/";
}

/** The last name of a path other than "/". */
export function baseName(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

export function childPath(parent: string, name: string): string {
  return parent === "/" ? `/${name}` : `${parent}/${name}`;
}

/** Whether `path` is `above`, which is not "/", or lies below it. */
export function isWithin(path: string, above: string): boolean {
  return path.startsWith(above) && (path.length === above.length || path[above.length] === "/");
}

/** Whether `path` lies at the very top: "/" or a special path. */
export function isTopPath(path: string): boolean {
  return path === "/" || path.startsWith("@");
}

/** The names from the very top, where "/" is the child "" and special nodes lie beside it. */
export function pathSegments(path: string): string[] {
  return path === "/" ? [""] : path.split("/");
}
