/**
 * One end of a xenbus device: its own directory, the directory of the other end, and the state both write there
 * (xenbus.h, enum xenbus_state; xenbus_client.c for the habits of Linux).
 *
 * Invariant: the handler of the other end's state runs one call at a time, never for a state it has not read afresh;
 * changes that arrive meanwhile are one more call, however many there were. A peer that toggles its state quickly can
 * therefore neither overtake us nor make us queue.
 */
import { type Domain, XenError, type XenStoreOperations } from "./domain.ts";

export const XenbusState = {
  unknown: 0,
  initialising: 1,
  initWait: 2,
  initialised: 3,
  connected: 4,
  closing: 5,
  closed: 6,
  reconfiguring: 7,
  reconfigured: 8,
} as const;
export type XenbusState = (typeof XenbusState)[keyof typeof XenbusState];

/** "Connected" for 4, as people write states. */
export function stateName(state: XenbusState): string {
  const name = Object.entries(XenbusState).find(([, number]) => number === state)?.[0] ?? "unknown";
  return name.charAt(0).toUpperCase() + name.slice(1);
}

/** A state node's text; anything that is no state is unknown, as xenbus_read_driver_state. */
export function parseState(text: string | undefined): XenbusState {
  if (text === undefined || !/^[0-8]$/.test(text.trim())) return XenbusState.unknown;
  return Number(text) as XenbusState;
}

/** Decimal of a node; undefined where it is missing or no number of 0 to `maximum`. */
export async function readNumber(
  store: XenStoreOperations,
  path: string,
  maximum: number = 0xffff_ffff,
): Promise<number | undefined> {
  const text = (await store.read(path))?.trim();
  if (text === undefined || !/^\d{1,16}$/.test(text)) return undefined;
  const number = Number(text);
  return number <= maximum ? number : undefined;
}

/** A flag node: "1" is set; missing is clear. */
export async function readFlag(store: XenStoreOperations, path: string): Promise<boolean> {
  return (await readNumber(store, path)) === 1;
}

/** Where the driver of a device leaves what went wrong with it, outside of the directory that goes with the device: below
 * `error` of its domain. */
export function errorPath(path: string): string {
  return path.replace(/^(\/local\/domain\/\d+)\//, "$1/error/");
}

export interface XenbusEnd {
  /** Where we write. */
  readonly path: string;
  readonly otherendPath: string;
  readonly otherendId: number;
}

/** Finds the other end of a device from our own directory. Rejects with XenError("ENOENT" | "EINVAL"). */
export async function findOtherend(
  domain: Domain,
  path: string,
  role: "frontend" | "backend",
): Promise<XenbusEnd> {
  const other = role === "frontend" ? "backend" : "frontend";
  const otherendPath = await domain.store.read(`${path}/${other}`);
  const otherendId = await readNumber(domain.store, `${path}/${other}-id`, 0x7ff0);
  if (otherendPath === undefined || otherendId === undefined) {
    throw new XenError("ENOENT", `${path} names no ${other}: is it the directory of a vbd?`);
  }
  // The backend's directory carries the frontend's domid in its path; a mismatch is a toolstack's error or an attack.
  if (role === "backend" && !otherendPath.startsWith(`/local/domain/${otherendId}/`)) {
    throw new XenError(
      "EINVAL",
      `${path}: frontend ${otherendPath} is not of domain ${otherendId}`,
    );
  }
  return { path, otherendPath, otherendId };
}

export class XenbusDevice implements AsyncDisposable {
  readonly domain: Domain;
  readonly path: string;
  readonly otherendPath: string;
  readonly otherendId: number;
  #state: XenbusState = XenbusState.unknown;
  #watch: AsyncDisposable | undefined;
  #changed = false;
  #running: Promise<void> | undefined;
  #handler: ((state: XenbusState) => Promise<void>) | undefined;
  #onfatal: ((error: unknown) => void) | undefined;
  #disposed = false;

  constructor(domain: Domain, end: XenbusEnd) {
    this.domain = domain;
    this.path = end.path;
    this.otherendPath = end.otherendPath;
    this.otherendId = end.otherendId;
  }

  /** The state we wrote last. */
  get state(): XenbusState {
    return this.#state;
  }

  /** Our directory says `state` already: somebody before us wrote it. */
  inheritState(state: XenbusState): void {
    this.#state = state;
  }

  /** Calls `handler` with the other end's state now and after each change of it (also when the same value was
   * written again, which is how a resize is announced). A handler that throws ends the device: Closing, the error in
   * the store, and a call of `onfatal`. */
  async follow(
    handler: (state: XenbusState) => Promise<void>,
    onfatal: (error: unknown) => void,
  ): Promise<void> {
    this.#handler = handler;
    this.#onfatal = onfatal;
    this.#watch = await this.domain.store.watch(`${this.otherendPath}/state`, () => this.poke());
    if (this.#disposed) await this.#watch[Symbol.asyncDispose]();
  }

  /** As if the other end's state had changed. */
  poke(): void {
    this.#changed = true;
    if (this.#disposed || this.#running !== undefined) return;
    this.#running = this.#run().finally(() => {
      this.#running = undefined;
      if (this.#changed && !this.#disposed) this.poke();
    });
  }

  async #run(): Promise<void> {
    while (this.#changed && !this.#disposed) {
      this.#changed = false;
      try {
        const state = await this.readOtherend(this.domain.store);
        if (!this.#disposed) await this.#handler?.(state);
      } catch (error) {
        if (this.#disposed) return;
        await this.fatal(error);
        this.#onfatal?.(error);
      }
    }
  }

  /** The other end's state. One that we may not read is unknown, as xenbus_read_driver_state has it: where the other
   * end's directory is gone, so are our rights to it. */
  async readOtherend(operations: XenStoreOperations): Promise<XenbusState> {
    try {
      return parseState(await operations.read(`${this.otherendPath}/state`));
    } catch (error) {
      if ((error as { code?: unknown }).code !== "EACCES") throw error;
      return XenbusState.unknown;
    }
  }

  /** Writes our state, in `operations` where a transaction is to hold it. Nothing is written where the toolstack has
   * removed our directory meanwhile (__xenbus_switch_state). */
  async switchState(state: XenbusState, operations?: XenStoreOperations): Promise<void> {
    this.#state = state;
    const write = async (within: XenStoreOperations) => {
      if ((await within.read(`${this.path}/state`)) === undefined) return;
      // Where the transaction is run again, another state may have come meanwhile.
      await within.write(`${this.path}/state`, String(this.#state));
    };
    if (operations === undefined) await this.domain.store.transaction(write);
    else await write(operations);
  }

  /** Leaves the reason where xenbus_dev_fatal does, and goes to Closing. Nothing is written where our directory is gone, and
   * nothing is said where the xenstore does not take it. */
  async fatal(error: unknown): Promise<void> {
    const code = (error as { code?: unknown }).code;
    const message = error instanceof Error ? error.message : String(error);
    const text = typeof code === "string" ? `${code} ${message}` : message;
    const state = this.#state;
    const told = this.domain.store.transaction(async (operations) => {
      if ((await operations.read(`${this.path}/state`)) === undefined) return false;
      for (const path of [this.path, errorPath(this.path)]) {
        // Who may not leave it there closes all the same.
        await operations.write(`${path}/error`, text).catch(() => {});
      }
      return true;
    });
    if (!(await told.catch(() => true))) return;
    // Whoever closed the device, or began it anew meanwhile, has the last word.
    if (state === XenbusState.closed || state !== this.#state) return;
    await this.switchState(XenbusState.closing).catch(() => {});
  }

  /** Ends the watch and waits for the handler that runs. Writes nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await this.#watch?.[Symbol.asyncDispose]();
    await this.#running;
  }
}
