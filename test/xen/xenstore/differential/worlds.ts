/** The two daemons, alike in all that can be set, with the same clients connected to both. */
import type { Clock } from "../../../../src/util/clock.ts";
import { XenStoreDaemon } from "../../../../src/xen/xenstore/daemon.ts";
import { GenuineXenstored } from "../../../support/xenstored.ts";
import { STRANGER } from "./areas.ts";
import { StreamClient } from "./stream-client.ts";

/** Low, so that they are met. */
export const limits = {
  nodes: 60,
  nodeBytes: 600,
  watches: 8,
  transactions: 4,
  permissions: 4,
  outstanding: 6,
  transactionNodes: 20,
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
  /** Domains that the hypervisor does not know. */
  readonly #dead: Set<number>;
  /** Clients that our daemon disconnected, and why. */
  readonly lost: string[] = [];

  private constructor(genuine: GenuineXenstored, ours: XenStoreDaemon, dead: Set<number>) {
    this.#genuine = genuine;
    this.#ours = ours;
    this.#dead = dead;
  }

  static async start(): Promise<Worlds> {
    const genuine = await GenuineXenstored.start([
      ...["--entry-nb", String(limits.nodes), "--entry-size", String(limits.nodeBytes)],
      ...["--watch-nb", String(limits.watches), "--transaction", String(limits.transactions)],
      ...["--perm-nb", String(limits.permissions)],
      ...["--quota", `transaction-nodes=${limits.transactionNodes}`],
      ...["--quota", `outstanding=${limits.outstanding}`],
    ]);
    const dead = new Set<number>();
    const ours = new XenStoreDaemon({
      limits,
      domainExists: (domid) => domid <= STRANGER && !dead.has(domid),
      clock: hurried,
      onClientLost: (domid, reason) => worlds.lost.push(`domain ${domid}: ${reason.message}`),
    });
    const worlds = new Worlds(genuine, ours, dead);
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

  /** The hypervisor ends a domain. */
  async destroy(domid: number): Promise<void> {
    this.#dead.add(domid);
    await this.#genuine.hypervisor("dead", domid);
    this.#ours.release(domid);
  }

  /** The hypervisor makes a domain of that number. */
  async create(domid: number): Promise<void> {
    this.#dead.delete(domid);
    await this.#genuine.hypervisor("alive", domid);
  }

  /** A domain shuts down, and runs again when both have seen it: they tell of it again once it was resumed. */
  async shutdown(domid: number): Promise<void> {
    await this.#genuine.hypervisor("shutdown", domid);
    this.#ours.shutdown(domid);
    await this.#genuine.hypervisor("alive", domid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ours[Symbol.asyncDispose]();
    await this.#genuine[Symbol.asyncDispose]();
  }
}
