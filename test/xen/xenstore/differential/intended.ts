/** Where the two daemons differ on purpose: everything else is a fault of ours. */
import type { Operation } from "./operations.ts";
import type { Answer } from "./stream-client.ts";

export interface Admission {
  readonly operation: Operation;
  readonly theirs: Answer;
  readonly mine: Answer;
  /** Within a transaction: somebody has changed what it is about since the transaction began. */
  readonly disturbed: boolean;
  /** Within a transaction: something outside may make it meet other limits than when it began. */
  readonly outgrown: boolean;
  /** At the end of a transaction: a domain has as many nodes with it as it may have. */
  readonly full: boolean;
  /** Within a transaction: it is about nodes that the transaction could not remove for its limit. */
  readonly halved: boolean;
}

interface Difference {
  readonly name: string;
  readonly why: string;
  readonly covers: (admission: Admission) => boolean;
}

/** What is said of limits of nodes, and by transactions that met them. */
const limits = new Set(["ENOSPC", "EIO", "ENOMEM"]);

function limited({ error }: Answer): boolean {
  return error !== undefined && limits.has(error);
}

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
    covers: ({ disturbed, theirs, mine }) => disturbed && !limited(theirs) && !limited(mine),
  },
  {
    name: "snapshot limits",
    why: "so what a transaction has looked at and how large a node is in it are not counted alike, once that has changed outside",
    covers: ({ outgrown, theirs, mine }) => outgrown && (limited(theirs) || limited(mine)),
  },
  {
    name: "full",
    why: "the C daemon ends no transaction that changes what a domain owns where none may be left, whoever it is of, and whether it made any or takes some away",
    covers: ({ full, theirs }) => full && theirs.error === "ENOSPC",
  },
  {
    name: "half removed",
    why: "an RM that met the limit of a transaction's nodes has removed some of them in the C daemon, and none in ours; such a transaction cannot be committed",
    covers: ({ halved }) => halved,
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
