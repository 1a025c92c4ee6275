/**
 * A xenstore as it was, from the records of its file.
 *
 * Invariant: an operation that no daemon could have written (a node without a parent, a path that is none, an answer
 * that is no message) makes the file a damaged one, and nothing is left half loaded for anybody to see. Limits do not
 * bind what is loaded: they may have been higher.
 */
import {
  XENSTORE_ABS_PATH_MAX,
  XENSTORE_PAYLOAD_MAX,
  XENSTORE_SERVER_FEATURES,
  type XenStoreMessage,
  XenStoreParser,
} from "../../wire/xenstore.ts";
import { canonicalPath, domainPath, parentPath } from "./paths.ts";
import type { XenStoreState } from "./state.ts";
import type { StateFile } from "./state-file.ts";
import {
  type KeptWatch,
  malformed,
  type Operation,
  type RingState,
  readOperations,
} from "./state-operations.ts";
import type { Tree } from "./tree.ts";

/** The connection of a ring, as it was. */
export interface LoadedRing {
  readonly domid: number;
  consumed: number;
  rest: Uint8Array;
  behind: boolean;
  transactions: readonly number[];
  readonly answers: XenStoreMessage[];
  /** What was sent last; undefined where nothing was. */
  sent: { readonly start: number; readonly bytes: Uint8Array } | undefined;
  /** By path and token, the older first. */
  readonly watches: Map<string, LoadedWatch>;
}

export interface LoadedWatch extends KeptWatch {
  readonly domid: number;
  /** Of all, the older first. */
  readonly number: number;
}

/** Reads `file` to its end into a `state` that nobody uses yet. Throws XenError("EINVAL") where the file is damaged. */
export function loadState(file: StateFile, state: XenStoreState): Map<number, LoadedRing> {
  const loader = new Loader(state, file.fileBytes);
  for (let record = file.next(); record !== undefined; record = file.next()) {
    try {
      for (const operation of readOperations(record)) loader.apply(operation);
    } catch (error) {
      throw file.inLastRecord(error as Error);
    }
  }
  if (!loader.complete) throw file.damaged("it ends before it is complete");
  return loader.rings;
}

class Loader {
  readonly rings = new Map<number, LoadedRing>();
  complete = false;
  readonly #state: XenStoreState;
  readonly #tree: Tree;
  readonly #fileBytes: number;
  #watches = 0;

  constructor(state: XenStoreState, fileBytes: number) {
    this.#state = state;
    this.#tree = state.tree;
    this.#fileBytes = fileBytes;
    // The file begins with the empty tree.
    for (const name of this.#tree.get("/")?.children.keys() ?? []) this.#tree.remove(`/${name}`);
  }

  apply(operation: Operation): void {
    switch (operation.type) {
      case "create": {
        const { path, permissions, value } = operation;
        const isNew = isPath(path) && !path.startsWith("@") && this.#tree.get(path) === undefined;
        if (!isNew || this.#tree.get(parentPath(path)) === undefined) {
          throw malformed(`a node ${path} that cannot be made`);
        }
        this.#tree.create(path, permissions, checkedValue(value));
        break;
      }
      case "value":
        this.#needNode(operation.path);
        this.#tree.setValue(operation.path, checkedValue(operation.value));
        break;
      case "permissions":
        this.#needNode(operation.path);
        this.#tree.setPermissions(operation.path, operation.permissions);
        break;
      case "remove":
        this.#needNode(operation.path);
        if (operation.path === "/" || operation.path.startsWith("@")) throw malformed("no root");
        this.#tree.remove(operation.path);
        break;
      case "domain":
        if (operation.features & ~XENSTORE_SERVER_FEATURES) throw malformed("unknown features");
        this.#state.domains.get(operation.domid).restore(operation);
        break;
      case "forget":
        this.#state.domains.delete(operation.domid);
        this.rings.delete(operation.domid);
        break;
      case "limit":
        this.#state.domains.setLimit(operation.name, operation.value);
        break;
      case "watch":
        this.#addWatch(operation);
        break;
      case "unwatch": {
        const { domid, path, token } = operation;
        if (!this.#ring(domid).watches.delete(watchKey(path, token))) {
          throw malformed(`no watch of ${path} to end`);
        }
        break;
      }
      case "ring":
        this.#moveRing(operation.domid, operation);
        break;
      case "sent": {
        const { domid, answers, start, bytes } = operation;
        const ring = this.#ring(domid);
        if (answers > ring.answers.length) throw malformed("answers that nobody gave");
        ring.answers.splice(0, answers);
        ring.sent = { start, bytes };
        break;
      }
      case "disconnect":
        this.rings.delete(operation.domid);
        break;
      case "generation":
        // Every generation that the daemon before us used took a byte of the file at least, and more.
        if (!(operation.generation >= 0 && Number.isSafeInteger(operation.generation))) {
          throw malformed("a generation");
        }
        this.#tree.skipGenerations(operation.generation + this.#fileBytes);
        break;
      case "complete":
        if (this.complete) throw malformed("a second beginning");
        this.complete = true;
        break;
    }
  }

  #needNode(path: string): void {
    if (!isPath(path) || this.#tree.get(path) === undefined) throw malformed(`no node ${path}`);
  }

  #ring(domid: number): LoadedRing {
    let ring = this.rings.get(domid);
    if (ring === undefined) {
      ring = {
        ...{ domid, consumed: 0, rest: new Uint8Array(0), behind: false, transactions: [] },
        ...{ answers: [], sent: undefined, watches: new Map() },
      };
      this.rings.set(domid, ring);
    }
    return ring;
  }

  #addWatch({ domid, path, token, prefix, depth }: KeptWatch & { domid: number }): void {
    const { watches } = this.#ring(domid);
    const key = watchKey(path, token);
    const relative = prefix === `${domainPath(domid)}/` && path.startsWith(prefix);
    if (!isPath(path) || token.includes("\0") || !(prefix === "" || relative) || watches.has(key)) {
      throw malformed(`a watch of ${path}`);
    }
    watches.set(key, { domid, path, token, prefix, depth, number: this.#watches++ });
  }

  #moveRing(domid: number, state: RingState): void {
    const ring = this.#ring(domid);
    const { consumed, rest, behind, transactions, answers } = state;
    if (transactions.includes(0) || new Set(transactions).size !== transactions.length) {
      throw malformed("transactions of one number");
    }
    Object.assign(ring, { consumed, rest, behind, transactions });
    for (const answer of answers) {
      const parser = new XenStoreParser();
      parser.push(answer);
      const message = parser.next();
      if (message === undefined || parser.rest.length > 0) throw malformed("half an answer");
      ring.answers.push(message);
    }
  }
}

function isPath(path: string): boolean {
  return canonicalPath(path, 0, true, XENSTORE_ABS_PATH_MAX) === path;
}

function checkedValue(value: Uint8Array): Uint8Array {
  if (value.length > XENSTORE_PAYLOAD_MAX) throw malformed("a value that is too long");
  return value;
}

function watchKey(path: string, token: string): string {
  return `${path}\0${token}`;
}
