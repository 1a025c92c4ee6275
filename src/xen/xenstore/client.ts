/**
 * A client of a xenstore, ours or the system's, over any transport (docs/misc/xenstore.txt; xs.c of libxenstore).
 *
 * Invariant: every promise settles: with the answer of its request id, or with an error when the connection ends.
 * What one transaction's body does is one transaction, however often it is run again.
 */
import type { MessagePort } from "node:worker_threads";
import {
  decodeXenStoreStrings,
  decodeXenStoreText,
  encodeXenStoreStrings,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_PERMS,
  XS_MKDIR,
  XS_READ,
  XS_RM,
  XS_SET_PERMS,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
} from "../../wire/xenstore.ts";
import {
  XenError,
  type XenStore,
  type XenStoreOperations,
  type XenStorePermission,
} from "../domain.ts";
import { ClientLink } from "./client-link.ts";
import { ClientWatches } from "./client-watches.ts";
import { transportOver } from "./message-port-transport.ts";
import { formatPermission, parsePermission } from "./permissions.ts";
import { connectSocket } from "./socket-transport.ts";
import type { XenStoreTransport } from "./transport.ts";

/** Times that a transaction is run before its EAGAIN is the caller's: somebody changes those nodes without pause. */
const MAX_TRANSACTION_RUNS = 64;
/** Times that a listing in parts is begun again because the directory changed meanwhile. */
const MAX_LISTING_RUNS = 16;

export class XenStoreClient implements XenStore {
  readonly #link: ClientLink;
  readonly #watches: ClientWatches;
  readonly #operations: Operations;

  /** Takes over `end`. */
  constructor(end: XenStoreTransport | MessagePort) {
    this.#watches = new ClientWatches();
    this.#link = new ClientLink(transportOver(end), (path, token) =>
      this.#watches.arrived(path, token),
    );
    this.#operations = new Operations(this.#link, 0);
  }

  /** Connects to the Unix socket of a xenstore. Rejects with XenError("ENOENT", "ECONNREFUSED", "EACCES" ...). */
  static async connect(socketPath: string): Promise<XenStoreClient> {
    return new XenStoreClient(await connectSocket(socketPath));
  }

  /** Resolves when the connection has ended, whoever ended it; with the reason where we did not. */
  get closed(): Promise<XenError | undefined> {
    return this.#link.closed;
  }

  read(path: string): Promise<string | undefined> {
    return this.#operations.read(path);
  }

  readBytes(path: string): Promise<Uint8Array | undefined> {
    return this.#operations.readBytes(path);
  }

  list(path: string): Promise<string[] | undefined> {
    return this.#operations.list(path);
  }

  write(path: string, value: string | Uint8Array): Promise<void> {
    return this.#operations.write(path, value);
  }

  mkdir(path: string): Promise<void> {
    return this.#operations.mkdir(path);
  }

  remove(path: string): Promise<void> {
    return this.#operations.remove(path);
  }

  getPermissions(path: string): Promise<XenStorePermission[] | undefined> {
    return this.#operations.getPermissions(path);
  }

  setPermissions(path: string, permissions: readonly XenStorePermission[]): Promise<void> {
    return this.#operations.setPermissions(path, permissions);
  }

  async transaction<T>(body: (operations: XenStoreOperations) => Promise<T>): Promise<T> {
    for (let run = 1; ; run++) {
      const answer = await this.#link.request(XS_TRANSACTION_START, encodeXenStoreStrings([""]), 0);
      const id = Number(decodeXenStoreStrings(answer)[0]) >>> 0;
      const end = (flag: "T" | "F"): Promise<Uint8Array> =>
        this.#link.request(XS_TRANSACTION_END, encodeXenStoreStrings([flag]), id);
      let result: T;
      try {
        result = await body(new Operations(this.#link, id));
      } catch (error) {
        // The body's own error matters; a transaction that cannot be ended has ended with its connection.
        await end("F").catch(() => {});
        throw error;
      }
      try {
        await end("T");
        return result;
      } catch (error) {
        if ((error as XenError).code !== "EAGAIN" || run === MAX_TRANSACTION_RUNS) throw error;
      }
    }
  }

  async watch(path: string, callback: (path: string) => void): Promise<AsyncDisposable> {
    const token = this.#watches.add(path, callback);
    const payload = encodeXenStoreStrings([path, token]);
    try {
      await this.#link.request(XS_WATCH, payload, 0);
    } catch (error) {
      this.#watches.remove(token);
      throw error;
    }
    return {
      [Symbol.asyncDispose]: async () => {
        if (!this.#watches.remove(token)) return;
        // Where the connection has gone, so has the watch.
        await this.#link.request(XS_UNWATCH, payload, 0).catch(() => {});
      },
    };
  }

  /** Ends the connection, and with it the watches and transactions. What was asked and not answered rejects with
   * XenError("EPIPE"). */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#watches.clear();
    this.#link.close();
    await this.#link.closed;
  }
}

/** The operations, in a transaction or (0) outside. */
class Operations implements XenStoreOperations {
  readonly #link: ClientLink;
  readonly #transaction: number;

  constructor(link: ClientLink, transaction: number) {
    this.#link = link;
    this.#transaction = transaction;
  }

  async read(path: string): Promise<string | undefined> {
    const value = await this.readBytes(path);
    return value === undefined ? undefined : decodeValue(value);
  }

  readBytes(path: string): Promise<Uint8Array | undefined> {
    return missingIsUndefined(this.#ask(XS_READ, [path]));
  }

  async list(path: string): Promise<string[] | undefined> {
    try {
      return decodeXenStoreStrings(await this.#ask(XS_DIRECTORY, [path]));
    } catch (error) {
      const { code } = error as XenError;
      if (code === "ENOENT") return undefined;
      if (code !== "E2BIG") throw error;
    }
    for (let run = 1; run <= MAX_LISTING_RUNS; run++) {
      const names = await missingIsUndefined(this.#listInParts(path));
      if (names !== "changed") return names;
    }
    throw new XenError("EAGAIN", `${path}: its children change faster than they can be listed`);
  }

  async write(path: string, value: string | Uint8Array): Promise<void> {
    const bytes = typeof value === "string" ? Buffer.from(value, "utf8") : value;
    await this.#ask(XS_WRITE, [path], bytes);
  }

  async mkdir(path: string): Promise<void> {
    await this.#ask(XS_MKDIR, [path]);
  }

  async remove(path: string): Promise<void> {
    await missingIsUndefined(this.#ask(XS_RM, [path]));
  }

  async getPermissions(path: string): Promise<XenStorePermission[] | undefined> {
    const answer = await missingIsUndefined(this.#ask(XS_GET_PERMS, [path]));
    if (answer === undefined) return undefined;
    // Marks of a newer daemon after the number, as for domains that are gone, are no permissions.
    return decodeXenStoreStrings(answer).flatMap((word) => parsePermission(word) ?? []);
  }

  async setPermissions(path: string, permissions: readonly XenStorePermission[]): Promise<void> {
    await this.#ask(XS_SET_PERMS, [path, ...permissions.map(formatPermission)]);
  }

  /** The children, a payload at a time; "changed" where they did so in between. */
  async #listInParts(path: string): Promise<string[] | "changed"> {
    const names: string[] = [];
    let offset = 0;
    let first: string | undefined;
    for (;;) {
      const answer = await this.#ask(XS_DIRECTORY_PART, [path, String(offset)]);
      const [generation, ...part] = decodeXenStoreStrings(answer);
      first ??= generation;
      if (generation === undefined || generation !== first) return "changed";
      const last = part.at(-1) === "";
      if (last) part.pop();
      names.push(...part);
      if (last) return names;
      // A daemon that sends nothing and no end would have us ask for ever.
      if (part.length === 0) throw new XenError("EIO", `${path}: the listing does not end`);
      for (const name of part) offset += name.length + 1;
    }
  }

  async #ask(type: number, strings: readonly string[], data?: Uint8Array): Promise<Uint8Array> {
    const [path = ""] = strings;
    if (strings.some((text) => text.includes("\0"))) {
      throw new XenError("EINVAL", "a xenstore path has no NUL");
    }
    const head = encodeXenStoreStrings(strings);
    const payload = data === undefined ? head : Buffer.concat([head, data]);
    const { maxPayloadBytes } = this.#link;
    if (payload.length > maxPayloadBytes) {
      const message = `${path}: a request has at most ${maxPayloadBytes} bytes, with its path`;
      throw new XenError("E2BIG", message);
    }
    return await this.#link.request(type, payload, this.#transaction, path);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decodeValue(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    return decodeXenStoreText(bytes);
  }
}

/** ENOENT is an answer. */
async function missingIsUndefined<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if ((error as XenError).code === "ENOENT") return undefined;
    throw error;
  }
}
