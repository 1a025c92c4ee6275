/** Makes a raw image of holes. Invariant: a file that is there is never touched. */
import { open } from "node:fs/promises";

/** Returns whether the file was made: false where there is one already. */
export async function makeSparse(path: string, bytes: number): Promise<boolean> {
  try {
    await using file = await open(path, "wx", 0o644);
    await file.truncate(bytes);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}
