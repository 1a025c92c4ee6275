/** What a server that is ended in a hurry would leave behind: its sockets and its folder, removed at the process's exit. */
import { existsSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";

export class Leftovers implements Disposable {
  readonly #sockets: string[] = [];
  /** A folder that is there already is not ours to remove. */
  readonly #keepFolder: boolean;
  #folder: string | undefined;
  readonly #remove = () => this.#removeAll();

  /** `wanted` is the folder that will be used, where it is named. */
  constructor(wanted: string | undefined) {
    this.#keepFolder = wanted !== undefined && existsSync(wanted);
    process.once("exit", this.#remove);
  }

  addFolder(path: string): void {
    this.#folder = path;
  }

  addSocket(path: string): void {
    this.#sockets.push(path);
  }

  #removeAll(): void {
    try {
      for (const path of this.#sockets) rmSync(path, { force: true });
      if (this.#folder === undefined) return;
      for (const name of readdirSync(this.#folder)) {
        // Those of process domains (docs/process-link.md).
        const path = join(this.#folder, name);
        if (/^domain-\d+$/.test(name)) rmSync(path, { recursive: true, force: true });
      }
      if (!this.#keepFolder) rmdirSync(this.#folder);
    } catch {
      // It has gone already, or somebody has put something in it, which is not ours to remove.
    }
  }

  /** Everything has been removed in good order. */
  [Symbol.dispose](): void {
    process.off("exit", this.#remove);
  }
}
