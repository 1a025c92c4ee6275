/**
 * How other commands ask a running server: `control.sock` in the server's own folder (0700), one line of JSON each
 * way. `{"request":"info"}` is answered with what the server is, what was negotiated, and its counters now;
 * `{"request":"stats"}` with its statistics.
 *
 * Invariant: a line that is not a request gets an error line; nothing sent here changes the server.
 */
import { existsSync, globSync, statSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { listenOnUnixSocket, probeUnixSocket } from "../io/unix-socket.ts";
import { UsageError } from "./errors.ts";
import { plain } from "./output.ts";

/** Its name in the server's folder. */
export const CONTROL_SOCKET = "control.sock";
/** A request is a word; who sends more is not one of ours. */
const MAX_REQUEST_BYTES = 4096;
/** The answer comes from the server's memory; it is slow only when its event loop is stuck. */
const ANSWER_TIMEOUT_MS = 10_000;

type Answers = Readonly<Record<string, () => Promise<unknown>>>;

/** Listens in `directory`. Disposal closes it and removes the socket. */
export async function openControl(directory: string, answers: Answers): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy());
    let text = "";
    socket.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (!text.includes("\n") && text.length < MAX_REQUEST_BYTES) return;
      socket.removeAllListeners("data").pause();
      void answer(text, answers).then((reply) => socket.end(`${reply}\n`));
    });
  });
  const path = join(directory, CONTROL_SOCKET);
  await listenOnUnixSocket(server, path, 0o600);
  server.unref();
  return {
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function answer(line: string, answers: Answers): Promise<string> {
  try {
    const { request } = JSON.parse(line) as { request?: unknown };
    if (typeof request !== "string" || !Object.hasOwn(answers, request)) {
      throw new Error(`requests are ${Object.keys(answers).join(", ")}`);
    }
    return JSON.stringify({ answer: await answers[request]!() }, plain);
  } catch (error) {
    return JSON.stringify({ error: error instanceof Error ? error.message : String(error) });
  }
}

/** The folder of a running server that a folder, a socket in it, or a nbd+unix URI names; else undefined. */
export function findMachine(name: string): string | undefined {
  let path = name;
  if (/^nbds?\+unix:/.test(name)) path = new URL(name).searchParams.get("socket") ?? "";
  for (const folder of [path, dirname(path)]) {
    const socket = join(folder, CONTROL_SOCKET);
    const named = folder === path || statSync(path, { throwIfNoEntry: false })?.isSocket() === true;
    if (path !== "" && named && existsSync(socket)) return folder;
  }
  return undefined;
}

/** The folder of the server that a person means: the one that is named, that of the environment, or the only one that
 * runs. Rejects with a UsageError that says what to name. */
export async function findServer(name: string | undefined): Promise<string> {
  const named = name ?? process.env.VBDKIT_MACHINE;
  if (named !== undefined) {
    const folder = findMachine(named);
    if (folder === undefined) throw new UsageError(`${named}: no server runs there`);
    return folder;
  }
  const running: string[] = [];
  for (const socket of globSync(join(tmpdir(), "vbdkit-*", CONTROL_SOCKET)).sort()) {
    if ((await probeUnixSocket(socket)) === "served") running.push(dirname(socket));
  }
  const [only] = running;
  if (only === undefined) {
    throw new UsageError("no server runs; start one with vbdkit serve, or name its folder");
  }
  if (running.length > 1) throw new UsageError(`which server? ${running.join(", ")}`);
  return only;
}

/** Asks the server in `directory`. Rejects with a UsageError where there is none. */
export async function ask<T>(directory: string, request: string): Promise<T> {
  const path = join(directory, CONTROL_SOCKET);
  const socket = connect(path);
  socket.setTimeout(ANSWER_TIMEOUT_MS, () =>
    socket.destroy(new Error(`${path}: no answer within ${ANSWER_TIMEOUT_MS / 1000} s`)),
  );
  let text = "";
  try {
    socket.write(`${JSON.stringify({ request })}\n`);
    for await (const chunk of socket.setEncoding("utf8")) text += chunk;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ENOENT" && code !== "ECONNREFUSED") throw error;
    throw new UsageError(`${directory}: no server runs there`, { cause: error });
  }
  const reply = JSON.parse(text) as { answer?: T; error?: string };
  if (reply.error !== undefined) throw new Error(`${directory}: ${reply.error}`);
  return reply.answer as T;
}
