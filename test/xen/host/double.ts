/**
 * A double of Linux's Xen devices, for one process and no Xen: grants are pages of a memfd, ports are a table, and the
 * system calls on its descriptors are answered here, as gntdev.c, gntalloc.c and evtchn.c of Linux 6.1 do.
 */
import { closeSync } from "node:fs";
import { constants } from "node:os";
import { type Ffi, requireFfi } from "../../../src/io/ffi.ts";
import { EventDescriptor } from "../../../src/io/poller.ts";
import { createSharedMemory } from "../../../src/io/shared-memory.ts";
import type { DeviceName, Devices } from "../../../src/xen/host/devices.ts";
import * as ioctls from "../../../src/xen/host/ioctls.ts";
import type { XenStoreTransport } from "../../../src/xen/xenstore/transport.ts";
import { XenbusDouble } from "./xenbus-double.ts";

const PAGE = 4096;
const PAGES = 4096;
const FIRST_REFERENCE = 8;
const { EINVAL, EAGAIN, ENOSPC, ESRCH, ENOENT } = constants.errno;
const MAP_SHARED = 1;
const MAP_FIXED = 0x10;
const RESERVED_ANYWHERE = 0x4022;

interface Granted {
  readonly domid: number;
  readonly peer: number;
  readonly readOnly: boolean;
  readonly page: number;
}

interface Port {
  readonly device: Device;
  readonly peer: number;
  remote: number;
  pending: boolean;
  /** It was read, and not written back. */
  disabled: boolean;
}

interface Device {
  readonly name: DeviceName;
  readonly domid: number;
  /** By byte in the file, what mmap finds there: references of whom, or pages. */
  readonly places: Map<number, { readonly peer: number; readonly references: number[] }>;
  nextPlace: number;
  readonly event: EventDescriptor;
  readonly queue: number[];
  /** Of xenbus: what the xenstore sent. */
  readonly answers: Uint8Array[];
}

export class DeviceDouble implements Disposable {
  readonly #real = requireFfi("a double of Xen's devices");
  readonly #memory = createSharedMemory("xen-double", PAGES * PAGE);
  readonly #grants = new Map<number, Granted>();
  readonly #ports = new Map<number, Port>();
  readonly #devices = new Map<number, Device>();
  readonly #limit: number;
  #nextPage = 0;
  #errno = 0;
  /** Devices that were opened, by name. */
  readonly opened: DeviceName[] = [];

  constructor(limit = 1024) {
    this.#limit = limit;
  }

  /** Entries that are granted now. */
  get granted(): number {
    return this.#grants.size;
  }

  get openPorts(): number {
    return this.#ports.size;
  }

  /** References that stand in the lists of gntdev. */
  get listed(): number {
    let count = 0;
    for (const { name, places } of this.#devices.values()) {
      if (name === "gntdev") for (const place of places.values()) count += place.references.length;
    }
    return count;
  }

  /** The devices as a process of domain `domid` has them; `store` is what the kernel reaches the xenstore by. */
  of(domid: number, store?: XenStoreTransport): Devices {
    const real = this.#real;
    const xenbus = store === undefined ? undefined : new XenbusDouble(store);
    const fail = (errno: number): -1 => {
      this.#errno = errno;
      return -1;
    };
    const calls: Ffi = {
      ...real,
      errno: () => this.#errno || real.errno(),
      ioctl: (descriptor, request, argument) => {
        this.#errno = 0;
        const device = this.#devices.get(descriptor);
        if (device === undefined) return real.ioctl(descriptor, request, argument);
        const result = this.#ioctl(device, request, argument);
        return result < 0 ? fail(-result) : result;
      },
      mmap: (address, length, protection, flags, descriptor, offset) => {
        this.#errno = 0;
        const device = this.#devices.get(descriptor);
        if (device === undefined) {
          return real.mmap(address, length, protection, flags, descriptor, offset);
        }
        const place = device.places.get(offset);
        const count = length / PAGE;
        if (place?.references.length !== count) return fail(EINVAL);
        const writes = (protection & 2) !== 0;
        const pages = place.references.map((reference) => {
          const grant = this.#grants.get(reference);
          if (grant === undefined) return undefined;
          if (device.name === "gntalloc") return grant.page;
          const allowed = grant.domid === place.peer && grant.peer === domid;
          return allowed && !(writes && grant.readOnly) ? grant.page : undefined;
        });
        if (pages.includes(undefined)) return fail(EINVAL);
        const at = address || real.mmap(0, length, protection, RESERVED_ANYWHERE, -1, 0);
        const { descriptor: memory } = this.#memory;
        for (const [i, page] of pages.entries()) {
          const how = MAP_SHARED | MAP_FIXED;
          real.mmap(at + i * PAGE, PAGE, protection, how, memory, page! * PAGE);
        }
        return at;
      },
      read: (descriptor, address, length) => {
        this.#errno = 0;
        const device = this.#devices.get(descriptor);
        if (device === undefined) return real.read(descriptor, address, length);
        if (device.name === "xenbus") {
          const answer = device.answers.shift();
          if (device.answers.length === 0) device.event.drain();
          if (answer === undefined) return fail(EAGAIN);
          new Uint8Array(real.view(address, length)).set(answer);
          return answer.length;
        }
        const count = Math.min(device.queue.length, length / 4);
        if (count === 0) return fail(EAGAIN);
        this.#words(address, count).set(device.queue.splice(0, count));
        if (device.queue.length === 0) device.event.drain();
        return count * 4;
      },
      write: (descriptor, address, length) => {
        const device = this.#devices.get(descriptor);
        this.#errno = 0;
        if (device === undefined) return real.write(descriptor, address, length);
        if (device.name === "xenbus") {
          const taken = xenbus?.write(device, new Uint8Array(real.view(address, length)).slice());
          return taken === false ? fail(EINVAL) : length;
        }
        for (const number of this.#words(address, length / 4)) {
          const port = this.#ports.get(number);
          if (port?.device !== device) continue;
          port.disabled = false;
          if (port.pending) this.#raise(number, port);
        }
        return length;
      },
    };
    return {
      calls,
      grantLimit: () => this.#limit,
      open: (name) => {
        this.opened.push(name);
        const event = new EventDescriptor();
        const answers: Uint8Array[] = [];
        const device = { name, domid, places: new Map(), nextPlace: 0, event, queue: [], answers };
        this.#devices.set(event.descriptor, device);
        return event.descriptor;
      },
      close: (descriptor) => {
        const device = this.#devices.get(descriptor);
        if (device === undefined) return closeSync(descriptor);
        this.#devices.delete(descriptor);
        for (const [number, port] of this.#ports) {
          if (port.device === device) this.#unbind(number, port);
        }
        device.event[Symbol.dispose]();
      },
    };
  }

  #words(address: number, count: number): Uint32Array {
    return new Uint32Array(this.#real.view(address, count * 4));
  }

  #ioctl(device: Device, request: number, address: number): number {
    const words = this.#words(address, (request >>> 16) / 4);
    const first = words[0]!;
    switch (request) {
      case ioctls.IOCTL_GNTDEV_MAP_GRANT_REF: {
        if (first === 0) return -EINVAL;
        const { references: at, index } = ioctls.MapGrantRef;
        const entries = this.#words(address + at, first * 2);
        const references = Array.from({ length: first }, (_, i) => entries[i * 2 + 1]!);
        words[index / 4] = this.#place(device, entries[0]!, references);
        words[index / 4 + 1] = 0;
        return 0;
      }
      case ioctls.IOCTL_GNTDEV_UNMAP_GRANT_REF:
        return device.places.delete(first) ? 0 : -ENOENT;
      case ioctls.IOCTL_GNTDEV_GRANT_COPY:
        return this.#copy(device, first, words[2]! + words[3]! * 2 ** 32);
      case ioctls.IOCTL_GNTALLOC_ALLOC_GREF: {
        if (this.#grants.size + words[1]! > this.#limit) return -ENOSPC;
        const reference = FIRST_REFERENCE + this.#nextPage;
        const writable = ((first >>> 16) & ioctls.GNTALLOC_FLAG_WRITABLE) !== 0;
        const peer = first & 0xffff;
        const page = this.#nextPage++;
        this.#grants.set(reference, { domid: device.domid, peer, readOnly: !writable, page });
        const { index, reference: at } = ioctls.AllocGref;
        words[index / 4] = this.#place(device, device.domid, [reference]);
        words[index / 4 + 1] = 0;
        words[at / 4] = reference;
        return 0;
      }
      case ioctls.IOCTL_GNTALLOC_DEALLOC_GREF: {
        const place = device.places.get(first);
        if (place === undefined) return -EINVAL;
        device.places.delete(first);
        for (const reference of place.references) this.#grants.delete(reference);
        return 0;
      }
      case ioctls.IOCTL_EVTCHN_BIND_UNBOUND_PORT:
        return first >= 0x7ff0 ? -ESRCH : this.#bind(device, first, 0);
      case ioctls.IOCTL_EVTCHN_BIND_INTERDOMAIN: {
        const remote = this.#ports.get(words[1]!);
        if (![...this.#devices.values()].some(({ domid }) => domid === first)) return -ESRCH;
        const offered = remote?.device.domid === first && remote.peer === device.domid;
        if (!offered || remote.remote !== 0) return -EINVAL;
        const port = this.#bind(device, first, words[1]!);
        remote.remote = port;
        this.#raise(port, this.#ports.get(port)!);
        return port;
      }
      case ioctls.IOCTL_EVTCHN_UNBIND: {
        const port = this.#ports.get(first);
        if (port?.device !== device) return -EINVAL;
        this.#unbind(first, port);
        return 0;
      }
      case ioctls.IOCTL_EVTCHN_NOTIFY: {
        const port = this.#ports.get(first);
        if (port?.device !== device) return -EINVAL;
        const remote = this.#ports.get(port.remote);
        if (remote !== undefined) this.#raise(port.remote, remote);
        return 0;
      }
      default:
        return -EINVAL;
    }
  }

  #place(device: Device, peer: number, references: number[]): number {
    const place = device.nextPlace;
    device.nextPlace += references.length * PAGE;
    device.places.set(place, { peer, references });
    return place;
  }

  #copy(device: Device, count: number, address: number): number {
    for (let i = 0; i < count; i++) {
      const words = this.#words(address + i * ioctls.CopySegment.byteLength, 6);
      const [length, flags] = [words[4]! & 0xffff, words[4]! >>> 16];
      const from = this.#end(device, words, 0, (flags & ioctls.GNTCOPY_source_gref) !== 0, false);
      const to = this.#end(device, words, 2, (flags & ioctls.GNTCOPY_dest_gref) !== 0, true);
      const status = from === undefined || to === undefined ? -3 : 0;
      if (status === 0) to!(length).set(from!(length));
      words[5] = status & 0xffff;
    }
    return 0;
  }

  /** Gives the bytes of an end of a copy; undefined where it is a grant that is not for us. */
  #end(
    device: Device,
    words: Uint32Array,
    at: number,
    grant: boolean,
    writes: boolean,
  ): ((length: number) => Uint8Array) | undefined {
    const [low, high] = [words[at]!, words[at + 1]!];
    if (!grant) return (length) => new Uint8Array(this.#real.view(low + high * 2 ** 32, length));
    const found = this.#grants.get(low);
    const [offset, domid] = [high & 0xffff, high >>> 16];
    if (found?.domid !== domid || found.peer !== device.domid) return undefined;
    if (writes && found.readOnly) return undefined;
    const start = found.page * PAGE + offset;
    return (length) => this.#memory.region.bytes.subarray(start, start + length);
  }

  #bind(device: Device, peer: number, remote: number): number {
    let number = 1;
    while (this.#ports.has(number)) number++;
    this.#ports.set(number, { device, peer, remote, pending: false, disabled: false });
    return number;
  }

  #unbind(number: number, port: Port): void {
    this.#ports.delete(number);
    const remote = this.#ports.get(port.remote);
    if (remote !== undefined) remote.remote = 0;
  }

  #raise(number: number, port: Port): void {
    port.pending = port.disabled;
    if (port.disabled) return;
    port.disabled = true;
    port.device.queue.push(number);
    port.device.event.signal();
  }

  [Symbol.dispose](): void {
    this.#memory.region[Symbol.dispose]();
  }
}
