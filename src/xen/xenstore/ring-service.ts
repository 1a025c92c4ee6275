/**
 * The daemon's end of a domain's xenstore ring: one connection after the other over one page (domain_conn_reset and
 * ignore_connection of the C daemon; docs/misc/xenstore-ring.txt).
 *
 * Invariant: a domain whose connection ended for what it did finds the reason in `error` and is looked at no more,
 * until it asks to be connected anew; then it begins with nothing, as a new client does.
 */

import { XENSTORE_SERVER_FEATURE_RECONNECTION } from "../../wire/xenstore.ts";
import {
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_COMM,
  XENSTORE_ERROR_NONE,
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
} from "../../wire/xenstore-ring.ts";
import { type Domain, GrantMapBatch, GrantStatus, PAGE_SIZE, XenError } from "../domain.ts";
import { RingPage, RingTransport, type XenStoreRing } from "./ring-transport.ts";

/** grant_table.h: the reference by which a domain's builder grants its xenstore page. */
export const GNTTAB_RESERVED_XENSTORE = 1;

/** What `error` says of a code of XenError; COMM for others. */
const ringErrors: Readonly<Record<string, number>> = {
  ERANGE: XENSTORE_ERROR_RINGIDX,
  EPROTO: XENSTORE_ERROR_PROTO,
};

export class RingService implements Disposable {
  readonly #ring: XenStoreRing & Disposable;
  readonly #page: RingPage;
  readonly #accept: (transport: RingTransport) => void;
  #transport: ServedRing | undefined;

  /** Takes over `ring`. `features` are those that its domain has (GET_FEATURE); `accept` takes over each connection. */
  constructor(
    ring: XenStoreRing & Disposable,
    features: number,
    accept: (transport: RingTransport) => void,
  ) {
    this.#ring = ring;
    this.#page = new RingPage(ring.page);
    this.#accept = accept;
    // That it can begin anew is a matter of the ring, not of what is said over it.
    this.#page.set("server_features", features | XENSTORE_SERVER_FEATURE_RECONNECTION);
    ring.channel.onevent = () => this.#look();
  }

  /** Serves the ring from where its indexes are. */
  serve(): void {
    this.#page.set("error", XENSTORE_ERROR_NONE);
    this.#page.set("connection", XENSTORE_CONNECTED);
    this.connect().begin();
    this.#ring.channel.notify();
  }

  /** A connection that has not begun. */
  connect(): RingTransport {
    const transport = new ServedRing(this.#page, this.#ring.channel, (reason) => {
      this.#refuse(reason);
    });
    this.#transport = transport;
    this.#accept(transport);
    return transport;
  }

  /** Serves a ring that a daemon before us served, with the connection that was made or a new one; unless that daemon or
   * the domain had ended it. */
  goOn(): void {
    const transport = this.#transport;
    if (this.#page.get("connection") === XENSTORE_RECONNECT) this.reconnect();
    else if (this.#page.get("error") !== XENSTORE_ERROR_NONE) {
      this.#transport = undefined;
      transport?.end();
    } else if (transport === undefined) this.serve();
    else transport.begin();
    this.#ring.channel.notify();
  }

  #look(): void {
    if (this.#page.get("connection") === XENSTORE_RECONNECT) this.reconnect();
    else this.#transport?.look();
  }

  /** Ends the connection with all that belongs to it, empties the ring and begins anew. */
  reconnect(): void {
    const before = this.#transport;
    this.#transport = undefined;
    before?.end();
    for (const index of ["req_cons", "req_prod", "rsp_cons", "rsp_prod"] as const) {
      this.#page.set(index, 0);
    }
    this.serve();
  }

  /** The connection has ended, and the domain is told why. */
  #refuse(reason: Error | undefined): void {
    this.#transport = undefined;
    const code = reason instanceof XenError ? reason.code : "";
    this.#page.set("error", ringErrors[code] ?? XENSTORE_ERROR_COMM);
    this.#ring.channel.notify();
  }

  /** Idempotent. */
  [Symbol.dispose](): void {
    this.#ring.channel.onevent = undefined;
    const transport = this.#transport;
    this.#transport = undefined;
    transport?.end();
    this.#ring[Symbol.dispose]();
  }
}

/** Tells the service at once when its connection ends, whoever ended it. */
class ServedRing extends RingTransport {
  #refuse: ((reason: Error | undefined) => void) | undefined;

  constructor(
    page: RingPage,
    channel: XenStoreRing["channel"],
    refuse: (reason: Error | undefined) => void,
  ) {
    super(page, channel, "daemon");
    this.#refuse = refuse;
  }

  /** Ends without a word to the domain. */
  end(): void {
    this.#refuse = undefined;
    this.close();
    this.onclose?.();
  }

  override close(reason?: Error): void {
    const refuse = this.#refuse;
    this.#refuse = undefined;
    super.close(reason);
    refuse?.(reason);
  }
}

/** Maps the xenstore page of `peer` and binds its port, as domain `domain`; undefined where there is none for us. */
export function openDomainRing(
  domain: Domain,
  peer: number,
  port: number,
): (XenStoreRing & Disposable) | undefined {
  const { grants, events } = domain;
  const batch = new GrantMapBatch(1);
  batch.count = 1;
  batch.references[0] = GNTTAB_RESERVED_XENSTORE;
  grants.map(peer, batch);
  if (batch.statuses[0] !== GrantStatus.okay) return undefined;
  using undo = new DisposableStack();
  const handle = batch.handles[0]!;
  undo.defer(() => void grants.unmap(handle));
  const start = batch.starts[0]!;
  const page = batch.regions[0]!.bytes.subarray(start, start + PAGE_SIZE);
  try {
    const channel = undo.use(events.bindInterdomain(peer, port));
    const ends = undo.move();
    return { page, channel, [Symbol.dispose]: () => ends.dispose() };
  } catch {
    return undefined;
  }
}
