/** Where the two daemons differ on purpose: everything else is a fault of ours. */
import type { Operation } from "./operations.ts";
import type { Answer } from "./stream-client.ts";

export interface Admission {
  readonly operation: Operation;
  readonly theirs: Answer;
  readonly mine: Answer;
  /** Within a transaction: somebody changed something in the areas it touches, since it began. */
  readonly disturbed: boolean;
  /** Within a transaction: somebody changed anything. */
  readonly counted: boolean;
}

interface Difference {
  readonly name: string;
  readonly why: string;
  readonly covers: (admission: Admission) => boolean;
}

/** What is said of limits of nodes, and by transactions that met them. */
const limits = new Set(["ENOSPC", "EIO", "ENOMEM"]);

export const differences: readonly Difference[] = [
  {
    name: "help",
    why: "CONTROL help names the commands that there are: none of ours writes into files that a client names, and there are no soft quotas",
    covers: ({ operation }) => operation.name === "CONTROL" && operation.payload === "help\0",
  },
  {
    name: "unwatch",
    why: "UNWATCH of what is no path is EINVAL, as in later C daemons; that of 4.17 looks for such a watch",
    covers: ({ operation, theirs, mine }) =>
      operation.name === "UNWATCH" && theirs.error === "ENOENT" && mine.error === "EINVAL",
  },
  {
    name: "special",
    why: "the permissions of @introduceDomain and @releaseDomain can be read, as in later C daemons, and other special paths are nodes that are not there; for that of 4.17 they are no paths",
    covers: ({ operation: { name, path }, theirs }) =>
      /^[GS]ET_PERMS$/.test(name) && path.startsWith("@") && theirs.error !== undefined,
  },
  {
    name: "snapshot",
    why: "a transaction of ours sees the tree as it began and fails only for what it looked at itself; the C daemon looks at a node when it is first named, and counts each child as a change of its parent",
    covers: ({ disturbed }) => disturbed,
  },
  {
    name: "snapshot limits",
    why: "so what a transaction has looked at, and what the domain owns in it, is not counted alike either, once something has changed outside",
    covers: ({ counted, theirs, mine }) =>
      counted && [theirs.error, mine.error].some((error) => limits.has(error ?? "")),
  },
  {
    name: "malformed",
    why: "a payload without its NUL, or a number that is none, is EINVAL; the C daemon gives whatever error came last, and takes what atoi makes of the text",
    covers: ({ operation, mine }) => operation.odd === true && mine.error === "EINVAL",
  },
];

/** The name of the intended difference. */
export function admitted(admission: Admission): string | undefined {
  return differences.find(({ covers }) => covers(admission))?.name;
}
