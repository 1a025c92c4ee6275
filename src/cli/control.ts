/**
 * How other commands ask a running server: `control.sock` in the server's own folder (0700), one line of JSON with the
 * request and what belongs to it, `{"request":"detach","domain":"web","vdev":"xvda"}`; lines of notes for people while
 * it is carried out, and one with the answer or what went wrong.
 *
 * Invariant: a line that is not a request gets an error line, and changes nothing; only the server's own user comes in.
 */
import { existsSync, globSync, statSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { listenOnUnixSocket, probeUnixSocket } from "../io/unix-socket.ts";
import { ExitCode, exitCodeOf, messageOf, UsageError } from "./errors.ts";
import { plain } from "./output.ts";

/** Its name in the server's folder. */
export const CONTROL_SOCKET = "control.sock";
/** A request to attach a disk names a few paths of 4096 bytes at most; who sends more is not one of ours. */
const MAX_REQUEST_BYTES = 256 * 1024;
/** What is answered from the server's memory is slow only when its event loop is stuck. */
const ANSWER_TIMEOUT_MS = 10_000;

/** What belongs to a request, beside its name; not to be believed. */
export type RequestFields = Readonly<Record<string, unknown>>;

/** Of one request while it is carried out. */
export interface Asker {
  /** Aborts when the asker has gone. */
  readonly signal: AbortSignal;
  /** Tells a person why it takes long. */
  note(message: string): void;
}

/** What is done for a request, by its name. */
export type Answers = Readonly<
  Record<string, (fields: RequestFields, asker: Asker) => Promise<unknown>>
>;
type Line =
  | { readonly answer: unknown }
  | { readonly note: string }
  /** `usage` where what was typed cannot be right. */
  | { readonly error: string; readonly usage: boolean };

/** Listens in `directory`. Disposal closes it and removes the socket. */
export async function openControl(directory: string, answers: Answers): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    const left = new AbortController();
    socket.on("close", () => {
      sockets.delete(socket);
      left.abort(new Error("whoever asked has gone"));
    });
    socket.on("error", () => socket.destroy());
    socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy());
    let text = "";
    socket.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (!text.includes("\n") && text.length < MAX_REQUEST_BYTES) return;
      // More is not read as a request, but an end is seen.
      socket.removeAllListeners("data").resume().setTimeout(0);
      const note = (note: string) => void socket.write(written({ note }));
      void answer(text, answers, { signal: left.signal, note }).then((line) => socket.end(line));
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

function written(line: Line): string {
  return `${JSON.stringify(line, plain)}\n`;
}

/** Never rejects: what JSON cannot write is an error, too. */
async function answer(text: string, answers: Answers, asker: Asker): Promise<string> {
  try {
    const { request, ...fields } = (JSON.parse(text) ?? {}) as { request?: unknown };
    if (typeof request !== "string" || !Object.hasOwn(answers, request)) {
      throw new Error(`requests are ${Object.keys(answers).join(", ")}`);
    }
    return written({ answer: await answers[request]!(fields, asker) });
  } catch (error) {
    return written({ error: messageOf(error), usage: exitCodeOf(error) === ExitCode.usage });
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

/** What --machine calls the Xen host that we run on, in place of a folder. */
export const XEN_HOST = "xen";

/** The folder of the server that a person means: the one that is named, that of the environment, or the only one that
 * runs; XEN_HOST where that is meant, or none runs and this is one. Rejects with a UsageError that says what to name. */
export async function findServer(name: string | undefined): Promise<string> {
  const named = name ?? process.env.VBDKIT_MACHINE;
  if (named === XEN_HOST) return XEN_HOST;
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
  if (only === undefined && existsSync("/dev/xen/xenbus")) return XEN_HOST;
  if (only === undefined) {
    throw new UsageError(
      "no server runs; start one with vbdkit serve or vbdkit machine, or name its folder",
    );
  }
  if (running.length > 1) throw new UsageError(`which server? ${running.join(", ")}`);
  return only;
}

export interface AskOptions {
  /** Beside the name of the request. */
  readonly fields?: object;
  /** Carrying it out may take as long as it likes. */
  readonly patient?: boolean;
  /** Asks no more. */
  readonly signal?: AbortSignal;
}

/** Asks the server in `directory`; its notes go to standard error. Rejects with a UsageError where there is no server, and
 * with what it says. */
export async function askServer<T>(
  directory: string,
  request: string,
  options: AskOptions = {},
): Promise<T> {
  const path = join(directory, CONTROL_SOCKET);
  const { fields = {}, patient = false, signal } = options;
  signal?.throwIfAborted();
  const socket = connect(path);
  const stop = () => socket.destroy(signal?.reason as Error);
  signal?.addEventListener("abort", stop);
  if (!patient) {
    socket.setTimeout(ANSWER_TIMEOUT_MS, () =>
      socket.destroy(new Error(`${path}: no answer within ${ANSWER_TIMEOUT_MS / 1000} s`)),
    );
  }
  try {
    socket.write(`${JSON.stringify({ ...fields, request })}\n`);
    let text = "";
    for await (const chunk of socket.setEncoding("utf8")) {
      text += chunk;
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
        const line = JSON.parse(text.slice(0, end)) as Line;
        text = text.slice(end + 1);
        if ("note" in line) process.stderr.write(`vbdkit: ${line.note}\n`);
        else if ("answer" in line) return line.answer as T;
        else throw line.usage ? new UsageError(line.error) : new Error(line.error);
      }
    }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ENOENT" && code !== "ECONNREFUSED") throw error;
    throw new UsageError(`${directory}: no server runs there`, { cause: error });
  } finally {
    signal?.removeEventListener("abort", stop);
    socket.destroy();
  }
  throw new Error(`${directory}: the server has ended`);
}
