/** A file that is there whole or not at all: written under another name, synced, and renamed. */
import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Sink } from "./save.ts";

/** Rejects with what `write` or the file system says; nothing is left then, and what was at `path` is as it was, unless
 * the folder itself could not be synced. Only the user may read it: it has the memory of a guest. A process that is killed
 * in the middle leaves `.vbdkit-save-*.tmp`. */
export async function writeWhole(
  path: string,
  write: (sink: Sink) => Promise<void>,
): Promise<void> {
  const folder = dirname(path);
  // Opened before anything is done that could not be taken back.
  await using directory = await open(folder, "r");
  // Numbers of processes come again; what another left is not to be in the way.
  const temporary = join(folder, `.vbdkit-save-${randomUUID()}.tmp`);
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
  try {
    await directory.sync();
  } catch (error) {
    // The guest goes on: it must not be restored, too.
    await rm(path, { force: true });
    throw error;
  }
}
