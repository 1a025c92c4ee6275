/** Chooses the transport of a connection. */
import type { Socket } from "node:net";
import type { Reactor } from "../io/reactor.ts";
import { DescriptorTransport } from "./descriptor-transport.ts";
import { NetTransport } from "./net-transport.ts";
import type { Transport } from "./transport.ts";

/** "net" works everywhere; "auto" goes past Node's streams where this process has foreign calls. */
export type TransportKind = "auto" | "net";

/** The socket is the transport's from now on. `received` are bytes that came in with the handshake's last. */
export function openTransport(
  kind: TransportKind,
  socket: Socket,
  received: Uint8Array,
  reactor: Reactor,
): Transport {
  const fast = kind === "auto" ? DescriptorTransport.take(socket, received, reactor) : undefined;
  return fast ?? new NetTransport(socket, received, reactor);
}
