/** A backend, ours or QEMU's, with the frontend in C as a process beside it, whose figures it passes on. Ours runs in this
 * process; of QEMU's only the machine does, which has nothing to do while a load runs. */
import { GUEST, QemuWorld } from "../../test/support/qemu-world.ts";
import { RingLoad, RingLoadBackend, type RingLoadVbd } from "../../test/support/ring-load.ts";
import { serveMeasurements } from "../harness/child.ts";
import type { RingWorkload } from "./backend.ts";

export interface BackendOptions {
  readonly whose: "ours" | "qemu";
  readonly file: string;
  /** The frontend in C. */
  readonly program: string;
  readonly workload: RingWorkload;
}

await serveMeasurements(async ({ whose, file, program, workload }: BackendOptions) => {
  const { operation, pages, depth } = workload;
  await using undo = new AsyncDisposableStack();
  const vbd = whose === "ours" ? await ourVbd(file, undo) : await qemuVbd(file, undo);
  const frontend = undo.use(await RingLoad.start(program, vbd));
  const ends = undo.move();
  return {
    measure: async (seconds) => (await frontend.load(operation, pages, depth, seconds)).iops,
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
});

async function ourVbd(file: string, ends: AsyncDisposableStack): Promise<RingLoadVbd> {
  return ends.use(
    await RingLoadBackend.open({ driver: "file", parameters: { file }, filters: [] }),
  );
}

async function qemuVbd(file: string, ends: AsyncDisposableStack): Promise<RingLoadVbd> {
  const world = ends.use(await QemuWorld.start("process"));
  const { frontend } = await world.plug(file);
  return { directory: world.machine.directory, domid: GUEST, frontendPath: frontend };
}
