/** The limit of gntalloc, a parameter of its module, for all processes of the domain together. */
import { readFileSync } from "node:fs";

const PARAMETER = "/sys/module/xen_gntalloc/parameters/limit";
/** gntalloc.c's own default. */
const DEFAULT_LIMIT = 1024;
/** Addresses are set aside for each page: no more than 256 MiB of them. */
const MAX_LIMIT = 65536;

export function readGrantLimit(): number {
  let text = "";
  try {
    text = readFileSync(PARAMETER, "utf8").trim();
  } catch {
    // The module tells no limit, or is not loaded yet.
  }
  const limit = /^\d{1,9}$/.test(text) ? Number(text) : DEFAULT_LIMIT;
  return Math.min(limit, MAX_LIMIT);
}
