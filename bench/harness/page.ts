/** Puts the tables of a run in their places on a page, so that no figure on it is copied by hand. */
import { readFileSync, writeFileSync } from "node:fs";
import type { Group } from "./group.ts";
import type { RowResult } from "./rounds.ts";
import { markdownTable } from "./table.ts";

/** Replaces what stands between `<!-- bench GROUP -->` and `<!-- end -->`. Throws where the page has no such place. */
export function writeTables(
  page: string,
  all: readonly { readonly group: Group; readonly results: readonly RowResult[] }[],
  about: string,
): void {
  let text = readFileSync(page, "utf8");
  for (const { group, results } of all) {
    const begin = `<!-- bench ${group.name} -->`;
    const from = text.indexOf(begin);
    const to = text.indexOf("<!-- end -->", from);
    if (from < 0 || to < 0) throw new Error(`${page} has no place for the table of ${group.name}`);
    const table = `${begin}\n${markdownTable(group, results)}\n\n${about}.\n`;
    text = text.slice(0, from) + table + text.slice(to);
  }
  writeFileSync(page, text);
}
