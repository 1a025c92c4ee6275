/** Chooses the transport of a connection. */
import type { Socket } from "node:net";
import type { Reactor } from "../io/reactor.ts";
import { NetTransport } from "./net-transport.ts";
import type { Transport } from "./transport.ts";

/** "net" works everywhere; "descriptor" needs foreign calls; "auto" is the fastest that works. */
export type TransportKind = "auto" | "net";

/** The socket is the transport's from now on. `received` are bytes that came in with the handshake's last. */
export function openTransport(
  _kind: TransportKind,
  socket: Socket,
  received: Uint8Array,
  reactor: Reactor,
): Transport {
  return new NetTransport(socket, received, reactor);
}
