/** Who wants to know that a store got another size or failed. */
import type { BlockStoreInfo, StoreListener } from "./block-store.ts";

export class StoreListeners {
  readonly #listeners = new Set<StoreListener>();

  subscribe(listener: StoreListener): Disposable {
    // A listener may subscribe twice and then leaves twice.
    const entry = { ...bound(listener) };
    this.#listeners.add(entry);
    return { [Symbol.dispose]: () => void this.#listeners.delete(entry) };
  }

  resized(info: BlockStoreInfo): void {
    for (const listener of this.#listeners) listener.resized?.(info);
  }

  failed(error: Error): void {
    for (const listener of this.#listeners) listener.failed?.(error);
  }
}

function bound(listener: StoreListener): StoreListener {
  return {
    resized: (info) => listener.resized?.(info),
    failed: (error) => listener.failed?.(error),
  };
}
