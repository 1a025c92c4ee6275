/** Loaded into each test process: keeps what tests say that they show (src/testing/shows.ts), a line of JSON each, in
 * the folder that VBDKIT_SHOWN names. */
import { subscribe } from "node:diagnostics_channel";
import { appendFileSync } from "node:fs";
import { join } from "node:path";

const folder = process.env.VBDKIT_SHOWN;
if (folder !== undefined) {
  const file = join(folder, `${process.pid}.jsonl`);
  subscribe("vbdkit:shows", (message) => appendFileSync(file, `${JSON.stringify(message)}\n`));
}
