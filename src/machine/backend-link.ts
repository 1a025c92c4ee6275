/** A backend seen from the machine, wherever it lives: on this thread, in a worker, or in a child process. */
import { type ChildProcess, fork } from "node:child_process";
import { channel } from "node:diagnostics_channel";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type BackendEvent, type BackendLimits, BlockBackend } from "../block/index.ts";
import { siblingModule } from "../io/sibling.ts";
import type { BlockStore, EngineChoice, Extent, StoreSpec } from "../store/block-store.ts";
import { Errno, type ErrnoName, StoreError } from "../store/errors.ts";
import { systemClock } from "../util/clock.ts";
import { Questions } from "../util/questions.ts";
import type { Domain } from "../xen/domain.ts";
import type { DomainTicket } from "../xen/embedded/index.ts";
import { reportOf } from "./backend-host.ts";
import {
  type BackendReport,
  type FromBackend,
  NOTES,
  type Question,
  type ToBackend,
} from "./backend-protocol.ts";

export interface BackendLink extends AsyncDisposable {
  report(): Promise<BackendReport>;
  extents(offset: number, length: number): AsyncIterable<Extent>;
  resize(size: number): Promise<void>;
  /** Ends the worker or process by force. Nothing happens to a backend of this thread: what its store has in hand is
   * memory of ours. */
  kill(): void;
}

export interface BackendLinkOptions {
  readonly path: string;
  readonly readOnly: boolean;
  readonly limits: Partial<BackendLimits>;
  readonly ontrace: (event: BackendEvent) => void;
  /** The worker or process that ran the backend ended by itself: its domain is dead. */
  readonly ondeath: () => void;
}

const notes = channel(NOTES);

/** On this thread: the fastest, because nothing has to be woken. */
export async function localBackend(
  domain: Domain,
  store: BlockStore,
  options: BackendLinkOptions,
): Promise<BackendLink> {
  const { readOnly, limits, ontrace } = options;
  const backend = await BlockBackend.open(domain, options.path, store, {
    readOnly,
    limits,
    ontrace,
    cpus: availableParallelism(),
    clock: systemClock,
  });
  return {
    report: async () => reportOf(backend, store, domain),
    extents: (offset, length) => store.extents(offset, length),
    resize: (size) => store.resize(size),
    kill: () => {},
    [Symbol.asyncDispose]: () => backend[Symbol.asyncDispose](),
  };
}

/** The end of a channel that a worker or a child process holds the other end of. */
interface Far {
  post(message: ToBackend): void;
  /** Ends it by force, when it does not end by itself. */
  kill(): void;
  readonly ended: Promise<void>;
}

/** A backend that did not close in this time is ended by force. */
const CLOSE_TIMEOUT_MILLISECONDS = 20_000;

export async function remoteBackend(
  where: "worker" | "process",
  ticket: DomainTicket,
  spec: StoreSpec,
  engine: EngineChoice,
  options: BackendLinkOptions,
): Promise<BackendLink> {
  const questions = new Questions();
  const ready = Promise.withResolvers<void>();
  const onmessage = (message: FromBackend): void => {
    if ("ready" in message) ready.resolve();
    else if ("event" in message) options.ontrace(message.event);
    else if ("note" in message) notes.publish(message.note);
    else if ("answer" in message) questions.answered(message.number, message.answer);
    else if (message.number === undefined) ready.reject(errorOf(message.error));
    else questions.answered(message.number, undefined, errorOf(message.error));
  };
  const onend = (reason: string): void => {
    const error = new StoreError("EIO", `the backend's ${where} ${reason}`);
    ready.reject(error);
    questions.end(error);
    options.ontrace({ kind: "failed", message: error.message });
    options.ondeath();
  };
  const far =
    where === "worker" ? startWorker(ticket, onmessage, onend) : startProcess(onmessage, onend);
  const ask = <T>(question: Question): Promise<T> =>
    questions.ask<T>((number) => far.post({ number, ...question }));
  const end = async (): Promise<void> => {
    const timer = setTimeout(() => far.kill(), CLOSE_TIMEOUT_MILLISECONDS);
    await ask<true>({ ask: "close" }).catch(() => {});
    await far.ended;
    clearTimeout(timer);
  };
  try {
    const { path, readOnly, limits } = options;
    far.post({ setup: { ticket, path, spec, readOnly, engine, limits } });
    await ready.promise;
  } catch (error) {
    await end();
    throw error;
  }
  return {
    report: () => ask<BackendReport>({ ask: "report" }),
    async *extents(offset, length) {
      const limit = offset + length;
      while (offset < limit) {
        const extents = await ask<Extent[]>({ ask: "extents", offset, length: limit - offset });
        if (extents.length === 0) return;
        yield* extents;
        const last = extents[extents.length - 1]!;
        offset = last.offset + last.length;
      }
    },
    resize: async (size) => void (await ask<true>({ ask: "resize", size })),
    kill: () => far.kill(),
    [Symbol.asyncDispose]: end,
  };
}

function errorOf(error: { code: string; message: string }): Error {
  if (Object.hasOwn(Errno, error.code))
    return new StoreError(error.code as ErrnoName, error.message);
  return Object.assign(new Error(error.message), { code: error.code });
}

function startWorker(
  ticket: DomainTicket,
  onmessage: (message: FromBackend) => void,
  onend: (reason: string) => void,
): Far {
  const worker = new Worker(siblingModule(import.meta.url, "./backend-worker"));
  const ended = Promise.withResolvers<void>();
  worker.on("message", onmessage);
  worker.on("error", (error: unknown) => onend(`failed: ${String(error)}`));
  worker.once("exit", (code) => {
    if (code !== 0) onend(`ended with status ${code}`);
    ended.resolve();
  });
  return {
    post: (message) => {
      const transfer = "setup" in message ? ticket.transferList : [];
      worker.postMessage(message, transfer);
    },
    kill: () => void worker.terminate(),
    ended: ended.promise,
  };
}

function startProcess(
  onmessage: (message: FromBackend) => void,
  onend: (reason: string) => void,
): Far {
  const module = siblingModule(import.meta.url, "./backend-process");
  const child: ChildProcess = fork(module, {
    execArgv: process.execArgv,
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const ended = Promise.withResolvers<void>();
  child.on("message", (message) => onmessage(message as FromBackend));
  child.on("error", (error) => onend(`failed: ${error.message}`));
  child.once("exit", (code, signal) => {
    if (code !== 0) onend(signal === null ? `ended with status ${code}` : `was ended by ${signal}`);
    ended.resolve();
  });
  return {
    post: (message) => {
      if (child.connected) child.send(message, () => {});
    },
    kill: () => void child.kill("SIGKILL"),
    ended: ended.promise,
  };
}
