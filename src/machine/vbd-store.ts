/** A frontend with what its backend's store knows and the block protocol cannot say: where the disk has holes, and how
 * to change its size. Data, flushes and discards cross the ring; these two questions go to the backend beside it. */
import type { BlockFrontend } from "../block/index.ts";
import type { MemoryRegion } from "../io/memory.ts";
import type {
  BlockRequest,
  BlockStore,
  BlockStoreInfo,
  Extent,
  NativeFeature,
  StoreListener,
} from "../store/block-store.ts";
import { StoreError } from "../store/errors.ts";
import type { BackendLink } from "./backend-link.ts";

export class VbdStore implements BlockStore {
  readonly #frontend: BlockFrontend;
  readonly #backend: BackendLink;
  /** Our infos by the frontend's, so that an unchanged one stays the same object. */
  #seen: BlockStoreInfo | undefined = undefined;
  #info: BlockStoreInfo | undefined = undefined;

  constructor(frontend: BlockFrontend, backend: BackendLink) {
    this.#frontend = frontend;
    this.#backend = backend;
  }

  get info(): BlockStoreInfo {
    const seen = this.#frontend.info;
    if (seen !== this.#seen || this.#info === undefined) {
      this.#seen = seen;
      this.#info = { ...seen, native: new Set<NativeFeature>([...seen.native, "extents"]) };
    }
    return this.#info;
  }

  allocate(byteLength: number): MemoryRegion | undefined {
    return this.#frontend.allocate(byteLength);
  }

  submit(request: BlockRequest): void {
    this.#frontend.submit(request);
  }

  async *extents(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Extent> {
    if (offset < 0 || length < 0 || offset + length > this.info.size) {
      throw new StoreError("EINVAL", "extents beyond the end of the disk");
    }
    signal?.throwIfAborted();
    for await (const extent of this.#backend.extents(offset, length)) {
      signal?.throwIfAborted();
      yield extent;
    }
  }

  /** Resolves when the frontend has seen the new size. */
  async resize(size: number): Promise<void> {
    const wanted = size - (size % this.info.block.minimum);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    using _subscription = this.#frontend.subscribe({
      resized: (info) => {
        if (info.size === wanted) resolve();
      },
      failed: reject,
    });
    await this.#backend.resize(size);
    if (this.#frontend.info.size !== wanted) await promise;
  }

  subscribe(listener: StoreListener): Disposable {
    return this.#frontend.subscribe({
      ...(listener.resized === undefined ? {} : { resized: () => listener.resized?.(this.info) }),
      ...(listener.failed === undefined ? {} : { failed: (error) => listener.failed?.(error) }),
    });
  }

  cancel(): Promise<void> {
    return this.#frontend.cancel();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#frontend[Symbol.asyncDispose]();
  }
}
