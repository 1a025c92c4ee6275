/**
 * A session over a transport: requests in, answers and events out.
 *
 * Invariant: a client that asks much takes turns with the others, and is not read while it waits for the next. One that
 * does not read has its own requests left waiting and hears of less; nobody else notices. What waits for it is bounded,
 * whoever made it wait (outbox.ts). A client that breaks the framing is disconnected, with all that it held; one that
 * has to pay for conflicts is not heard for that long.
 */

import {
  encodeXenStoreStrings,
  type XenStoreMessage,
  XenStoreParser,
  XS_ERROR,
} from "../../wire/xenstore.ts";
import { XenError } from "../domain.ts";
import type { Flushable, FlushTurn } from "./flush-turn.ts";
import { KeptRing } from "./kept-ring.ts";
import type { LoadedRing, LoadedWatch } from "./load-state.ts";
import { Outbox } from "./outbox.ts";
import { isPrivileged } from "./permissions.ts";
import { answerRequest } from "./requests.ts";
import type { RingTransport } from "./ring-transport.ts";
import { Session, type SessionOwner } from "./session.ts";
import type { XenStoreState } from "./state.ts";
import type { XenStoreTransport } from "./transport.ts";
import type { Watch } from "./watches.ts";

/** Bytes given to a transport at once: it says in between whether its other end keeps up. */
const FLUSH_BYTES = 64 * 1024;

/** Requests of one client before the others have their turn: some tenths of a millisecond. */
const TURN_REQUESTS = 64;
/** Bytes of their payloads: a request costs by the names in its path, of which one may have a thousand. */
const TURN_BYTES = 16 * 1024;

export class Connection implements SessionOwner, Flushable {
  /** Called once, when the connection is over, with the reason where it was not meant to be. */
  onend: ((reason: Error | undefined) => void) | undefined;
  readonly #state: XenStoreState;
  readonly #transport: XenStoreTransport;
  readonly #session: Session;
  readonly #parser = new XenStoreParser();
  readonly #outbox: Outbox;
  /** Where it outlives the daemon. */
  readonly #kept: KeptRing | undefined;
  readonly #turn: FlushTurn;
  /** It is about to. */
  #flushing = false;
  /** It has to read before it may ask. */
  #stalled = false;
  /** It has had its turn; the next one comes after the others'. */
  #resting = false;
  /** It has to wait before it may ask. */
  #held: Disposable | undefined;
  /** Since when it does not read; undefined while it does. */
  #deafSince: number | undefined;
  #ended = false;

  /** `ring` is the transport, where it is one: such a connection is kept where the state is. */
  constructor(
    state: XenStoreState,
    domid: number,
    transport: XenStoreTransport,
    turn: FlushTurn,
    ring?: RingTransport,
  ) {
    this.#state = state;
    this.#turn = turn;
    this.#outbox = new Outbox(state.limits.queuedEventBytes);
    this.#transport = transport;
    this.#session = new Session(state, domid, this);
    this.#kept = ring === undefined ? undefined : this.#keep(ring);
    this.#session.kept = this.#kept;
    transport.onmessage = (bytes) => this.#receive(bytes);
    transport.ondrain = () => this.#send();
    transport.onclose = (reason) => this.close(reason);
  }

  #keep(ring: RingTransport): KeptRing | undefined {
    const { journal } = this.#state;
    if (journal === undefined) return undefined;
    // The other end must not take for read what could be forgotten.
    ring.onread = () => journal.commit();
    const [parser, outbox, session] = [this.#parser, this.#outbox, this.#session];
    return new KeptRing(this.domid, journal, {
      get consumed() {
        return ring.consumed;
      },
      get produced() {
        return ring.produced;
      },
      get unsent() {
        return ring.unsent;
      },
      get rest() {
        return parser.rest;
      },
      get behind() {
        return outbox.hasEvents;
      },
      get transactions() {
        return session.transactions;
      },
    });
  }

  restoreWatch(watch: LoadedWatch): void {
    this.#session.addWatch(watch);
  }

  /** Goes on where a daemon before us was; nothing is sent in this turn. Which events waited there nobody knows: every
   * watch has one. */
  goOn({ rest, answers, behind, transactions }: LoadedRing): void {
    for (const id of transactions) this.#session.restoreTransaction(id);
    for (const message of answers) this.#queue(message);
    if (behind) for (const watch of this.#session.watches) this.deliver(watch, watch.path);
    this.#parser.push(rest);
    this.#work();
    this.#flushSoon();
  }

  get domid(): number {
    return this.#session.subject.domid;
  }

  deliver(watch: Watch, path: string): void {
    if (this.#ended) return;
    this.#outbox.event(watch, path);
    this.#kept?.changed();
    this.#flushSoon();
    if (this.#outbox.overfull && this.#isDeaf()) {
      this.close(new XenError("ENOBUFS", `domain ${this.domid} does not read its watch events`));
    }
  }

  #isDeaf(): boolean {
    if (this.#deafSince === undefined || this.#transport.writable) return false;
    return this.#state.clock.now() - this.#deafSince >= this.#state.limits.deafMilliseconds;
  }

  ended(): void {
    this.close();
  }

  /** Idempotent. */
  close(reason?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#held?.[Symbol.dispose]();
    this.#kept?.ended();
    this.#session.kept = undefined;
    this.#session.end(true);
    this.#outbox.clear();
    this.#transport.close(reason);
    this.onend?.(reason);
  }

  #receive(bytes: Uint8Array): void {
    this.#parser.push(bytes);
    this.#kept?.changed();
    const flushes = this.#flushing;
    this.#flushing = true;
    this.#work();
    if (!flushes) this.#turn.heard(this);
  }

  #work(): void {
    let bytes = 0;
    for (let turn = 0; !this.#ended && !this.#waits(); turn++) {
      const message = this.#parser.next();
      if (message === undefined) break;
      bytes += message.payload.length;
      if (turn === TURN_REQUESTS || bytes > TURN_BYTES) this.#rest();
      this.#answer(message);
      if (this.#mustRead()) {
        this.#stalled = true;
        this.#transport.pause();
      }
    }
    if (this.#parser.broken) {
      this.close(new XenError("EPROTO", `domain ${this.domid} sent a message that is too long`));
    }
  }

  #mustRead(): boolean {
    const { answers, bytes } = this.#outbox;
    if (bytes >= this.#state.limits.queuedBytes) return true;
    const { subject } = this.#session;
    return !isPrivileged(subject) && answers >= subject.limit("outstanding");
  }

  #waits(): boolean {
    return this.#stalled || this.#resting || this.#hold();
  }

  /** Hears no more of its client until everybody else has been heard. */
  #rest(): void {
    this.#resting = true;
    this.#transport.pause();
    setImmediate(() => {
      this.#resting = false;
      this.#goOn();
    });
  }

  /** Whether its domain has to wait; then the rest of its requests is for later. */
  #hold(): boolean {
    if (this.#held !== undefined) return true;
    const { conflicts } = this.#session.subject;
    if (conflicts.none) return false;
    const { clock } = this.#state;
    const wait = conflicts.heldFor(clock.now());
    if (wait <= 0) return false;
    this.#transport.pause();
    this.#held = clock.after(wait, () => {
      this.#held = undefined;
      this.#goOn();
    });
    return true;
  }

  #goOn(): void {
    if (this.#ended || this.#waits()) return;
    // First what has come: what is to come has to wait for it, should this turn be over, too.
    this.#work();
    if (!this.#ended && !this.#waits()) this.#transport.resume();
  }

  #answer(message: XenStoreMessage): void {
    const answer = answerRequest(this.#session, message);
    this.#state.trace.request(this.domid, message, typeof answer === "string" ? answer : "OK");
    if (this.#ended) return;
    const { requestId, transactionId } = message;
    if (typeof answer === "string") {
      const payload = encodeXenStoreStrings([answer]);
      this.#queue({ type: XS_ERROR, requestId, transactionId, payload });
    } else {
      const payload = answer instanceof Uint8Array ? answer : answer.payload;
      this.#queue({ type: message.type, requestId, transactionId, payload });
      if (!(answer instanceof Uint8Array)) answer.afterwards();
    }
    this.#flushSoon();
  }

  #queue(answer: XenStoreMessage): void {
    this.#outbox.answer(answer);
    this.#kept?.answered(answer);
  }

  /** Once for all that this turn brings, so that equal events meet in the queue. */
  #flushSoon(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    this.#turn.add(this);
  }

  /** Called by the turn alone. */
  flush(): void {
    this.#flushing = false;
    this.#send();
  }

  #send(): void {
    while (!this.#ended && this.#transport.writable) {
      this.#deafSince = undefined;
      const { answers } = this.#outbox;
      const bytes = this.#outbox.take(FLUSH_BYTES);
      if (bytes === undefined) break;
      this.#kept?.sending(bytes, answers - this.#outbox.answers);
      // Nobody hears of what could be forgotten.
      this.#state.journal?.commit();
      this.#transport.send(bytes);
    }
    if (this.#ended) return;
    if (!this.#transport.writable) {
      this.#deafSince ??= this.#state.clock.now();
    } else if (this.#stalled) {
      this.#stalled = false;
      this.#goOn();
    }
  }
}
