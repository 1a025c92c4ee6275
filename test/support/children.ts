/** Child processes, as the kernel lists them. */
import { existsSync, readdirSync, readFileSync } from "node:fs";

export function children(pid: number = process.pid): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((task) => {
    const path = `/proc/${pid}/task/${task}/children`;
    return existsSync(path)
      ? readFileSync(path, "utf8").split(" ").filter(Boolean).map(Number)
      : [];
  });
}
