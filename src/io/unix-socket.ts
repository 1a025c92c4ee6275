/**
 * Listening on a Unix socket (unix(7)).
 *
 * Invariant: whoever may connect is decided by the file's mode before the first client can be accepted, and a socket
 * that somebody still serves is never taken away; one that a dead process left is.
 */
import { chmodSync, lstatSync, rmSync, statSync } from "node:fs";
import { connect, type Server } from "node:net";
import { dirname } from "node:path";
import { isMainThread } from "node:worker_threads";

/** sizeof(sun_path) less the NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/** Why a socket cannot be listened on: one line that names the path, and a code of Linux. */
export class UnixSocketError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "UnixSocketError";
    this.code = code;
  }
}

/** Resolves when `server` accepts clients at `path`, whose file has `mode`. Rejects with UnixSocketError: ENAMETOOLONG,
 * ENOENT or ENOTDIR (no such folder), EACCES, EADDRINUSE (somebody serves it, or it is no socket) ... */
export async function listenOnUnixSocket(
  server: Server,
  path: string,
  mode: number,
): Promise<void> {
  checkPath(path);
  await removeStaleSocket(path);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("listening", resolve);
  // Later errors are of clients that could not be accepted, for want of descriptors: they see it themselves.
  server.on("error", (error: NodeJS.ErrnoException) => reject(listenError(path, error)));
  // The file appears within listen: with the mask it never has more rights than it is to have. A worker has no mask,
  // but even there a new socket is its owner's to connect to until chmod, under any usual mask.
  const mask = isMainThread ? process.umask(0o777 & ~mode) : undefined;
  try {
    server.listen({ path });
    if (server.listening) chmodSync(path, mode);
  } finally {
    if (mask !== undefined) process.umask(mask);
  }
  await promise;
}

/** Where bind(2) would say little, or libuv something else: it calls a missing folder EACCES, and cuts long paths. */
function checkPath(path: string): void {
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
    const message = `${path}: the path of a Unix socket has at most ${MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one`;
    throw new UnixSocketError("ENAMETOOLONG", message);
  }
  const folder = dirname(path);
  let found: ReturnType<typeof statSync>;
  try {
    found = statSync(folder, { throwIfNoEntry: false });
  } catch (error) {
    throw listenError(path, error as NodeJS.ErrnoException);
  }
  if (found === undefined) {
    throw new UnixSocketError("ENOENT", `${path}: there is no folder ${folder}`);
  }
  if (!found.isDirectory()) throw new UnixSocketError("ENOTDIR", `${path}: ${folder} is no folder`);
}

function listenError(path: string, error: NodeJS.ErrnoException): UnixSocketError {
  const { code = "EIO" } = error;
  if (code === "EADDRINUSE") return inUse(path);
  const what = code === "EACCES" ? "permission denied in that folder" : error.message;
  return new UnixSocketError(code, `${path}: ${what}`, { cause: error });
}

function inUse(path: string): UnixSocketError {
  const message = `${path}: another server listens there; end it, or choose another path`;
  return new UnixSocketError("EADDRINUSE", message);
}

/** Removes a socket that nobody serves any more. */
async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) {
    const message = `${path}: there is something that is no socket; choose another path`;
    throw new UnixSocketError("EADDRINUSE", message);
  }
  const answer = await probeUnixSocket(path);
  if (answer === "ECONNREFUSED") rmSync(path, { force: true });
  else if (answer !== "ENOENT") throw inUse(path);
}

/** Connects and hangs up: "served" where somebody listens at `path`, else the code of connect(2). */
export function probeUnixSocket(path: string): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const socket = connect(path, () => {
    socket.destroy();
    resolve("served");
  });
  socket.once("error", ({ code = "EIO" }: NodeJS.ErrnoException) => resolve(code));
  return promise;
}
