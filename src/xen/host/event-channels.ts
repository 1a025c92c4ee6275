/**
 * Event channels through /dev/xen/evtchn (<xen/evtchn.h>, drivers/xen/evtchn.c): read(2) says which ports are pending, and
 * each is silent from then on until it is written back.
 *
 * The descriptor does not block and is watched by the event loop, so that the process sleeps when nothing happens and
 * ends when it has nothing to do. Invariant: a port that was read is written back once, right after its handler ran;
 * what arrived meanwhile is one event more. A port that is masked, or has no handler, is not written back until then.
 */
import type { Ffi } from "../../io/ffi.ts";
import { systemError } from "../../io/ffi.ts";
import { type Watcher, watchReadable } from "../../io/poller.ts";
import type { Kickable, Reactor } from "../../io/reactor.ts";
import { type EventChannel, type EventChannels, XenError } from "../domain.ts";
import type { Devices } from "./devices.ts";
import { IoctlArgument } from "./ioctl-argument.ts";
import {
  IOCTL_EVTCHN_BIND_INTERDOMAIN,
  IOCTL_EVTCHN_BIND_UNBOUND_PORT,
  IOCTL_EVTCHN_NOTIFY,
  IOCTL_EVTCHN_UNBIND,
} from "./ioctls.ts";

/** Ports read or written at once; the kernel hands out no more than a page of them. */
const PORTS_PER_CALL = 1024;

export class HostEventChannels implements EventChannels, Kickable, Disposable {
  readonly counters = { sent: 0, delivered: 0 };
  readonly #devices: Devices;
  readonly #reactor: Reactor;
  readonly #channels = new Map<number, HostEventChannel>();
  readonly #argument = new IoctlArgument(8);
  readonly #ports = new IoctlArgument(PORTS_PER_CALL * 4);
  /** Channels whose event may be delivered. */
  #due: HostEventChannel[] = [];
  #open: { readonly descriptor: number; readonly watcher: Watcher } | undefined = undefined;
  #disposed = false;

  constructor(devices: Devices, reactor: Reactor) {
    this.#devices = devices;
    this.#reactor = reactor;
  }

  get #calls(): Ffi {
    return this.#devices.calls;
  }

  #descriptor(): number {
    if (this.#disposed) throw new XenError("EBADF", "the domain has ended");
    if (this.#open === undefined) {
      const descriptor = this.#devices.open("evtchn");
      this.#open = { descriptor, watcher: watchReadable(descriptor, () => this.#readable()) };
    }
    return this.#open.descriptor;
  }

  allocateUnbound(peer: number): EventChannel {
    this.#argument.words[0] = checkedDomid(peer);
    return this.#bind(IOCTL_EVTCHN_BIND_UNBOUND_PORT, `a port for domain ${peer}`);
  }

  bindInterdomain(peer: number, port: number): EventChannel {
    this.#argument.words[0] = checkedDomid(peer);
    this.#argument.words[1] = port;
    return this.#bind(IOCTL_EVTCHN_BIND_INTERDOMAIN, `port ${port} of domain ${peer}`);
  }

  #bind(request: number, subject: string): EventChannel {
    const port = this.#calls.ioctl(this.#descriptor(), request, this.#argument.address);
    if (port < 0) {
      const cause = systemError("ioctl", this.#calls.errno(), subject);
      throw new XenError(cause.code ?? "EIO", `binding ${subject}: ${cause.message}`, { cause });
    }
    const channel = new HostEventChannel(this, port);
    this.#channels.set(port, channel);
    return channel;
  }

  notify(port: number): void {
    this.counters.sent++;
    this.#ask(IOCTL_EVTCHN_NOTIFY, port);
  }

  close(port: number): void {
    this.#channels.delete(port);
    this.#ask(IOCTL_EVTCHN_UNBIND, port);
  }

  /** A peer that is gone is nobody's error here. */
  #ask(request: number, port: number): void {
    if (this.#open === undefined) return;
    this.#argument.words[0] = port;
    this.#calls.ioctl(this.#open.descriptor, request, this.#argument.address);
  }

  #readable(): void {
    const { words, address } = this.#ports;
    for (;;) {
      if (this.#open === undefined) return;
      const bytes = this.#calls.read(this.#open.descriptor, address, PORTS_PER_CALL * 4);
      if (bytes < 4) break;
      for (let i = 0; i < bytes >>> 2; i++) {
        const channel = this.#channels.get(words[i]!);
        if (channel === undefined) continue;
        channel.pending = true;
        this.due(channel);
      }
      // That was all. What has come since is another wake-up, which costs no call of its own here.
      if (bytes < PORTS_PER_CALL * 4) break;
    }
    this.#reactor.settle();
  }

  /** The channel can be delivered now, if it is pending. */
  due(channel: HostEventChannel): void {
    if (!channel.deliverable) return;
    if (this.#due.push(channel) > 1) return;
    this.#reactor.dirty(this);
    this.#reactor.soon();
  }

  kick(): void {
    const due = this.#due;
    this.#due = [];
    const { words, address } = this.#ports;
    let count = 0;
    for (const channel of due) {
      if (!channel.deliverable) continue;
      channel.pending = false;
      this.counters.delivered++;
      channel.onevent?.();
      words[count++] = channel.port;
      if (count === PORTS_PER_CALL) count = this.#writeBack(address, count);
    }
    this.#writeBack(address, count);
  }

  /** Ports that were closed meanwhile are none of the kernel's business any more: it passes over them. */
  #writeBack(address: number, count: number): 0 {
    if (count > 0 && this.#open !== undefined) {
      this.#calls.write(this.#open.descriptor, address, count * 4);
    }
    return 0;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const channel of this.#channels.values()) channel[Symbol.dispose]();
    const open = this.#open;
    this.#open = undefined;
    if (open === undefined) return;
    open.watcher[Symbol.dispose]();
    this.#devices.close(open.descriptor);
  }
}

class HostEventChannel implements EventChannel {
  readonly sharesThread = false;
  readonly port: number;
  readonly #channels: HostEventChannels;
  #onevent: (() => void) | undefined;
  #open = true;
  #masked = false;
  /** It was read and not delivered yet. */
  pending = false;

  constructor(channels: HostEventChannels, port: number) {
    this.#channels = channels;
    this.port = port;
  }

  get onevent(): (() => void) | undefined {
    return this.#onevent;
  }

  set onevent(handler: (() => void) | undefined) {
    this.#onevent = handler;
    this.#channels.due(this);
  }

  get deliverable(): boolean {
    return this.pending && !this.#masked && this.#open && this.#onevent !== undefined;
  }

  notify(): void {
    if (this.#open) this.#channels.notify(this.port);
  }

  mask(): void {
    this.#masked = true;
  }

  unmask(): void {
    this.#masked = false;
    this.#channels.due(this);
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#onevent = undefined;
    this.#channels.close(this.port);
  }
}

function checkedDomid(peer: number): number {
  if (peer >>> 0 === peer && peer <= 0xffff) return peer;
  throw new XenError("EINVAL", `${peer} is not the number of a domain`);
}
