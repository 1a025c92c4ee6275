/**
 * A transport over /dev/xen/xenbus, through which the kernel lets processes share its own connection to the xenstore
 * (drivers/xen/xenbus/xenbus_dev_frontend.c).
 *
 * The kernel takes one message with each write(2), queues it, and holds the answers until they are read; it never has us
 * wait. Invariant: the descriptor is closed once, after its watcher.
 */

import { systemError } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import { type Watcher, watchReadable } from "../../io/poller.ts";
import { XENSTORE_HEADER_SIZE, XENSTORE_PAYLOAD_MAX } from "../../wire/xenstore.ts";
import type { XenStoreTransport } from "../xenstore/transport.ts";
import type { Devices } from "./devices.ts";

/** The kernel's buffer is as large as the protocol's payload, and holds the header, too. */
const MAX_PAYLOAD_BYTES = XENSTORE_PAYLOAD_MAX - XENSTORE_HEADER_SIZE;
/** Several messages of the largest size. */
const READ_BYTES = 32 * 1024;
const EAGAIN = 11;

export class XenbusTransport implements XenStoreTransport {
  readonly writable = true;
  readonly maxPayloadBytes: number = MAX_PAYLOAD_BYTES;
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  ondrain: (() => void) | undefined;
  onclose: ((reason?: Error) => void) | undefined;
  readonly #devices: Devices;
  readonly #descriptor: number;
  readonly #memory = allocateRegion(READ_BYTES);
  #watcher: Watcher | undefined;
  #closed = false;

  constructor(devices: Devices) {
    this.#devices = devices;
    this.#descriptor = devices.open("xenbus");
    this.resume();
  }

  send(bytes: Uint8Array): void {
    if (this.#closed) return;
    const { calls } = this.#devices;
    const sent = calls.write(this.#descriptor, calls.addressOf(bytes), bytes.length);
    if (sent === bytes.length) return;
    this.close(systemError("write", sent < 0 ? calls.errno() : EAGAIN, "/dev/xen/xenbus"));
  }

  pause(): void {
    this.#watcher?.[Symbol.dispose]();
    this.#watcher = undefined;
  }

  resume(): void {
    if (this.#closed) return;
    this.#watcher ??= watchReadable(this.#descriptor, () => this.#read());
  }

  #read(): void {
    const { calls } = this.#devices;
    const { bytes, address } = this.#memory;
    const count = calls.read(this.#descriptor, address, READ_BYTES);
    if (count > 0) this.onmessage?.(bytes.slice(0, count));
    else if (count === 0) this.close();
    else if (calls.errno() !== EAGAIN) {
      this.close(systemError("read", calls.errno(), "/dev/xen/xenbus"));
    }
  }

  close(reason?: Error): void {
    if (this.#closed) return;
    this.pause();
    this.#closed = true;
    this.#devices.close(this.#descriptor);
    queueMicrotask(() => this.onclose?.(reason));
  }
}
