/** Frontend, ring, backend and file: a load in the process that has the frontend. Which of its threads has the backend is
 * part of what is measured. */
import { Machine } from "../../src/index.ts";
import type { Link } from "../../src/machine/attached-disk.ts";
import { serveMeasurements } from "../harness/child.ts";
import { Load, type Workload } from "../harness/load.ts";
import { DATA_BYTES } from "../harness/scratch.ts";

export interface PipelineOptions {
  readonly file: string;
  /** O_DIRECT. */
  readonly direct: boolean;
  readonly link: Link;
  readonly workload: Workload;
}

await serveMeasurements(async ({ file, direct, link, workload }: PipelineOptions) => {
  await using undo = new AsyncDisposableStack();
  const machine = undo.use(await Machine.start());
  const parameters = { file, cache: direct ? "none" : "writeback" };
  const disk = undo.use(
    await machine.attach({ driver: "file", parameters, filters: [] }, { vdev: "xvda", link }),
  );
  const load = undo.use(new Load(disk.frontend, machine.reactor, workload, DATA_BYTES));
  const ends = undo.move();
  return {
    async measure(seconds) {
      const rate = await load.run(seconds);
      load.verify(file);
      return rate;
    },
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
});
