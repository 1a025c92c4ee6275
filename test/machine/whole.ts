import type { AttachedDisk } from "../../src/index.ts";
import type { BlockStore } from "../../src/store/block-store.ts";

/** The frontend as a store whose end is the end of the whole device. */
export function whole(disk: AttachedDisk): BlockStore {
  const { store } = disk;
  return {
    get info() {
      return store.info;
    },
    submit: (request) => store.submit(request),
    extents: (offset, length, signal) => store.extents(offset, length, signal),
    resize: (size) => store.resize(size),
    subscribe: (listener) => store.subscribe(listener),
    cancel: (reason) => store.cancel(reason),
    [Symbol.asyncDispose]: () => disk[Symbol.asyncDispose](),
  };
}
