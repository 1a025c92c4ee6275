/** A file that is there whole or not at all: written under another name, synced, and renamed. */
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Sink } from "./save.ts";

let files = 0;

/** Rejects with what `write` or the file system says; nothing is left then, and what was at `path` is as it was. Only the
 * user may read it: it has the memory of a guest. */
export async function writeWhole(
  path: string,
  write: (sink: Sink) => Promise<void>,
): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}-${++files}.tmp`);
  const file = await open(temporary, "wx", 0o600);
  try {
    try {
      await write(async (bytes) => await file.writeFile(bytes));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await using directory = await open(folder, "r");
  await directory.sync();
}
