/** The event channels of a domain as a test asks for them, whether it is on this thread or elsewhere. */
import { type EventChannel, XenError } from "../../src/xen/domain.ts";
import type { EmbeddedDomain } from "../../src/xen/embedded/domain.ts";
import type { PortStatus } from "../../src/xen/embedded/index.ts";
import type { Far } from "../support/far-domain.ts";

export interface Post {
  /** The new port, or the code of the error. */
  allocate(peer: number): Promise<number | string>;
  bind(peer: number, port: number): Promise<number | string>;
  /** As often as that, with nobody looking in between where both ends are on this thread. */
  notify(port: number, times: number): Promise<void>;
  mask(port: number, masked: boolean): Promise<void>;
  close(port: number): Promise<void>;
  reset(): Promise<void>;
  /** Of as many ports from the first. */
  statuses(count: number): Promise<PortStatus[]>;
  /** Events that the handlers of open ports have had. */
  heard(ports: readonly number[]): Promise<number[]>;
}

export class NearPost implements Post {
  readonly domain: EmbeddedDomain;
  readonly #channels = new Map<number, { channel: EventChannel; heard: number }>();

  constructor(domain: EmbeddedDomain) {
    this.domain = domain;
  }

  async allocate(peer: number): Promise<number | string> {
    return this.#open(() => this.domain.events.allocateUnbound(peer));
  }

  async bind(peer: number, port: number): Promise<number | string> {
    return this.#open(() => this.domain.events.bindInterdomain(peer, port));
  }

  #open(open: () => EventChannel): number | string {
    try {
      const channel = open();
      const kept = { channel, heard: 0 };
      channel.onevent = () => kept.heard++;
      this.#channels.set(channel.port, kept);
      return channel.port;
    } catch (error) {
      if (error instanceof XenError) return error.code;
      throw error;
    }
  }

  #channel(port: number): EventChannel {
    return this.#channels.get(port)!.channel;
  }

  async notify(port: number, times: number): Promise<void> {
    for (let left = times; left > 0; left--) this.#channel(port).notify();
  }

  async mask(port: number, masked: boolean): Promise<void> {
    if (masked) this.#channel(port).mask();
    else this.#channel(port).unmask();
  }

  async close(port: number): Promise<void> {
    this.#channel(port)[Symbol.dispose]();
    this.#channel(port)[Symbol.dispose]();
  }

  async reset(): Promise<void> {
    this.domain.events.reset();
  }

  async statuses(count: number): Promise<PortStatus[]> {
    return Array.from({ length: count }, (_, port) => this.domain.events.status(port));
  }

  async heard(ports: readonly number[]): Promise<number[]> {
    return ports.map((port) => this.#channels.get(port)!.heard);
  }
}

export class FarPost implements Post {
  readonly #far: Far;
  /** What the far domain calls the channel of a port. */
  readonly #numbers = new Map<number, number>();
  #next = 0;

  constructor(far: Far) {
    this.#far = far;
  }

  async allocate(peer: number): Promise<number | string> {
    return await this.#open(this.#far.call("offer", peer));
  }

  async bind(peer: number, port: number): Promise<number | string> {
    return await this.#open(this.#far.call("bind", peer, port));
  }

  async #open(opening: Promise<unknown>): Promise<number | string> {
    try {
      const port = (await opening) as number;
      this.#numbers.set(port, this.#next++);
      return port;
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === undefined) throw error;
      return code;
    }
  }

  #number(port: number): number {
    return this.#numbers.get(port)!;
  }

  async notify(port: number, times: number): Promise<void> {
    for (let left = times; left > 0; left--) await this.#far.call("notify", this.#number(port));
  }

  async mask(port: number, masked: boolean): Promise<void> {
    await this.#far.call(masked ? "mask" : "unmask", this.#number(port));
  }

  async close(port: number): Promise<void> {
    await this.#far.call("closePort", this.#number(port));
  }

  async reset(): Promise<void> {
    await this.#far.call("reset");
  }

  async statuses(count: number): Promise<PortStatus[]> {
    return (await this.#far.call("statuses", count)) as PortStatus[];
  }

  async heard(ports: readonly number[]): Promise<number[]> {
    const all = (await this.#far.call("heard")) as number[];
    return ports.map((port) => all[this.#number(port)]!);
  }
}
