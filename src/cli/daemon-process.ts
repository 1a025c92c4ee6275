/**
 * `vbdkit daemon` itself: a supervisor with a process for each guest (guest-process.ts), or all guests in this one.
 *
 * One process more waits for the next guest: a toolstack gives a disk ten seconds, and a guest that comes should not wait
 * for a program to start. Invariant: nothing but a toolstack ends a vbd.
 */
import { type ChildProcess, fork } from "node:child_process";
import { mkdirSync } from "node:fs";
import { type GuestProcess, Supervisor } from "../daemon/supervisor.ts";
import { systemClock } from "../util/clock.ts";
import { Questions } from "../util/questions.ts";
import type { Domain } from "../xen/domain.ts";
import { openHost } from "../xen/host/index.ts";
import { type Answers, openControl } from "./control.ts";
import { answerOf, type DaemonQuestion, startService } from "./daemon-service.ts";
import {
  type DaemonSettings,
  type FromGuestProcess,
  SETTINGS_VARIABLE,
  type ToGuestProcess,
} from "./daemon-settings.ts";
import { UsageError } from "./errors.ts";
import { dropRights } from "./guest-process.ts";
import { print } from "./output.ts";
import { checkPidfile, takePidfile } from "./pidfile.ts";
import { StopSignal } from "./signals.ts";

/** Serves until somebody asks it to stop. */
export async function runDaemon(settings: DaemonSettings): Promise<void> {
  using stop = new StopSignal();
  if (settings.pidfile !== undefined) checkPidfile(settings.pidfile);
  await using stack = new AsyncDisposableStack();
  const domain = stack.use(await openHost({ backend: settings.shared }));
  // Whoever serves finds its journals in there; the socket is ours alone.
  mkdirSync(settings.folder, { recursive: true, mode: 0o711 });
  const world = stack.use(
    settings.shared ? await oneProcess(settings, domain) : await manyProcesses(settings, domain),
  );
  stack.use(await openControl(settings.folder, answersOf(world)));
  if (settings.pidfile !== undefined) stack.use(takePidfile(settings.pidfile));
  if (settings.shared) dropRights(settings);
  print(`vbdkit serves ${settings.kinds.join(" and ")} of domain ${domain.id}`);
  await stop.stopped();
}

/** Whoever serves, however many they are. */
interface Service extends AsyncDisposable {
  ask(domid: number, question: DaemonQuestion): Promise<true>;
}

async function oneProcess(settings: DaemonSettings, domain: Domain): Promise<Service> {
  const service = await startService(domain, settings, undefined);
  return {
    ask: async (_domid, question) => await answerOf(service, question),
    [Symbol.asyncDispose]: () => service.leave(),
  };
}

async function manyProcesses(settings: DaemonSettings, domain: Domain): Promise<Service> {
  let spare: GuestChild | undefined = new GuestChild(settings);
  const supervisor = await Supervisor.start({
    store: domain.store,
    roots: settings.kinds.map((kind) => `/local/domain/${domain.id}/backend/${kind}`),
    clock: systemClock,
    start: (domid) => {
      const child = spare?.alive ? spare : new GuestChild(settings);
      child.serve(domid);
      spare = new GuestChild(settings);
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
      const waiting = spare;
      spare = undefined;
      await supervisor[Symbol.asyncDispose]();
      await waiting?.leave();
    },
  };
}

function answersOf(service: Service): Answers {
  return {
    resize: async ({ path, size, shrink }) => {
      if (typeof path !== "string" || typeof size !== "number") {
        throw new UsageError("resize: write a path and a size");
      }
      const domid = Number(path.split("/").at(-2));
      return await service.ask(domid, { path, size, shrink: shrink === true });
    },
  };
}

/** A guest's process, from our side. */
class GuestChild implements GuestProcess {
  readonly ended: Promise<string>;
  alive = true;
  readonly #child: ChildProcess;
  readonly #questions = new Questions();

  constructor(settings: DaemonSettings) {
    const child = fork(process.argv[1]!, ["daemon"], {
      execArgv: process.execArgv,
      env: { ...process.env, [SETTINGS_VARIABLE]: JSON.stringify(settings) },
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    this.#child = child;
    const { promise, resolve } = Promise.withResolvers<string>();
    this.ended = promise;
    const end = (how: string) => {
      this.alive = false;
      this.#questions.end(new Error(`the process ${how}`));
      resolve(how);
    };
    child.on("message", (message: FromGuestProcess) => {
      if ("answer" in message) this.#questions.answered(message.number, message.answer);
      else this.#questions.answered(message.number, undefined, new UsageError(message.error));
    });
    child.on("error", (error) => end(`failed: ${error.message}`));
    child.once("exit", (code, signal) =>
      end(signal === null ? `ended with status ${code}` : `was ended by ${signal}`),
    );
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
