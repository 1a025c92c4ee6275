/** The far side of a backend that lives in a worker or a child process: joins the machine as a domain, opens the
 * store there, runs the backend, and answers questions about it until it is told to close. */
import { subscribe } from "node:diagnostics_channel";
import { availableParallelism } from "node:os";
import { type BackendEvent, BlockBackend, linuxStatistics } from "../block/index.ts";
import { Reactor } from "../io/reactor.ts";
import type { BlockStore, Extent } from "../store/block-store.ts";
import { openStore } from "../store/registry.ts";
import { systemClock } from "../util/clock.ts";
import type { Domain } from "../xen/domain.ts";
import { joinMachine } from "../xen/embedded/index.ts";
import {
  type BackendReport,
  type BackendSetup,
  type FromBackend,
  MAX_EXTENTS_PER_ANSWER,
  type MessageChannelEnd,
  NOTES,
  type Question,
  type ToBackend,
} from "./backend-protocol.ts";
import { ringIndexes } from "./ring-indexes.ts";

/** Serves the channel; resolves when the backend was closed. `lost` aborts when the other side is gone. */
export async function hostBackend(
  channel: MessageChannelEnd<ToBackend, FromBackend>,
  lost: AbortSignal,
): Promise<void> {
  const closed = Promise.withResolvers<void>();
  let served: ServedBackend | undefined;
  lost.addEventListener("abort", () => closed.resolve(), { once: true });
  // Nobody listens in this thread or process: they are for whoever started it.
  subscribe(NOTES, (note) => channel.post({ note }));
  channel.onmessage = (message) => {
    const number = "number" in message ? message.number : undefined;
    const work = async (): Promise<void> => {
      if ("setup" in message) {
        served = await openBackend(message.setup, (event) => channel.post({ event }));
        channel.post({ ready: true });
        return;
      }
      if (message.ask === "close") {
        await served?.[Symbol.asyncDispose]();
        channel.post({ number: message.number, answer: true });
        closed.resolve();
        return;
      }
      if (served === undefined) throw new Error("no backend yet");
      channel.post({ number: message.number, answer: await answer(served, message) });
    };
    work().catch((error: unknown) => {
      const code = (error as { code?: unknown }).code;
      channel.post({
        number,
        error: {
          code: typeof code === "string" ? code : "EIO",
          message: error instanceof Error ? error.message : String(error),
        },
      });
    });
  };
  await closed.promise;
  if (!lost.aborted) return;
  // Whoever asked for us is gone: what was answered to the guest still gets to the disk.
  await served?.[Symbol.asyncDispose]();
}

/** A backend with what it is made of; its disposal ends them both. */
interface ServedBackend extends AsyncDisposable {
  readonly domain: Domain;
  readonly store: BlockStore;
  readonly backend: BlockBackend;
}

async function openBackend(
  setup: BackendSetup,
  ontrace: (event: BackendEvent) => void,
): Promise<ServedBackend> {
  const reactor = new Reactor();
  const { readOnly, engine, limits } = setup;
  const domain = await joinMachine(setup.ticket, reactor);
  try {
    const store = await openStore(setup.spec, { reactor, readOnly, engine });
    const backend = await BlockBackend.open(domain, setup.path, store, {
      readOnly,
      limits,
      ontrace,
      cpus: availableParallelism(),
      clock: systemClock,
    });
    return {
      ...{ domain, store, backend },
      async [Symbol.asyncDispose]() {
        await backend[Symbol.asyncDispose]();
        await domain[Symbol.asyncDispose]();
      },
    };
  } catch (error) {
    await domain[Symbol.asyncDispose]();
    throw error;
  }
}

async function answer(
  { backend, store, domain }: ServedBackend,
  question: Question,
): Promise<Extent[] | BackendReport | true> {
  switch (question.ask) {
    case "extents":
      return firstExtents(store, question.offset, question.length);
    case "resize":
      await store.resize(question.size);
      return true;
    default:
      return reportOf(backend, store, domain);
  }
}

async function firstExtents(store: BlockStore, offset: number, length: number): Promise<Extent[]> {
  const extents: Extent[] = [];
  for await (const extent of store.extents(offset, length)) {
    extents.push(extent);
    if (extents.length === MAX_EXTENTS_PER_ANSWER) break;
  }
  return extents;
}

/** What `info` shows of a backend; the same wherever it lives. */
export function reportOf(backend: BlockBackend, served: BlockStore, domain: Domain): BackendReport {
  const { size, readOnly, block, discard, shareable, depth, engine } = served.info;
  const { granted, mapped, maps, unmaps, copies } = domain.grants.counters;
  const { sent, delivered } = domain.events.counters;
  const { rings: each = [], ...total } = backend.counters ?? {};
  const queue = "requests" in total ? total : undefined;
  const pages = backend.rings;
  const rings = each.map((counters, index) => ({
    indexes: ringIndexes(pages[index]!),
    queue: counters,
    statistics: linuxStatistics(counters),
  }));
  return {
    store: { size, readOnly, block, discard, shareable, depth, engine },
    negotiated: backend.negotiated,
    queue,
    statistics: queue && linuxStatistics(queue),
    rings,
    grants: { granted, mapped, maps, unmaps, copies },
    events: { sent, delivered },
  };
}
