/** Measures one cost, in a process that has done nothing else. */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { serveMeasurements } from "../harness/child.ts";
import type { Load } from "../harness/load.ts";
import type { Cost } from "./costs.ts";
import { Disks } from "./disks.ts";
import { ringCost } from "./ring-cost.ts";

/** What measures, and what it stands on. */
interface Measured extends AsyncDisposable {
  measure(seconds: number): Promise<number>;
}

await serveMeasurements(async (cost: Cost): Promise<Measured> => {
  switch (cost.what) {
    case "ring":
      return { measure: async (seconds) => ringCost(seconds), async [Symbol.asyncDispose]() {} };
    case "connect":
      return {
        async measure() {
          await using disks = await Disks.attach(cost);
          return disks.milliseconds;
        },
        async [Symbol.asyncDispose]() {},
      };
    case "idle-memory":
      return await idleMemoryOf(cost);
    default:
      return await onDisks(cost);
  }
});

async function onDisks(cost: Cost): Promise<Measured> {
  const disks = await Disks.attach(cost);
  const loads = await disks.loads(cost.depth ?? 1);
  const measures: Partial<Record<Cost["what"], (seconds: number) => Promise<number>>> = {
    busy: (seconds) => runAll(loads, seconds),
    requests: async (seconds) => 1e9 / (await runAll(loads, seconds)),
    events: (seconds) => eventsOfRequest(disks, loads, seconds),
    "idle-wake-ups": idleWakeUps,
  };
  return {
    measure: measures[cost.what]!,
    [Symbol.asyncDispose]: () => disks[Symbol.asyncDispose](),
  };
}

async function idleMemoryOf(cost: Cost): Promise<Measured> {
  const kept = new AsyncDisposableStack();
  return {
    measure: () => idleMemory(cost, kept),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

/** Requests of a second, of all disks together. */
async function runAll(loads: readonly Load[], seconds: number): Promise<number> {
  const rates = await Promise.all(loads.map((load) => load.run(seconds)));
  for (const load of loads) load.verify();
  return rates.reduce((sum, rate) => sum + rate, 0);
}

async function eventsOfRequest(
  { disks }: Disks,
  loads: readonly Load[],
  seconds: number,
): Promise<number> {
  const count = async () => {
    const { frontend, backend } = await disks[0]!.information();
    return { events: frontend.events.sent + backend.events.sent, requests: frontend.requests };
  };
  const before = await count();
  await runAll(loads, seconds);
  const after = await count();
  return (after.events - before.events) / (after.requests - before.requests);
}

/** Times that this thread was woken, but for the one that ends the wait. */
async function idleWakeUps(seconds: number): Promise<number> {
  // Whatever connecting has left to be done is done by then.
  await sleep(500);
  const before = switches();
  await sleep(seconds * 1000);
  return Math.max(0, switches() - before - 1) / seconds;
}

/** Times that this thread has waited for something (proc_pid_status(5)). */
function switches(): number {
  const status = readFileSync(`/proc/self/task/${process.pid}/status`, "utf8");
  return Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(status)![1]);
}

/** KiB of each disk beyond the first, with its share of a machine and of guests. What was measured before is kept, or its
 * memory would be used again. */
async function idleMemory({ vbds = 1 }: Cost, kept: AsyncDisposableStack): Promise<number> {
  const attach = async (count: number) => {
    kept.use(await Disks.attach({ what: "idle-memory", vbds: count }, "null"));
    collectGarbage();
    return process.memoryUsage.rss() / 1024;
  };
  const one = await attach(1);
  const all = await attach(vbds);
  return (all - one) / (vbds - 1);
}

function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  collect();
}
