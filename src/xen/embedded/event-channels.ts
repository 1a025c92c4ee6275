/**
 * Event channels on shared words: EVTCHNOP_alloc_unbound, bind_interdomain, send, unmask, status, close and reset of
 * event_channel.h (2-level), run by the domain that asks on its own port table and its peer's.
 *
 * A port is one word (layout.ts), so that every step of its life is one compare-and-swap, whoever takes it. The
 * pending bit is set before the domain is woken and cleared before its handler runs: nothing is lost, several
 * notifications are one event, and a port that nobody expected may see an event too many, never one too few.
 */
import { DOMID_SELF, type EventChannel, type EventChannels, XenError } from "../domain.ts";
import type { DomainMemory } from "./domain-memory.ts";
import { isDomid, PortState, portDomain, portRemote, portState, portWord } from "./layout.ts";
import { type Neighbours, RemoteNeighbour } from "./neighbours.ts";

/** EVTCHNSTAT_* of a port, with the domain that may bind it, or is bound, and that one's port. */
export type PortStatus =
  | { readonly state: "closed" }
  | { readonly state: "unbound"; readonly domid: number }
  | { readonly state: "interdomain"; readonly domid: number; readonly port: number };

export class EmbeddedEventChannels implements EventChannels {
  readonly counters = { sent: 0, delivered: 0 };
  readonly #memory: DomainMemory;
  readonly #neighbours: Neighbours;
  readonly #lookAgain: () => void;
  /** By port. Port 0 is never used. */
  readonly #channels: (EmbeddedEventChannel | undefined)[] = [undefined];

  /** `lookAgain` has `deliver` called soon. */
  constructor(memory: DomainMemory, neighbours: Neighbours, lookAgain: () => void) {
    this.#memory = memory;
    this.#neighbours = neighbours;
    this.#lookAgain = lookAgain;
  }

  allocateUnbound(peer: number): EventChannel {
    const named = this.#resolve(peer);
    if (!isDomid(named)) throw new XenError("EINVAL", `${peer} is not the number of a domain`);
    const port = this.#takePort();
    Atomics.store(this.#memory.ports, port, portWord(PortState.unbound, named, 0));
    return this.#open(port);
  }

  bindInterdomain(peer: number, port: number): EventChannel {
    const { domid } = this.#memory.shape;
    const named = this.#resolve(peer);
    const offer = portWord(PortState.unbound, domid, 0);
    const remote = this.#neighbours.find(named)?.memory;
    if (remote === undefined) throw new XenError("ESRCH", `there is no domain ${peer}`);
    if (!(Number.isInteger(port) && port > 0 && port < remote.shape.portCount)) {
      throw new XenError("EINVAL", `domain ${peer} has no port ${port}`);
    }
    const local = this.#takePort();
    // Our end is complete before the peer's names it, so that no event of the peer's finds it half made.
    Atomics.store(this.#memory.ports, local, portWord(PortState.interdomain, named, port));
    const bound = portWord(PortState.interdomain, domid, local);
    if (Atomics.compareExchange(remote.ports, port, offer, bound) !== offer) {
      this.#freePort(local);
      throw new XenError("EINVAL", `domain ${peer} does not offer its port ${port} to us`);
    }
    // What the peer sent before there was anyone to send to may be lost; hence one event to begin with, as in Xen.
    setBit(this.#memory.pending, local);
    return this.#open(local);
  }

  #resolve(domid: number): number {
    return domid === DOMID_SELF ? this.#memory.shape.domid : domid;
  }

  /** The channel of a port that the domain's builder has made for it. The domain has no port yet. */
  adopt(port: number): EventChannel {
    while (this.#channels.length < port) this.#channels.push(undefined);
    return this.#open(port);
  }

  #takePort(): number {
    const free = this.#channels.indexOf(undefined, 1);
    const port = free < 0 ? this.#channels.length : free;
    if (port === this.#memory.shape.portCount) {
      throw new XenError("ENOSPC", "no event channel port is free");
    }
    if (free < 0) this.#channels.push(undefined);
    clearBit(this.#memory.pending, port);
    clearBit(this.#memory.mask, port);
    return port;
  }

  #freePort(port: number): void {
    Atomics.store(this.#memory.ports, port, 0);
    clearBit(this.#memory.pending, port);
  }

  #open(port: number): EventChannel {
    const channel = new EmbeddedEventChannel(this, port);
    this.#channels[port] = channel;
    return channel;
  }

  /** Whether the domain that a port leads to, or is offered to, lives on this thread. */
  leadsToThisThread(port: number): boolean {
    const peer = this.#neighbours.find(portDomain(Atomics.load(this.#memory.ports, port)));
    return peer !== undefined && !(peer instanceof RemoteNeighbour);
  }

  /** EVTCHNOP_send. Ports are looked at without order: whoever closes one meanwhile comes before or after. */
  send(port: number): void {
    const word = this.#memory.ports[port]!;
    if (portState(word) !== PortState.interdomain) return;
    const peer = this.#neighbours.find(portDomain(word));
    if (peer === undefined) return;
    const remote = portRemote(word);
    const { ports, pending, mask } = peer.memory;
    const back = portWord(PortState.interdomain, this.#memory.shape.domid, port);
    if (ports[remote] !== back) return;
    this.counters.sent++;
    if (setBit(pending, remote) || testBit(mask, remote)) return;
    peer.wake();
  }

  /** EVTCHNOP_close: the peer's end becomes unbound again. */
  close(port: number): void {
    const word = Atomics.load(this.#memory.ports, port);
    this.#channels[port] = undefined;
    this.#freePort(port);
    if (portState(word) !== PortState.interdomain) return;
    const { domid } = this.#memory.shape;
    const peer = this.#neighbours.find(portDomain(word));
    if (peer === undefined) return;
    const bound = portWord(PortState.interdomain, domid, port);
    const unbound = portWord(PortState.unbound, domid, 0);
    Atomics.compareExchange(peer.memory.ports, portRemote(word), bound, unbound);
  }

  /** EVTCHNOP_status, of a port of ours. Throws XenError("EINVAL") where the domain has no such port. */
  status(port: number): PortStatus {
    const { ports, shape } = this.#memory;
    if (!(Number.isInteger(port) && port >= 0 && port < shape.portCount)) {
      throw new XenError("EINVAL", `there is no port ${port}`);
    }
    const word = Atomics.load(ports, port);
    const domid = portDomain(word);
    switch (portState(word)) {
      case PortState.unbound:
        return { state: "unbound", domid };
      case PortState.interdomain:
        return { state: "interdomain", domid, port: portRemote(word) };
      default:
        return { state: "closed" };
    }
  }

  /** EVTCHNOP_reset: closes every port. */
  reset(): void {
    for (const channel of this.#channels) channel?.[Symbol.dispose]();
  }

  mask(port: number): void {
    setBit(this.#memory.mask, port);
  }

  unmask(port: number): void {
    clearBit(this.#memory.mask, port);
    this.handlerSet(port);
  }

  /** The port can be delivered now: it is if it is pending. */
  handlerSet(port: number): void {
    if (testBit(this.#memory.pending, port)) this.#lookAgain();
  }

  /** Calls the handlers of the pending ports, each at most once, so that a storm leaves others their turn. Events
   * of a port without a handler wait for one. */
  deliver(): void {
    const { pending, mask } = this.#memory;
    const words = (this.#channels.length + 31) >>> 5;
    for (let word = 0; word < words; word++) {
      let candidates = Atomics.load(pending, word);
      while (candidates !== 0) {
        const bit = 31 - Math.clz32(candidates & -candidates);
        candidates &= candidates - 1;
        const port = (word << 5) | bit;
        const channel = this.#channels[port];
        if (channel === undefined) clearBit(pending, port);
        else if (channel.onevent !== undefined && !testBit(mask, port)) {
          if (!clearBit(pending, port)) continue;
          this.counters.delivered++;
          channel.onevent();
        }
      }
    }
  }

  [Symbol.dispose](): void {
    this.reset();
  }
}

class EmbeddedEventChannel implements EventChannel {
  readonly port: number;
  readonly #channels: EmbeddedEventChannels;
  #onevent: (() => void) | undefined;
  #open = true;

  constructor(channels: EmbeddedEventChannels, port: number) {
    this.#channels = channels;
    this.port = port;
  }

  get sharesThread(): boolean {
    return this.#channels.leadsToThisThread(this.port);
  }

  get onevent(): (() => void) | undefined {
    return this.#onevent;
  }

  set onevent(handler: (() => void) | undefined) {
    this.#onevent = handler;
    if (handler !== undefined && this.#open) this.#channels.handlerSet(this.port);
  }

  notify(): void {
    if (this.#open) this.#channels.send(this.port);
  }

  mask(): void {
    if (this.#open) this.#channels.mask(this.port);
  }

  unmask(): void {
    if (this.#open) this.#channels.unmask(this.port);
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#onevent = undefined;
    this.#channels.close(this.port);
  }
}

/** Whether the bit was set before. */
function setBit(bitmap: Int32Array, port: number): boolean {
  const bit = 1 << (port & 31);
  return (Atomics.or(bitmap, port >>> 5, bit) & bit) !== 0;
}

/** Whether the bit was set before. */
function clearBit(bitmap: Int32Array, port: number): boolean {
  const bit = 1 << (port & 31);
  return (Atomics.and(bitmap, port >>> 5, ~bit) & bit) !== 0;
}

function testBit(bitmap: Int32Array, port: number): boolean {
  return (Atomics.load(bitmap, port >>> 5) & (1 << (port & 31))) !== 0;
}
