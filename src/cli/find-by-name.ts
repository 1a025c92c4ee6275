/** Things that a person names: the one that is meant, or an error that helps. */
import { didYouMean } from "../util/nearest.ts";

/** An error tells of so many; who has more knows how to list them. */
const MAX_NAMES = 12;

/** Throws an Error that names the nearest, or those there are. `lack` is how it begins: "there is no domain". */
export function findByName<T>(
  lack: string,
  name: string,
  things: readonly T[],
  nameOf: (thing: T) => string,
): T {
  const found = things.find((thing) => nameOf(thing) === name);
  if (found !== undefined) return found;
  const names = things.map(nameOf);
  const more = names.length > MAX_NAMES ? ", ..." : "";
  const list = `; there is ${names.slice(0, MAX_NAMES).join(", ")}${more}`;
  const hint = didYouMean(name, names) || (names.length === 0 ? "" : list);
  throw new Error(`${lack} "${name}"${hint}`);
}
