/**
 * Random operations of one client, such that every outcome comes often: nodes that are there, that are not, that may
 * not be read, paths and payloads with each kind of fault, limits that are met.
 */
import {
  XENSTORE_PAYLOAD_MAX,
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_DOMAIN_PATH,
  XS_GET_PERMS,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_PERMS,
  XS_SET_TARGET,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
} from "../../../../src/wire/xenstore.ts";
import { areas, BIG, guests, MORTAL, NOBODY, STRANGER } from "./areas.ts";
import type { Random } from "./random.ts";
import type { Request } from "./stream-client.ts";

export interface Operation extends Request {
  readonly name: string;
  /** As the client wrote it; "" where the operation has none. */
  readonly path: string;
  /** Payload or numbers that no client of goodwill sends. */
  readonly odd?: boolean | undefined;
}

/** What the generator knows of the client that acts. */
export interface Actor {
  readonly domid: number;
  /** Ids of its open transactions. */
  readonly transactions: readonly number[];
  /** Whether nobody has a transaction open. */
  readonly quiet: boolean;
}

const names = ["x", "y", "z"];
const faults = ["", "x//y", "x/", "//", "a b", "x\u00e9", "@", "/@x/", "/a/\u0001"];
/** The id of no transaction. */
const NOT_OPEN = 0xffff_ff00;
const specials = ["@introduceDomain", "@releaseDomain"];
/** Nodes that no domain may own that dies. */
const lasting = [...specials, "/", "/local", BIG];
const tokens = ["t", "u", "a token", "0", ""];
const letters = ["n", "r", "w", "b"];
/** Outside of the areas, what is there stays, and nothing is made. */
const elsewhere: Readonly<Partial<Record<string, readonly string[]>>> = {
  WRITE: [BIG],
  MKDIR: [BIG],
  RM: ["/nowhere/at/all"],
};

const treeOperations = {
  READ: 14,
  WRITE: 17,
  MKDIR: 7,
  RM: 8,
  DIRECTORY: 7,
  DIRECTORY_PART: 3,
  GET_PERMS: 6,
  SET_PERMS: 8,
};
const otherOperations = {
  WATCH: 10,
  UNWATCH: 10,
  RESET_WATCHES: 1,
  GET_DOMAIN_PATH: 4,
  IS_DOMAIN_INTRODUCED: 4,
  INTRODUCE: 5,
  RELEASE: 2,
  RESUME: 4,
  SET_TARGET: 2,
  CONTROL: 4,
  UNKNOWN: 1,
};
type Name = keyof typeof treeOperations | keyof typeof otherOperations;
type MessageName = Exclude<Name, "UNKNOWN"> | "TRANSACTION_START" | "TRANSACTION_END";

/** Of the messages that have names. */
export const types: Readonly<Record<MessageName, number>> = {
  CONTROL: XS_CONTROL,
  DIRECTORY: XS_DIRECTORY,
  DIRECTORY_PART: XS_DIRECTORY_PART,
  GET_DOMAIN_PATH: XS_GET_DOMAIN_PATH,
  GET_PERMS: XS_GET_PERMS,
  INTRODUCE: XS_INTRODUCE,
  IS_DOMAIN_INTRODUCED: XS_IS_DOMAIN_INTRODUCED,
  MKDIR: XS_MKDIR,
  READ: XS_READ,
  RELEASE: XS_RELEASE,
  RESET_WATCHES: XS_RESET_WATCHES,
  RESUME: XS_RESUME,
  RM: XS_RM,
  SET_PERMS: XS_SET_PERMS,
  SET_TARGET: XS_SET_TARGET,
  TRANSACTION_END: XS_TRANSACTION_END,
  TRANSACTION_START: XS_TRANSACTION_START,
  UNWATCH: XS_UNWATCH,
  WATCH: XS_WATCH,
  WRITE: XS_WRITE,
};

export class Operations {
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  /** Any operation but those of transactions' ends and the mortal domain's, which come alone. The C daemon (Xen 4.17)
   * aborts where a payload has no NUL and no error came before, so one does. */
  some(actor: Actor): Operation[] {
    const operation = this.#any(actor);
    if (operation.odd !== true) return [operation];
    const path = "/nowhere/at/all";
    const before = { name: "READ", type: types.READ, payload: `${path}\0`, transactionId: 0, path };
    // Outside of transactions, so that what was looked at is the same in both.
    return [before, { ...operation, transactionId: 0 }];
  }

  #any(actor: Actor): Operation {
    const random = this.#random;
    const tree = !random.once(5);
    const name: Name = tree ? random.weighted(treeOperations) : random.weighted(otherOperations);
    const open = actor.transactions;
    const inside = open.length > 0 && !random.once(3);
    const transactionId = random.once(40) ? NOT_OPEN : inside ? random.of(open) : 0;
    return this.#make(name, { ...actor, quiet: actor.quiet && transactionId === 0 }, transactionId);
  }

  start(actor: Actor): Operation {
    const inside = this.#random.once(8) && actor.transactions.length > 0;
    return {
      name: "TRANSACTION_START",
      type: XS_TRANSACTION_START,
      payload: this.#random.once(4) ? "" : "\0",
      transactionId: this.#random.once(20)
        ? NOT_OPEN
        : inside
          ? this.#random.of(actor.transactions)
          : 0,
      path: "",
    };
  }

  end(actor: Actor): Operation {
    const random = this.#random;
    return {
      name: "TRANSACTION_END",
      type: XS_TRANSACTION_END,
      payload: random.once(25)
        ? random.of(["", "T", "x\0", "T\0T\0"])
        : random.once(4)
          ? "F\0"
          : "T\0",
      transactionId:
        random.once(15) || actor.transactions.length === 0
          ? random.of([0, NOT_OPEN])
          : random.of(actor.transactions),
      path: "",
    };
  }

  /** A domain that is known is introduced again, which resets its connection. */
  again(): Operation {
    const payload = [this.#random.of([1, 2, 3]), 1, 7, ""].join("\0");
    return { name: "INTRODUCE", type: XS_INTRODUCE, payload, transactionId: 0, path: "" };
  }

  mortal(introduced: boolean): Operation {
    const name = introduced ? "RELEASE" : "INTRODUCE";
    const payload = introduced ? `${MORTAL}\0` : [MORTAL, 1, 7, ""].join("\0");
    return { name, type: types[name], payload, transactionId: 0, path: "" };
  }

  #make(name: Name, actor: Actor, transactionId: number): Operation {
    const random = this.#random;
    switch (name) {
      case "READ":
      case "MKDIR":
      case "DIRECTORY":
      case "GET_PERMS":
      case "RM":
        return this.#withPath(name, actor, transactionId, "\0");
      case "WRITE":
        return this.#withPath(name, actor, transactionId, `\0${this.#value(actor)}`);
      case "DIRECTORY_PART": {
        const offset = random.once(15)
          ? random.of(["x", "-1", ""])
          : random.of(["0", "0", "2", "4", "5000", "4096"]);
        const rest = random.once(15) ? "\0" : `\0${offset}\0`;
        const operation = this.#withPath(name, actor, transactionId, rest);
        return { ...operation, odd: operation.odd || !/^\d+$/.test(offset) };
      }
      case "SET_PERMS": {
        const special = actor.quiet && random.once(20) ? random.of(specials) : undefined;
        const words = this.#permissions(actor);
        const path = special ?? this.#path(name, actor);
        // What a domain that dies owned of them, the C daemon removes, and cannot do without.
        if (words.length > 0 && lasting.includes(path)) words[0] = random.of(["n0", "r0", "b0"]);
        const rest = `\0${words.map((word) => `${word}\0`).join("")}`;
        const operation = this.#withPath(name, actor, transactionId, rest, path);
        const odd =
          special !== undefined || operation.odd || words.some((word) => !/^[nrwb]\d+$/.test(word));
        return { ...operation, odd };
      }
      case "WATCH":
      case "UNWATCH": {
        const path = random.once(8) ? random.of([...specials, "@other"]) : undefined;
        const rest = random.once(40)
          ? "\0"
          : `\0${random.of(tokens)}\0${random.once(60) ? "more\0more\0" : ""}`;
        return this.#withPath(name, actor, transactionId, rest, path);
      }
      case "RESET_WATCHES":
        // In an open transaction it aborts the C daemon (Xen 4.17).
        return this.#plain(name, random.once(10) ? NOT_OPEN : 0, random.of(["", "\0"]));
      case "GET_DOMAIN_PATH":
      case "IS_DOMAIN_INTRODUCED":
        return this.#withNumbers(name, transactionId, [this.#domid()]);
      case "RELEASE":
        return this.#withNumbers(name, transactionId, [random.of([0, STRANGER, NOBODY])]);
      case "RESUME":
        return this.#withNumbers(name, transactionId, [
          random.of([0, ...guests, STRANGER, NOBODY]),
        ]);
      case "INTRODUCE":
        return this.#withNumbers(name, transactionId, [NOBODY, 1, random.of([0, 7])]);
      case "SET_TARGET":
        return this.#withNumbers(name, transactionId, [
          random.of([3, 3, STRANGER, NOBODY]),
          random.of([1, 2, STRANGER]),
        ]);
      case "CONTROL":
        return this.#plain(name, transactionId, random.of(controls));
      case "UNKNOWN":
        return {
          name,
          type: random.of([15, 16, 20, 27, 99, 0xffff, 0xffffffff]),
          payload: random.of(["", "x\0"]),
          transactionId,
          path: "",
        };
    }
  }

  #plain(name: Exclude<Name, "UNKNOWN">, transactionId: number, payload: string): Operation {
    return { name, type: types[name], payload, transactionId, path: "" };
  }

  #withNumbers(
    name: Exclude<Name, "UNKNOWN">,
    transactionId: number,
    numbers: readonly number[],
  ): Operation {
    const random = this.#random;
    if (random.once(8)) {
      return { ...this.#plain(name, transactionId, random.of(["", "1", "\0"])), odd: true };
    }
    const words = random.once(12) ? ["x", ...numbers.slice(1)] : numbers;
    const payload = words.map((word) => `${word}\0`).join("");
    return { ...this.#plain(name, transactionId, payload), odd: words !== numbers };
  }

  #withPath(
    name: Exclude<Name, "UNKNOWN">,
    actor: Actor,
    transactionId: number,
    rest: string,
    given?: string,
  ): Operation {
    const random = this.#random;
    const path = given ?? this.#path(name, actor);
    const faulty = random.once(60);
    // Without the NUL that ends the path, or with another string.
    const special = path.startsWith("@") && name !== "WATCH" && name !== "UNWATCH";
    const all = faulty ? path + random.of(["", `${rest}more`, `${rest}more\0`]) : path + rest;
    const payload = all.slice(0, XENSTORE_PAYLOAD_MAX);
    return {
      name,
      type: types[name],
      payload,
      transactionId,
      path,
      odd: faulty || special || payload !== all,
    };
  }

  #path(name: Name, actor: Actor): string {
    const random = this.#random;
    const { domid, quiet } = actor;
    const changes = name === "WRITE" || name === "MKDIR" || name === "SET_PERMS";
    if (random.once(25)) return this.#faultyPath(domid);
    if (random.once(50) && (quiet || !changes)) {
      return name === "RM" ? "/" : random.of(["/", BIG, "/local"]);
    }
    if (random.once(60) && (quiet || !changes))
      return random.of(elsewhere[name] ?? [BIG, "/tool", "/nowhere/at/all"]);
    const below = Array.from({ length: 1 + random.below(3) }, () => random.of(names)).join("/");
    if (domid !== 0 && random.once(3)) return below;
    const area = random.of([...areas.keys()]);
    const atTop = name !== "RM" && random.once(6);
    return atTop ? area : `${area}/${below}`;
  }

  #faultyPath(domid: number): string {
    const random = this.#random;
    switch (random.below(4)) {
      case 0:
        return `/a/${"l".repeat(random.of([2044, 2045, 2046, 2047, 3000, 4000]))}`;
      case 1:
        return `${random.once(2) ? `/local/domain/${domid}/` : ""}${"l".repeat(random.of([2048, 2049]))}`;
      default:
        return random.of(faults);
    }
  }

  #value(actor: Actor): string {
    const random = this.#random;
    if (random.once(12)) return "v".repeat(random.of([400, 500, 560, 600]));
    if (actor.domid === 0 && random.once(40)) return "v".repeat(2000);
    return random.of(["", "0", "1", "a value", "bytes \0\u00ff and more"]);
  }

  #permissions(actor: Actor): string[] {
    const random = this.#random;
    if (random.once(30)) return random.of([[], ["x0"], ["n"], ["n1x"], ["r-1"]]);
    const owner = random.once(8)
      ? this.#domid()
      : actor.domid !== 0 || random.once(2)
        ? actor.domid
        : random.of(guests);
    const others = Array.from({ length: random.below(random.once(5) ? 6 : 3) }, () =>
      this.#domid(),
    );
    return [owner, ...others].map((domid) => random.of(letters) + domid);
  }

  #domid(): number {
    return this.#random.of([0, ...guests, ...guests, STRANGER, NOBODY]);
  }
}

/** Sets how many nodes a domain may own. */
export function nodeLimit(nodes: number): Operation {
  const payload = ["quota", "set", "nodes", nodes, ""].join("\0");
  return { name: "CONTROL", type: XS_CONTROL, payload, transactionId: 0, path: "" };
}

/** Of a few that tell of limits, and others. */
const controls = [
  "help\0",
  "quota\0",
  ...[1, 2, 3, NOBODY].map((domid) => `quota\0${domid}\0`),
  ...[16, 60, 60].map((nodes) => nodeLimit(nodes).payload),
  "check\0",
  "check\0x\0",
  "quota\0x\0y\0",
  "nonsense\0",
  "",
  ["quota", "set", "nodes", "0", ""].join("\0"),
];
