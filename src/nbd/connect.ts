/** From a URI to a socket that has been through the handshake. Control plane. */
import { connect, type Socket } from "node:net";
import type { Reactor } from "../io/reactor.ts";
import { errnoName, errnoOf, StoreError } from "../store/errors.ts";
import { type Agreed, clientHandshake } from "./client-handshake.ts";
import { HandshakeStream } from "./handshake-stream.ts";
import type { Transport } from "./transport.ts";
import { openTransport, type TransportKind } from "./transports.ts";
import { formatNbdUri, type NbdUri } from "./uri.ts";

export interface Connected {
  readonly transport: Transport;
  readonly agreed: Agreed;
}

/** Rejects with one StoreError that names the URI: ECONNREFUSED, ENOENT, ETIMEDOUT, EPROTO, ECANCELED ... */
export async function connectNbd(
  uri: NbdUri,
  reactor: Reactor,
  kind: TransportKind,
  signal: AbortSignal,
): Promise<Connected> {
  const { address, exportName } = uri;
  const socket: Socket = "path" in address ? connect(address.path) : connect(address);
  let error: Error | undefined;
  socket.on("error", (cause) => {
    error ??= cause;
  });
  const abort = () => socket.destroy();
  signal.addEventListener("abort", abort, { once: true });
  try {
    if (signal.aborted) throw reasonOf(signal);
    await new Promise<void>((resolve) => {
      socket.once("connect", resolve);
      socket.once("close", () => resolve());
    });
    if (socket.destroyed) throw error ?? new Error("the connection was closed");
    socket.setNoDelay(true);
    const stream = new HandshakeStream(socket);
    const agreed = await clientHandshake(stream, exportName);
    if (signal.aborted) throw reasonOf(signal);
    return { transport: openTransport(kind, socket, stream.release(), reactor), agreed };
  } catch (caught) {
    socket.destroy();
    const cause = signal.aborted ? reasonOf(signal) : caught;
    const said = cause instanceof Error ? cause.message : String(cause);
    const code = errnoName(errnoOf(cause));
    throw new StoreError(code, `${formatNbdUri(uri)}: ${said}`, { cause });
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function reasonOf(signal: AbortSignal): Error {
  const reason: unknown = signal.reason;
  if (reason instanceof DOMException && reason.name === "TimeoutError") {
    return new StoreError("ETIMEDOUT", "no answer in time", { cause: reason });
  }
  return new StoreError("ECANCELED", "connecting was cancelled", { cause: reason });
}
