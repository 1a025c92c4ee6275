/**
 * The same operations to both daemons, from clients with different rights, and everything that they say compared.
 *
 * A batch comes from one client, all sent before the first answer is read; then every client has read all that was
 * meant for it before the next batch, so both daemons see one order. Events that are equal and follow each other while
 * their client has not read may be one (both daemons do that, when they happen to), so of equal events in a batch the
 * first counts.
 */
import assert from "node:assert/strict";
import { XENSTORE_PAYLOAD_MAX } from "../../../../src/wire/xenstore.ts";
import { childPath } from "../../../../src/xen/xenstore/paths.ts";
import { areas, BIG, bigNames, guests, MORTAL, STRANGER } from "./areas.ts";
import { admitted } from "./intended.ts";
import { OpenTransaction } from "./open-transaction.ts";
import { type Actor, nodeLimit, type Operation, Operations, types } from "./operations.ts";
import { Random } from "./random.ts";
import { Shadow } from "./shadow.ts";
import { describe, firsts, show } from "./shown.ts";
import type { Answer, Event, Request } from "./stream-client.ts";
import { Tally } from "./tally.ts";
import { limits, type Pair, type Worlds } from "./worlds.ts";

const MAX_BATCH = 48;
/** Operations between two looks at all that is there. */
const TREE_INTERVAL = 20_000;
/** Operations that a failure tells of. */
const HISTORY_LINES = 200;

interface Client {
  readonly name: string;
  readonly domid: number;
  pair: Pair | undefined;
  readonly transactions: Map<number, OpenTransaction>;
}

export class Comparison {
  readonly tally: Tally = new Tally();
  readonly #worlds: Worlds;
  readonly #random: Random;
  readonly #operations: Operations;
  readonly #clients: Client[];
  readonly #shadow = new Shadow();
  /** Domains that the hypervisor has ended, and whether the mortal one is introduced. */
  readonly #dead = new Set<number>();
  #introduced = true;
  /** That each domain may own. */
  #nodes = limits.nodes;
  /** The latest operations, for whoever has to find out. */
  readonly #history: string[] = [];

  private constructor(worlds: Worlds, seed: number) {
    this.#worlds = worlds;
    this.#random = new Random(seed);
    this.#operations = new Operations(this.#random);
    const domids = [0, 0, ...guests];
    this.#clients = domids.map((domid, index) => ({
      name: `client ${index} of domain ${domid}`,
      domid,
      pair: undefined,
      transactions: new Map(),
    }));
  }

  static async start(worlds: Worlds, seed: number): Promise<Comparison> {
    const comparison = new Comparison(worlds, seed);
    await comparison.#setUp();
    return comparison;
  }

  /** Goes on until so many operations have been compared. */
  async run(operations: number): Promise<void> {
    let looked = 0;
    while (this.tally.operations < operations) {
      await this.#step();
      if (this.tally.operations - looked < TREE_INTERVAL) continue;
      looked = this.tally.operations;
      await this.#compareTrees();
    }
    await this.#compareTrees();
  }

  /** Every node with its value, its permissions and its children, level by level. */
  async #compareTrees(): Promise<void> {
    let level: readonly string[] = ["/"];
    const found = ["/"];
    while (level.length > 0) {
      const requests = level.flatMap((path) =>
        (["DIRECTORY", "READ", "GET_PERMS"] as const).map((name) => request(name, `${path}\0`)),
      );
      const [genuine, ours] = await this.#exchange(this.#zero, requests);
      const next: string[] = [];
      for (const [index, answer] of genuine.answers.entries()) {
        const path = level[Math.floor(index / 3)] as string;
        const mine = ours.answers[index] as Answer;
        if (show(answer) !== show(mine)) this.#differ(`tree: ${path}`, show(answer), show(mine));
        if (index % 3 > 0) continue;
        if (answer.error === "E2BIG") next.push(...this.#shadow.children(path));
        if (answer.error !== undefined) continue;
        const names = answer.text.split("\0").slice(0, -1);
        next.push(...names.map((name) => childPath(path, name)));
      }
      level = next;
      found.push(...next);
    }
    const [paths, seen] = [[...this.#shadow.paths].sort().join("\n"), found.sort().join("\n")];
    if (paths !== seen) this.#differ("shadow", seen, paths);
  }

  async #setUp(): Promise<void> {
    const zero = this.#zero;
    zero.pair = await this.#worlds.connect(0);
    const requests = guests.map((domid) => request("INTRODUCE", [domid, 1, 7, ""].join("\0")));
    requests.push(request("SET_TARGET", ["3", "1", ""].join("\0")));
    for (const name of bigNames) requests.push(request("WRITE", `${BIG}/${name}\0`));
    await this.#quietly(requests);
    for (const client of this.#clients) client.pair ??= await this.#worlds.connect(client.domid);
    await this.#renew(areas.keys());
  }

  get #zero(): Client {
    return this.#clients[0] as Client;
  }

  get #mortal(): Client {
    return this.#clients.find(({ domid }) => domid === MORTAL) as Client;
  }

  #note(line: string): void {
    this.#history.push(line);
    while (this.#history.length > HISTORY_LINES) this.#history.shift();
  }

  async #step(): Promise<void> {
    const random = this.#random;
    const present = this.#clients.filter(({ pair }) => pair !== undefined);
    const client = random.of(present);
    const transactions = [...client.transactions.keys()];
    const quiet = this.#clients.every((each) => each.transactions.size === 0);
    const actor = { domid: client.domid, transactions, quiet };
    if (random.once(40)) {
      await this.#renew([]);
      await this.#fate();
    } else if (random.once(200)) {
      await this.#batch(this.#zero, [this.#operations.again()]);
    } else if (transactions.length > 0 ? random.once(2) : random.once(30)) {
      await this.#end(client, actor);
    } else {
      // More transactions than there may be, now and then.
      const starts = random.once(3) ? (random.once(20) ? 7 : 1) : 0;
      const length = random.once(4) ? 1 : 1 + random.below(MAX_BATCH);
      const batch = [
        ...Array.from({ length: starts }, () => this.#operations.start(actor)),
        ...Array.from({ length }, () => this.#operations.some(actor)).flat(),
      ];
      await this.#batch(client, batch);
    }
  }

  /** The end of a transaction, before which there may be less room than when its nodes were made. */
  async #end(client: Client, actor: Actor): Promise<void> {
    const full = !this.#random.once(3);
    if (full) await this.#batch(this.#zero, [nodeLimit(this.#random.of([1, 2, 4]))]);
    await this.#batch(client, [this.#operations.end(actor)]);
    if (full) await this.#batch(this.#zero, [nodeLimit(limits.nodes)]);
  }

  /** Sends, reads, compares. */
  async #batch(client: Client, batch: readonly Operation[]): Promise<void> {
    for (const operation of batch) this.#note(`${client.name}: ${describe(operation)}`);
    const [genuine, ours] = await this.#exchange(client, [...batch, probe]);
    let renew: Iterable<string> | undefined;
    for (const [index, operation] of batch.entries()) {
      const theirs = genuine.answers[index] as Answer;
      const mine = ours.answers[index] as Answer;
      this.#note(`  -> ${show(theirs)}`);
      renew = this.#compare(client, operation, theirs, mine) ?? renew;
    }
    this.tally.operations += batch.length;
    const moved = await this.#moveMortal(batch[0] as Operation, genuine.answers[0] as Answer);
    const news = await this.#news(client, genuine.events, ours.events);
    renew ??= moved;
    if (renew === undefined || moved !== undefined) this.#compareEvents(news);
    if (renew === undefined) return;
    await this.#renew(renew);
  }

  /** Something happens to a domain, or to a connection. */
  async #fate(): Promise<void> {
    const random = this.#random;
    const mortal = this.#mortal;
    switch (random.below(8)) {
      case 0:
        return await this.#happens("SHUTDOWN", random.of(mortal.pair ? guests : [1, 2, 3]));
      case 1:
        return await this.#happens(this.#dead.has(STRANGER) ? "CREATE" : "DESTROY", STRANGER);
      case 2:
        return await this.#tooLong(this.#clients[1] as Client);
      case 3:
        if (mortal.pair !== undefined) return await this.#tooLong(mortal);
        break;
      case 4:
        if (!this.#dead.has(MORTAL)) return await this.#happens("DESTROY", MORTAL);
        break;
    }
    if (this.#dead.has(MORTAL)) await this.#happens("CREATE", MORTAL);
    await this.#batch(this.#zero, [this.#operations.mortal(this.#introduced)]);
  }

  /** What the hypervisor does. */
  async #happens(what: "SHUTDOWN" | "DESTROY" | "CREATE", domid: number): Promise<void> {
    this.#note(`domain ${domid}: ${what}`);
    this.tally.outcome(what);
    if (what === "SHUTDOWN") await this.#worlds.shutdown(domid);
    if (what === "CREATE") await this.#worlds.create(domid);
    if (what === "CREATE") this.#dead.delete(domid);
    if (what !== "DESTROY") return await this.#compareNews();
    this.#dead.add(domid);
    await this.#worlds.destroy(domid);
    await this.#gone(domid);
    await this.#compareNews();
    await this.#renew([`/local/domain/${domid}`]);
  }

  /** The header of a message that is too long ends the connection, with its watches and transactions. */
  async #tooLong(client: Client): Promise<void> {
    const length =
      XENSTORE_PAYLOAD_MAX + this.#random.of([1, 2, 1e6, 0xffff_ffff - XENSTORE_PAYLOAD_MAX]);
    this.#note(`${client.name}: a message of ${length} bytes`);
    this.tally.outcome("LENGTH");
    client.pair?.genuine.sendHeader(length);
    client.pair?.ours.sendHeader(length);
    await this.#disconnected(client);
    if (client.domid === 0) client.pair = await this.#worlds.connect(0);
    await this.#compareNews();
  }

  async #disconnected(client: Client): Promise<void> {
    await Promise.all([client.pair?.genuine.closed, client.pair?.ours.closed]);
    client.pair = undefined;
    client.transactions.clear();
  }

  /** A domain has lost its connection, and its nodes everywhere. */
  async #gone(domid: number): Promise<void> {
    if (domid === MORTAL) {
      this.#introduced = false;
      await this.#disconnected(this.#mortal);
    }
    this.#shadow.forget(domid);
  }

  /** A domain that is released is gone; one that is introduced has a connection. */
  async #moveMortal(
    { name, payload }: Operation,
    { error }: Answer,
  ): Promise<Iterable<string> | undefined> {
    if (error !== undefined || !payload.startsWith(`${MORTAL}\0`)) return undefined;
    if (name === "RELEASE") {
      await this.#gone(MORTAL);
      return [`/local/domain/${MORTAL}`];
    }
    if (name === "INTRODUCE") {
      this.#introduced = true;
      this.#mortal.pair = await this.#worlds.connect(MORTAL);
    }
    return undefined;
  }

  async #exchange(client: Client, requests: readonly Request[]) {
    const { genuine, ours } = client.pair as Pair;
    genuine.send(requests);
    ours.send(requests);
    return await Promise.all([
      genuine.take(requests.length).catch((error) => this.#lost(client, "xenstored", error)),
      ours.take(requests.length).catch((error) => this.#lost(client, "ours", error)),
    ]);
  }

  /** Compares one answer and remembers what the operation did. The areas that have to be made anew, if any. */
  #compare(
    client: Client,
    operation: Operation,
    theirs: Answer,
    mine: Answer,
  ): Iterable<string> | undefined {
    const transaction = client.transactions.get(operation.transactionId);
    transaction?.look(operation);
    // What a malformed one gives is what came before it.
    if (operation.odd !== true) this.tally.outcome(operation.name, theirs.error);
    const same = show(theirs) === show(mine);
    if (!same) {
      const disturbed = transaction?.disturbs(operation) === true;
      const outgrown = transaction?.outgrows(operation) === true;
      const halved = transaction?.halved(operation) === true;
      const ends = operation.name === "TRANSACTION_END";
      const full = ends && transaction?.fills(this.#nodes) === true;
      const reason = admitted({ operation, theirs, mine, disturbed, outgrown, full, halved });
      if (reason === undefined)
        this.#differ(`${client.name}: ${describe(operation)}`, show(theirs), show(mine));
      this.tally.difference(reason, operation.name, theirs.error, mine.error);
      if (disturbed || outgrown || full || halved) transaction?.differed(operation);
    } else if (transaction !== undefined) {
      transaction.did(operation, theirs.error);
    } else if (theirs.error === undefined) {
      this.#shadow.operate(operation, client.domid);
    }
    return this.#remember(client, operation, transaction, theirs, same);
  }

  #remember(
    client: Client,
    { name, payload }: Operation,
    transaction: OpenTransaction | undefined,
    theirs: Answer,
    same: boolean,
  ): Iterable<string> | undefined {
    if (name === "TRANSACTION_START" && theirs.error === undefined) {
      const id = Number(theirs.text.slice(0, -1));
      client.transactions.set(id, new OpenTransaction(id, client.domid, this.#shadow));
    } else if (name === "TRANSACTION_END" && transaction !== undefined) {
      // Only malformed ends leave it open.
      if (theirs.error === "EINVAL") return undefined;
      client.transactions.delete(transaction.id);
      const committed = payload === "T\0" && theirs.error === undefined;
      if (committed) transaction.commit();
      if (!same || (committed && transaction.tainted)) return transaction.areas;
    } else if (name === "INTRODUCE" && theirs.error === undefined) {
      const domid = Number.parseInt(payload, 10);
      for (const each of this.#clients) if (each.domid === domid) each.transactions.clear();
    } else if (name === "CONTROL" && theirs.error === undefined) {
      const [, limit] = /^quota\0set\0nodes\0(\d+)/.exec(payload) ?? [];
      if (limit !== undefined) this.#nodes = Number(limit);
    } else if (name === "RESET_WATCHES" && theirs.error === undefined) {
      client.transactions.clear();
    }
    return undefined;
  }

  /** What everyone has heard, after the batch of `client`. */
  async #news(
    client: Client,
    genuine: Event[],
    ours: Event[],
  ): Promise<[string, Event[], Event[]][]> {
    const others = this.#clients.filter((each) => each !== client && each.pair !== undefined);
    const heard = await Promise.all(
      others.map(async (other): Promise<[string, Event[], Event[]]> => {
        const [theirs, mine] = await this.#exchange(other, [probe]);
        return [other.name, theirs.events, mine.events];
      }),
    );
    return [[client.name, genuine, ours], ...heard];
  }

  /** Of something that was no request. */
  async #compareNews(): Promise<void> {
    const [genuine, ours] = await this.#exchange(this.#zero, [probe]);
    this.#compareEvents(await this.#news(this.#zero, genuine.events, ours.events));
  }

  #compareEvents(news: readonly (readonly [string, Event[], Event[]])[]): void {
    for (const [name, genuine, ours] of news) {
      const [theirs, mine] = [firsts(genuine), firsts(ours)];
      this.tally.events += theirs.length;
      if (theirs.join() !== mine.join())
        this.#differ(`events of ${name}`, theirs.join("\n"), mine.join("\n"));
    }
  }

  /** Ends all transactions and makes the areas anew, so that both trees are equal again. */
  async #renew(tops: Iterable<string>): Promise<void> {
    for (const client of this.#clients) {
      const ends = [...client.transactions.keys()].map((transactionId) => ({
        ...request("TRANSACTION_END", "F\0"),
        transactionId,
      }));
      client.transactions.clear();
      if (client.pair !== undefined && ends.length > 0) await this.#exchange(client, ends);
    }
    const requests: Operation[] = [];
    for (const top of tops) {
      const permissions = areas.get(top);
      if (permissions === undefined) continue;
      requests.push(request("RM", `${top}\0`), request("MKDIR", `${top}\0`));
      requests.push(request("SET_PERMS", [top, ...permissions, ""].join("\0")));
    }
    if (requests.length > 0) await this.#quietly(requests);
  }

  /** Of domain 0, with events that count for nothing. */
  async #quietly(operations: readonly Operation[]): Promise<void> {
    await this.#exchange(this.#zero, operations);
    for (const operation of operations) this.#shadow.operate(operation, 0);
    await this.#news(this.#zero, [], []);
  }

  async #lost(client: Client, daemon: string, cause: unknown): Promise<never> {
    // A crash is known a little later.
    await new Promise((resolve) => setTimeout(resolve, 500));
    throw new Error(
      `${this.#history.join("\n")}\n\n${daemon} disconnected ${client.name}: ${this.#worlds.state} ${this.#worlds.lost}`,
      { cause },
    );
  }

  #differ(what: string, theirs: string, mine: string): never {
    const history = this.#history.join("\n");
    throw new assert.AssertionError({
      message: `after ${this.tally.operations} operations: ${history}\n\n${what}\nxenstored:\n${theirs}\nours:\n${mine}`,
    });
  }
}

/** Of domain 0. */
function request(name: keyof typeof types, payload: string): Operation {
  const [path = ""] = payload.split("\0");
  return { name, type: types[name], payload, transactionId: 0, path };
}

/** Its answer comes after all events that came before. */
const probe = request("GET_DOMAIN_PATH", "0\0");
