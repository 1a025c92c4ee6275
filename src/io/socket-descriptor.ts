/**
 * The descriptor of a net.Socket, for those who read and write it by foreign calls, with no stream, buffer or callback
 * object between. The socket stays the owner: it writes what the kernel would not take at once, and its end is ours.
 *
 * Invariant: the descriptor is a duplicate, because libuv allows one watcher for each; and the socket itself reads
 * nothing any more.
 */
import type { Socket } from "node:net";
import { type Ffi, ffi } from "./ffi.ts";

// <linux/fcntl.h>
const F_DUPFD_CLOEXEC = 1030;

/** What Node's net.Socket has within; every use is checked. */
interface SocketHandle {
  readonly fd?: number;
  readStop?(): number;
}

export interface TakenSocket {
  readonly calls: Ffi;
  /** The caller's to close. */
  readonly descriptor: number;
}

/** undefined where this process, or this version of Node, does not let us; the socket is untouched then. */
export function takeSocket(socket: Socket): TakenSocket | undefined {
  const calls = ffi();
  const handle = (socket as unknown as { _handle?: SocketHandle | null })._handle;
  if (calls === undefined || typeof handle?.fd !== "number" || handle.fd < 0) return undefined;
  if (typeof handle.readStop !== "function" || socket.destroyed) return undefined;
  const descriptor = calls.fcntl(handle.fd, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return undefined;
  handle.readStop();
  return { calls, descriptor };
}
