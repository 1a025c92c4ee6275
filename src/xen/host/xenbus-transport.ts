/**
 * A transport over /dev/xen/xenbus, through which the kernel lets processes share its own connection to the xenstore
 * (drivers/xen/xenbus/xenbus_dev_frontend.c).
 *
 * The kernel takes one message with each write(2), queues it, and holds the answers until they are read. Watches are begun
 * and ended within the write: it waits for the xenstore there, with the file locked, and its thread that takes answers
 * waits for that lock when one to an earlier request of the same file comes. Then nobody in this domain hears from the
 * xenstore again. Invariant: watches therefore have a file of their own, with no other request in it. What is taken of a
 * file ends with a whole message, so that the two make one stream.
 */

import { systemError } from "../../io/ffi.ts";
import { allocateRegion } from "../../io/memory.ts";
import { type Watcher, watchReadable } from "../../io/poller.ts";
import {
  XENSTORE_HEADER_SIZE,
  XENSTORE_PAYLOAD_MAX,
  XS_UNWATCH,
  XS_WATCH,
} from "../../wire/xenstore.ts";
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
  readonly #requests: number;
  readonly #watches: number;
  readonly #memory = allocateRegion(READ_BYTES);
  #watchers: readonly Watcher[] = [];
  #closed = false;

  constructor(devices: Devices) {
    this.#devices = devices;
    this.#requests = devices.open("xenbus");
    this.#watches = devices.open("xenbus");
    this.resume();
  }

  send(bytes: Uint8Array): void {
    if (this.#closed) return;
    const { calls } = this.#devices;
    const type = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const file = type === XS_WATCH || type === XS_UNWATCH ? this.#watches : this.#requests;
    const sent = calls.write(file, calls.addressOf(bytes), bytes.length);
    if (sent === bytes.length) return;
    this.close(systemError("write", sent < 0 ? calls.errno() : EAGAIN, "/dev/xen/xenbus"));
  }

  pause(): void {
    for (const watcher of this.#watchers) watcher[Symbol.dispose]();
    this.#watchers = [];
  }

  resume(): void {
    if (this.#closed || this.#watchers.length > 0) return;
    this.#watchers = [this.#requests, this.#watches].map((file) =>
      watchReadable(file, () => this.#read(file)),
    );
  }

  #read(file: number): void {
    const { calls } = this.#devices;
    const { bytes, address } = this.#memory;
    // Less than there is room for is all that there was.
    for (let count = READ_BYTES; count === READ_BYTES && !this.#closed; ) {
      count = calls.read(file, address, READ_BYTES);
      if (count > 0) this.onmessage?.(bytes.slice(0, count));
      else if (count === 0) this.close();
      else if (calls.errno() !== EAGAIN) {
        this.close(systemError("read", calls.errno(), "/dev/xen/xenbus"));
      }
    }
  }

  close(reason?: Error): void {
    if (this.#closed) return;
    this.pause();
    this.#closed = true;
    for (const file of [this.#requests, this.#watches]) this.#devices.close(file);
    queueMicrotask(() => this.onclose?.(reason));
  }
}
