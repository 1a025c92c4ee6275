/** The two daemons, alike in all that can be set, with the same clients connected to both. */
import type { Clock } from "../../../../src/util/clock.ts";
import { XenStoreDaemon } from "../../../../src/xen/xenstore/daemon.ts";
import { GenuineXenstored } from "../../../support/xenstored.ts";
import { STRANGER } from "./areas.ts";
import { StreamClient } from "./stream-client.ts";

/** Low, so that they are met. */
const limits = {
  nodes: 60,
  nodeBytes: 600,
  watches: 8,
  transactions: 4,
  permissions: 4,
  transactionNodes: 24,
};

/** As that of the C daemon: nobody is made to wait for what others did. */
const hurried: Clock = {
  now: () => performance.now() * 1e6,
  after(_, callback) {
    const timer = setImmediate(callback);
    return { [Symbol.dispose]: () => clearImmediate(timer) };
  },
};

/** A client of both daemons: the same domain, the same requests. */
export interface Pair {
  readonly genuine: StreamClient;
  readonly ours: StreamClient;
}

export class Worlds implements AsyncDisposable {
  readonly #genuine: GenuineXenstored;
  readonly #ours: XenStoreDaemon;
  /** Clients that our daemon disconnected, and why. */
  readonly lost: string[] = [];

  private constructor(genuine: GenuineXenstored, ours: XenStoreDaemon) {
    this.#genuine = genuine;
    this.#ours = ours;
  }

  static async start(): Promise<Worlds> {
    const genuine = await GenuineXenstored.start([
      ...["--entry-nb", String(limits.nodes), "--entry-size", String(limits.nodeBytes)],
      ...["--watch-nb", String(limits.watches), "--transaction", String(limits.transactions)],
      ...["--perm-nb", String(limits.permissions)],
      ...["--quota", `transaction-nodes=${limits.transactionNodes}`],
    ]);
    const ours = new XenStoreDaemon({
      limits,
      domainExists: (domid) => domid <= STRANGER,
      clock: hurried,
      onClientLost: (domid, reason) => worlds.lost.push(`domain ${domid}: ${reason.message}`),
    });
    const worlds = new Worlds(genuine, ours);
    return worlds;
  }

  /** Of the C daemon, for people. */
  get state(): string {
    return this.#genuine.state;
  }

  async connect(domid: number): Promise<Pair> {
    const genuine = new StreamClient(await this.#genuine.connect(domid));
    return { genuine, ours: new StreamClient(this.#ours.connect(domid)) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ours[Symbol.asyncDispose]();
    await this.#genuine[Symbol.asyncDispose]();
  }
}
