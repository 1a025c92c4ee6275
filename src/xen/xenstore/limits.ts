/** How much of the daemon one domain may take. The first six are the defaults of the C daemon and, as there, do not
 * bind domain 0, nor does the bound on what a commit tells; the others keep a client that does not read from growing our
 * memory, whoever it is. */
export interface XenStoreLimits {
  /** Nodes that a domain owns. */
  readonly nodes: number;
  /** Bytes of one node: its value, the names of its children, its permissions. */
  readonly nodeBytes: number;
  /** Entries of one node's permissions. */
  readonly permissions: number;
  /** Watches of a domain. */
  readonly watches: number;
  /** Open transactions of a domain. */
  readonly transactions: number;
  /** Nodes that one transaction looks at or changes. */
  readonly transactionNodes: number;
  /** Bytes of answers and events that wait for a client to read; above, its own requests wait too. */
  readonly queuedBytes: number;
  /** Bytes of events that wait for a client to read; above, those of a watch become one. Others are never held up. */
  readonly queuedEventBytes: number;
  /** Milliseconds that a client may read nothing while more wait than `queuedEventBytes`, though each watch has one
   * event; above, it is disconnected. */
  readonly deafMilliseconds: number;
  /** Bytes of paths that one watch hears of one transaction, before it hears of its own path instead. */
  readonly commitPathBytes: number;
  /** Clients of one socket. */
  readonly clients: number;
}

export const defaultLimits: XenStoreLimits = {
  nodes: 1000,
  nodeBytes: 2048,
  permissions: 5,
  watches: 128,
  transactions: 10,
  transactionNodes: 1024,
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
