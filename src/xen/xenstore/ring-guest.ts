/**
 * A guest's end of its xenstore ring, as Linux's xenbus_comms.c plays it.
 *
 * Invariant: a page that somebody used before us (a kernel that crashed, a client that closed) is connected anew, so that
 * no answer to another's request is taken for one of ours; the daemon has forgotten the other's watches by then.
 */

import { XENSTORE_SERVER_FEATURE_RECONNECTION } from "../../wire/xenstore.ts";
import {
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_NONE,
  XENSTORE_RECONNECT,
} from "../../wire/xenstore-ring.ts";
import { XenError } from "../domain.ts";
import { RingPage, RingTransport, type XenStoreRing } from "./ring-transport.ts";
import type { XenStoreTransport } from "./transport.ts";

/** Takes over the handler of the channel. What is sent before the daemon has connected waits for it. */
export function connectRing(ring: XenStoreRing): XenStoreTransport {
  return new GuestTransport(ring);
}

class GuestTransport extends RingTransport {
  readonly #ring: XenStoreRing;
  readonly #words: RingPage;
  #connected = false;

  constructor(ring: XenStoreRing) {
    const page = new RingPage(ring.page);
    super(page, ring.channel, "guest");
    this.#ring = ring;
    this.#words = page;
    const canReconnect = page.get("server_features") & XENSTORE_SERVER_FEATURE_RECONNECTION;
    if (canReconnect !== 0 && page.used) {
      page.set("connection", XENSTORE_RECONNECT);
      ring.channel.notify();
    }
    ring.channel.onevent = () => this.look();
    // In a turn of its own, so that the owner can set its handlers first.
    queueMicrotask(() => this.look());
  }

  override look(): void {
    if (!this.#connected) {
      if (this.#words.get("connection") !== XENSTORE_CONNECTED) return;
      this.#connected = true;
      this.begin();
      return;
    }
    super.look();
    const error = this.#words.get("error");
    if (error === XENSTORE_ERROR_NONE) return;
    this.close(new XenError("ECONNRESET", `the xenstore ended the connection, error ${error}`));
  }

  override close(reason?: Error): void {
    this.#ring.channel.onevent = undefined;
    super.close(reason);
  }
}
