/**
 * The backend of one disk over its lives: begun, closed to give the disk up for a while, begun again, and, where that is
 * wanted, begun again by itself when the worker or process that it lived in has died.
 *
 * Invariants: one change runs at a time; a backend that dies over and over is given up, so that it is not begun for ever.
 */
import type { Extent } from "../store/block-store.ts";
import { StoreError } from "../store/errors.ts";
import type { Clock } from "../util/clock.ts";
import { Turns } from "../util/turns.ts";
import type { BackendLink } from "./backend-link.ts";
import type { BackendReport } from "./backend-protocol.ts";

/** Deaths within RESTART_WINDOW_MILLISECONDS that are borne: one that dies oftener dies of what it does. */
const MAX_RESTARTS = 5;
const RESTART_WINDOW_MILLISECONDS = 60_000;
/** Before the second restart within the window; twice as long before each further one. */
const RESTART_PAUSE_MILLISECONDS = 100;

export interface RestartableBackendOptions {
  /** Makes the domain, the nodes and the backend. `ondeath` hears of an end that nobody asked for. */
  start(ondeath: () => void): Promise<BackendLink>;
  /** Begin again after a death. */
  readonly reconnect: boolean;
  readonly clock: Clock;
  /** There will be no further backend. */
  ongivenup(error: Error): void;
}

export class RestartableBackend implements BackendLink {
  readonly #options: RestartableBackendOptions;
  readonly #turns = new Turns();
  #link: BackendLink | undefined = undefined;
  /** The one that is being closed. */
  #closing: BackendLink | undefined = undefined;
  /** Of the current link; a death of an earlier one is nobody's concern. */
  #life = 0;
  #deaths: number[] = [];
  #disposed = false;

  static async open(options: RestartableBackendOptions): Promise<RestartableBackend> {
    const backend = new RestartableBackend(options);
    await backend.restart();
    return backend;
  }

  private constructor(options: RestartableBackendOptions) {
    this.#options = options;
  }

  /** There is a backend now. */
  get present(): boolean {
    return this.#link !== undefined;
  }

  get #there(): BackendLink {
    if (this.#link === undefined) throw new StoreError("EAGAIN", "the disk has no backend now");
    return this.#link;
  }

  async report(): Promise<BackendReport> {
    return await this.#there.report();
  }

  async *extents(offset: number, length: number): AsyncIterable<Extent> {
    yield* this.#there.extents(offset, length);
  }

  async resize(size: number): Promise<void> {
    await this.#there.resize(size);
  }

  kill(): void {
    (this.#link ?? this.#closing)?.kill();
  }

  /** Answers what is in flight and closes the disk. Nothing happens where there is no backend. */
  close(): Promise<void> {
    return this.#turns.run(() => this.#close());
  }

  /** Closes the backend that there is, and begins one. Rejects with what stands against it. */
  restart(): Promise<void> {
    return this.#turns.run(async () => {
      await this.#close();
      await this.#begin();
    });
  }

  async #close(): Promise<void> {
    const link = this.#link;
    this.#link = undefined;
    this.#life++;
    this.#closing = link;
    await link?.[Symbol.asyncDispose]();
    this.#closing = undefined;
  }

  async #begin(): Promise<void> {
    if (this.#disposed) throw new StoreError("ESHUTDOWN", "the disk is being detached");
    const life = ++this.#life;
    const link = await this.#options.start(() => this.#died(life));
    if (life === this.#life) this.#link = link;
    else await link[Symbol.asyncDispose]();
  }

  #died(life: number): void {
    if (life !== this.#life) return;
    this.#life++;
    this.#link = undefined;
    if (this.#options.reconnect) void this.#turns.run(() => this.#beginAgain());
  }

  async #beginAgain(): Promise<void> {
    const { clock, ongivenup } = this.#options;
    let error: Error = new StoreError("EIO", "the disk's backend died over and over");
    // Somebody else may have begun one while this waited for its turn.
    while (!this.#disposed && this.#link === undefined) {
      const now = clock.now();
      this.#deaths = this.#deaths.filter((death) => now - death < RESTART_WINDOW_MILLISECONDS);
      if (this.#deaths.length === MAX_RESTARTS) {
        ongivenup(error);
        return;
      }
      const earlier = this.#deaths.push(now) - 1;
      if (earlier > 0) await this.#pause(RESTART_PAUSE_MILLISECONDS << (earlier - 1));
      try {
        await this.#begin();
      } catch (reason) {
        error = reason instanceof Error ? reason : new StoreError("EIO", String(reason));
      }
    }
  }

  async #pause(milliseconds: number): Promise<void> {
    await new Promise<void>((resolve) => this.#options.clock.after(milliseconds, resolve));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await this.close();
  }
}
