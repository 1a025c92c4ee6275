/** How much of the daemon one domain may take. */

/** What bounds each domain but domain 0, with the defaults of the C daemon; each may have limits of its own. */
export interface DomainLimits {
  /** Nodes that a domain owns. */
  readonly nodes: number;
  /** Watches of a domain; one more, as in the C daemon. */
  readonly watches: number;
  /** Open transactions of a domain; one more, as in the C daemon. */
  readonly transactions: number;
  /** Answers that wait for a client to read; from then on, its requests wait, too. */
  readonly outstanding: number;
  /** Nodes that one transaction looks at or changes. */
  readonly transactionNodes: number;
  /** Bytes of the nodes that a domain owns, with their paths, and of its watches. */
  readonly memoryBytes: number;
  /** Bytes of one node: its value, the names of its children, its permissions. */
  readonly nodeBytes: number;
  /** Characters of a path below the directory of a domain. */
  readonly pathCharacters: number;
  /** Entries of one node's permissions. */
  readonly permissions: number;
}

/** The others keep a client that does not read from growing our memory, whoever it is. */
export interface XenStoreLimits extends DomainLimits {
  /** Bytes of answers and events that wait for a client to read; above, its own requests wait too. */
  readonly queuedBytes: number;
  /** Bytes of events that wait for a client to read; above, those of a watch become one. Others are never held up. */
  readonly queuedEventBytes: number;
  /** Milliseconds that a client may read nothing while more wait than `queuedEventBytes`, though each watch has one
   * event; above, it is disconnected. */
  readonly deafMilliseconds: number;
  /** Bytes of paths that one watch hears of one transaction, before it hears of its own path instead. Does not bind
   * domain 0. */
  readonly commitPathBytes: number;
  /** Clients of one socket. */
  readonly clients: number;
}

export const defaultLimits: XenStoreLimits = {
  nodes: 1000,
  watches: 128,
  transactions: 10,
  outstanding: 20,
  transactionNodes: 1024,
  // As many nodes as it may have, of their full size, and a quarter more.
  memoryBytes: 2.5 * 2 ** 20,
  nodeBytes: 2048,
  pathCharacters: 2048,
  permissions: 5,
  // Sixteen of the largest answers: more than any client needs in flight.
  queuedBytes: 64 * 1024,
  // Identical events are one, so this is some thousands of different paths.
  queuedEventBytes: 256 * 1024,
  // A machine that swaps or a process that a debugger holds is longer away than a busy one, and comes back.
  deafMilliseconds: 60_000,
  // A device has thirty nodes or so, of fifty bytes each.
  commitPathBytes: 16 * 1024,
  // The C daemon has a descriptor each; this leaves room below the usual limit of 1024.
  clients: 512,
};

/** A limit as clients know it (GET_QUOTA, SET_QUOTA, and the quota command of CONTROL). */
export interface Quota {
  readonly name: string;
  readonly limit: keyof DomainLimits;
  /** For people. */
  readonly about: string;
}

/** In the order of the C daemon. */
export const quotas: readonly Quota[] = [
  { name: "nodes", limit: "nodes", about: "nodes owned by a domain" },
  { name: "watches", limit: "watches", about: "watches of a domain" },
  { name: "transactions", limit: "transactions", about: "open transactions of a domain" },
  { name: "outstanding", limit: "outstanding", about: "answers a domain has not read" },
  { name: "transaction-nodes", limit: "transactionNodes", about: "nodes used by a transaction" },
  { name: "memory", limit: "memoryBytes", about: "bytes of a domain's nodes and watches" },
  { name: "node-size", limit: "nodeBytes", about: "bytes of a node" },
  { name: "path-max", limit: "pathCharacters", about: "characters of a path" },
  { name: "permissions", limit: "permissions", about: "permissions of a node" },
];

/** Daemons since Xen 4.18 call the last so. */
const LATER_NAMES: Readonly<Record<string, string>> = { "node-permissions": "permissions" };

export function findQuota(name: string): Quota | undefined {
  const known = LATER_NAMES[name] ?? name;
  return quotas.find((quota) => quota.name === known);
}
