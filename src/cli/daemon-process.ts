/**
 * `vbdkit daemon` itself: a supervisor with a process for each guest (guest-process.ts), or all guests in this one.
 *
 * One process more waits for the next guest, from before the daemon says that it serves: a toolstack gives a disk ten
 * seconds, and a guest that comes should not wait for a program to start. Invariant: nothing but a toolstack ends a vbd.
 */
import { type ChildProcess, fork } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { Spare } from "../daemon/spare.ts";
import { type GuestProcess, Supervisor } from "../daemon/supervisor.ts";
import { siblingModule } from "../io/sibling.ts";
import { systemClock } from "../util/clock.ts";
import { Questions } from "../util/questions.ts";
import type { Domain } from "../xen/domain.ts";
import { openHost } from "../xen/host/index.ts";
import { type Answers, openControl } from "./control.ts";
import type { DaemonQuestion } from "./daemon-service.ts";
import type { DaemonSettings, FromGuestProcess, ToGuestProcess } from "./daemon-settings.ts";
import { dropRights } from "./drop-rights.ts";
import { UsageError } from "./errors.ts";
import { print } from "./output.ts";
import { checkPidfile, takePidfile } from "./pidfile.ts";
import { StopSignal } from "./signals.ts";

/** Linux has a driver for backends of vbds (xen-blkback): two would answer each guest. */
const KERNEL_BACKEND = "/sys/bus/xen-backend/drivers/vbd";

/** Serves until somebody asks it to stop. */
export async function runDaemon(settings: DaemonSettings): Promise<void> {
  using stop = new StopSignal();
  if (settings.pidfile !== undefined) checkPidfile(settings.pidfile);
  if (settings.kinds.includes("vbd") && existsSync(KERNEL_BACKEND)) {
    throw new UsageError("--kind vbd: the kernel serves backend/vbd here; rmmod xen-blkback first");
  }
  await using stack = new AsyncDisposableStack();
  const domain = stack.use(await openHost({ backend: settings.shared }));
  // Whoever serves finds its journals in there; the socket is ours alone.
  mkdirSync(settings.folder, { recursive: true, mode: 0o711 });
  let world: Service | undefined;
  const answers = answersOf(() => {
    if (world === undefined) throw new Error("the daemon has only begun");
    return world;
  });
  stack.use(await openControl(settings.folder, answers));
  if (settings.pidfile !== undefined) stack.use(takePidfile(settings.pidfile));
  // Whoever serves here has no rights from the first disk on, and its journals are its own.
  if (settings.shared) dropRights(settings);
  world = stack.use(
    settings.shared ? await oneProcess(settings, domain) : await manyProcesses(settings, domain),
  );
  print(`vbdkit serves ${settings.kinds.join(" and ")} of domain ${domain.id}`);
  await stop.stopped();
}

/** Whoever serves, however many they are. */
interface Service extends AsyncDisposable {
  ask(domid: number, question: DaemonQuestion): Promise<true>;
}

async function oneProcess(settings: DaemonSettings, domain: Domain): Promise<Service> {
  // Where each guest has its process, what serves is not loaded here.
  const { answerOf, startService } = await import("./daemon-service.ts");
  const service = await startService(domain, settings, undefined);
  return {
    ask: async (_domid, question) => await answerOf(service, question),
    [Symbol.asyncDispose]: () => service.leave(),
  };
}

async function manyProcesses(settings: DaemonSettings, domain: Domain): Promise<Service> {
  const first = new GuestChild(settings);
  await first.ready;
  // It has said why.
  if (!first.alive) throw new Error(`a process for guests ${await first.ended}`);
  const spare = new Spare(first, () => new GuestChild(settings), systemClock);
  const supervisor = await Supervisor.start({
    store: domain.store,
    roots: settings.kinds.map((kind) => `/local/domain/${domain.id}/backend/${kind}`),
    clock: systemClock,
    start: (domid) => {
      const child = spare.take();
      child.serve(domid);
      return child;
    },
    onnote: (message) => void process.stderr.write(`vbdkit: ${message}\n`),
  });
  return {
    async ask(domid, question) {
      const child = supervisor.process(domid);
      if (child === undefined) throw new UsageError(`domain ${domid} has no disk of ours`);
      return await child.ask(question);
    },
    async [Symbol.asyncDispose]() {
      await supervisor[Symbol.asyncDispose]();
      await spare[Symbol.asyncDispose]();
    },
  };
}

function answersOf(service: () => Service): Answers {
  return {
    resize: async ({ path, size, shrink }) => {
      if (typeof path !== "string" || typeof size !== "number") {
        throw new UsageError("resize: write a path and a size");
      }
      const domid = Number(path.split("/").at(-2));
      return await service().ask(domid, { path, size, shrink: shrink === true });
    },
  };
}

/** A guest's process, from our side. */
class GuestChild implements GuestProcess {
  readonly ended: Promise<string>;
  /** Resolves when it could serve at once, or has ended. */
  readonly ready: Promise<void>;
  alive = true;
  readonly #child: ChildProcess;
  readonly #questions = new Questions();

  constructor(settings: DaemonSettings) {
    const child = fork(siblingModule(import.meta.url, "./guest-process"), {
      execArgv: process.execArgv,
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    this.#child = child;
    const { promise, resolve } = Promise.withResolvers<string>();
    this.ended = promise;
    const ready = Promise.withResolvers<void>();
    this.ready = ready.promise;
    const end = (how: string) => {
      this.alive = false;
      ready.resolve();
      this.#questions.end(new Error(`the process ${how}`));
      resolve(how);
    };
    child.on("message", (message: FromGuestProcess) => {
      if ("ready" in message) ready.resolve();
      else if ("answer" in message) this.#questions.answered(message.number, message.answer);
      else this.#questions.answered(message.number, undefined, new UsageError(message.error));
    });
    child.on("error", (error) => end(`failed: ${error.message}`));
    child.once("exit", (code, signal) =>
      end(signal === null ? `ended with status ${code}` : `was ended by ${signal}`),
    );
    this.#send({ setup: settings });
  }

  serve(domid: number): void {
    this.#send({ serve: domid });
  }

  async ask(question: DaemonQuestion): Promise<true> {
    return await this.#questions.ask((number) => this.#send({ number, question }));
  }

  async leave(): Promise<void> {
    this.#send({ leave: true });
    await this.ended;
  }

  #send(message: ToGuestProcess): void {
    if (this.#child.connected) this.#child.send(message, () => {});
  }
}
