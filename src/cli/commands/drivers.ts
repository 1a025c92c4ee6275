/** `vbdkit drivers` and `vbdkit filters`: what there is, and the parameters of one. */
import { Command } from "commander";
import { didYouMean } from "../../util/nearest.ts";
import type { Catalogue, CatalogueEntry } from "../catalogue.ts";
import { UsageError } from "../errors.ts";
import { paint, print, printJson, table } from "../output.ts";

type Kind = "driver" | "filter";

export function driversCommand(): Command {
  return listCommand("driver", "where bytes come from: the drivers, or the parameters of one");
}

export function filtersCommand(): Command {
  return listCommand(
    "filter",
    "what may stand before a disk: the filters, or the parameters of one",
  );
}

function listCommand(kind: Kind, description: string): Command {
  return new Command(`${kind}s`)
    .description(description)
    .argument("[NAME]", `a ${kind}`)
    .option("--json", "print JSON")
    .action(async (name: string | undefined, options: { json?: true }) => {
      const { catalogue } = await import("../catalogue.ts");
      const known = catalogue();
      const shown = name === undefined ? known[`${kind}s`] : [pick(kind, known, name)];
      if (options.json) printJson(name === undefined ? shown : shown[0]);
      else if (name === undefined) {
        print(table(shown.map((entry) => [entry.name, entry.summary])));
        print(`\nvbdkit ${kind}s NAME tells the parameters of one.`);
      } else print(describeEntry(kind, shown[0]!));
    });
}

function pick(kind: Kind, known: Catalogue, name: string): CatalogueEntry {
  const entries = known[`${kind}s`];
  const found = entries.find((entry) => entry.name === name);
  if (found !== undefined) return found;
  const other = kind === "driver" ? "filter" : "driver";
  const isOther = known[`${other}s`].some((entry) => entry.name === name);
  const hint = isOther
    ? `; ${name} is a ${other}: vbdkit ${other}s ${name}`
    : didYouMean(
        name,
        entries.map((entry) => entry.name),
      );
  throw new UsageError(`there is no ${kind} "${name}"${hint}`);
}

/** A page about one driver or filter. */
export function describeEntry(kind: Kind, entry: CatalogueEntry): string {
  const positional = entry.positional;
  const required = entry.parameters.filter((parameter) => parameter.required);
  const words = required
    .map((p) => (p.name === positional ? p.value : `${p.name}=${p.value}`))
    .join(" ");
  const start = kind === "driver" ? `serve ${entry.name}` : `serve --filter ${entry.name} DISK`;
  const usage = ["vbdkit", start, words, "[key=value ...]"].filter((part) => part !== "").join(" ");
  const rows = entry.parameters.map((parameter) => [
    `${parameter.name}=${parameter.value}`,
    `${parameter.help}${note(parameter)}`,
  ]);
  const parts = [`${paint("bold", entry.name)}: ${entry.summary}`, "", `  ${usage}`];
  if (positional !== undefined) parts.push("", `A bare word is ${positional}=.`);
  parts.push("", rows.length === 0 ? "It takes no parameters." : table(rows, "  "));
  return parts.join("\n");
}

function note(parameter: CatalogueEntry["parameters"][number]): string {
  if (parameter.required) return " Required.";
  return parameter.default === undefined ? "" : ` Default ${parameter.default}.`;
}
