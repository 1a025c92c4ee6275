/**
 * Two ends of a transport in one thread.
 *
 * Invariant: bytes arrive from a turn of the event loop of their own, never from within `send`, so neither end is
 * entered twice; an end that does not read makes the other unwritable, and past the bound both close.
 */
import { XenError } from "../domain.ts";
import type { XenStoreTransport } from "./transport.ts";

/** Bytes on their way before `writable` turns false. */
const HIGH_WATER_BYTES = 64 * 1024;
/** Bytes on their way before the sender is taken for one that ignores `writable`. */
const MAX_BYTES = 4 * 1024 * 1024;

class LocalEnd implements XenStoreTransport {
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  ondrain: (() => void) | undefined;
  onclose: ((reason?: Error) => void) | undefined;
  #other: LocalEnd | undefined;
  #inbox: Uint8Array[] = [];
  #inboxBytes = 0;
  #paused = false;
  #scheduled = false;

  static pair(): [LocalEnd, LocalEnd] {
    const ends: [LocalEnd, LocalEnd] = [new LocalEnd(), new LocalEnd()];
    ends[0].#other = ends[1];
    ends[1].#other = ends[0];
    return ends;
  }

  get writable(): boolean {
    return this.#other !== undefined && this.#other.#inboxBytes < HIGH_WATER_BYTES;
  }

  send(bytes: Uint8Array): void {
    const other = this.#other;
    if (other !== undefined) other.#receive(bytes);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#schedule();
  }

  close(reason?: Error): void {
    const other = this.#other;
    if (other === undefined) return;
    other.#end(reason);
    this.#end(reason);
  }

  #end(reason: Error | undefined): void {
    this.#other = undefined;
    setImmediate(() => {
      // What came before the end is still delivered.
      this.#deliver();
      this.#inbox = [];
      this.onclose?.(reason);
    });
  }

  #receive(bytes: Uint8Array): void {
    this.#inbox.push(bytes);
    this.#inboxBytes += bytes.length;
    if (this.#inboxBytes > MAX_BYTES) {
      this.close(new XenError("ENOBUFS", "the other end of the connection does not read"));
    } else {
      this.#schedule();
    }
  }

  #schedule(): void {
    if (this.#scheduled || this.#paused || this.#inbox.length === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    const wasFull = this.#inboxBytes >= HIGH_WATER_BYTES;
    while (!this.#paused && this.#inbox.length > 0) {
      const bytes = this.#inbox.length === 1 ? this.#inbox[0]! : Buffer.concat(this.#inbox);
      this.#inbox = [];
      this.#inboxBytes = 0;
      this.onmessage?.(bytes);
    }
    if (wasFull && this.#inboxBytes < HIGH_WATER_BYTES) this.#other?.ondrain?.();
  }
}

/** Whatever one end sends, the other receives. */
export function localTransportPair(): [XenStoreTransport, XenStoreTransport] {
  return LocalEnd.pair();
}
