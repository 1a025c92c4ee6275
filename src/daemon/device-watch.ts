/**
 * Directories that come and go below a node of the xenstore, a fixed number of levels down: backend/vbd3/DOMID/VDEV two
 * below backend/vbd3, backend/vbd3/DOMID one below.
 *
 * Invariant: the handler runs one call at a time, and never for a state that it has not read afresh; changes that arrive
 * meanwhile are one more call.
 */
import type { XenStore } from "../xen/domain.ts";

export class DeviceWatch implements AsyncDisposable {
  readonly #store: XenStore;
  readonly #root: string;
  readonly #levels: number;
  readonly #onchange: (paths: ReadonlySet<string>) => Promise<void>;
  readonly #onerror: (error: unknown) => void;
  #watch: AsyncDisposable | undefined = undefined;
  #changed = false;
  #running: Promise<void> | undefined = undefined;
  #disposed = false;

  /** Calls `onchange` with all that there are: now, and whenever something below `root` changed. */
  static async open(options: {
    readonly store: XenStore;
    readonly root: string;
    readonly levels: number;
    readonly onchange: (paths: ReadonlySet<string>) => Promise<void>;
    /** What reading, or the handler, rejected with. */
    readonly onerror: (error: unknown) => void;
  }): Promise<DeviceWatch> {
    const watch = new DeviceWatch(options);
    watch.#watch = await options.store.watch(options.root, () => watch.poke());
    return watch;
  }

  private constructor(options: Parameters<typeof DeviceWatch.open>[0]) {
    this.#store = options.store;
    this.#root = options.root;
    this.#levels = options.levels;
    this.#onchange = options.onchange;
    this.#onerror = options.onerror;
  }

  /** As if something had changed. */
  poke(): void {
    this.#changed = true;
    if (this.#disposed || this.#running !== undefined) return;
    this.#running = this.#run().finally(() => {
      this.#running = undefined;
      if (this.#changed) this.poke();
    });
  }

  async #run(): Promise<void> {
    while (this.#changed && !this.#disposed) {
      this.#changed = false;
      try {
        const paths = await this.#list();
        if (!this.#disposed) await this.#onchange(paths);
      } catch (error) {
        if (!this.#disposed) this.#onerror(error);
      }
    }
  }

  async #list(): Promise<Set<string>> {
    let paths = [this.#root];
    for (let level = 0; level < this.#levels; level++) {
      const lists = await Promise.all(
        paths.map(async (path) =>
          ((await this.#store.list(path)) ?? []).map((name) => `${path}/${name}`),
        ),
      );
      paths = lists.flat();
    }
    return new Set(paths);
  }

  /** Ends the watch, and waits for the handler that runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await this.#watch?.[Symbol.asyncDispose]();
    await this.#running;
  }
}
