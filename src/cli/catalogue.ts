/** The drivers and filters there are, as plain data: for lists, help, completion and JSON. */
import { type AnyDriver, type AnyFilter, drivers, filters } from "../store/registry.ts";
import { formatSize } from "../util/size.ts";

export interface CatalogueEntry {
  readonly name: string;
  readonly summary: string;
  /** The parameter that a bare word is. */
  readonly positional: string | undefined;
  readonly parameters: readonly {
    readonly name: string;
    /** What the value looks like. */
    readonly value: string;
    readonly help: string;
    readonly required: boolean;
    readonly default: string | undefined;
  }[];
}

export interface Catalogue {
  readonly drivers: readonly CatalogueEntry[];
  readonly filters: readonly CatalogueEntry[];
}

export function catalogue(): Catalogue {
  return {
    drivers: [...drivers.values()].map(entryOf),
    filters: [...filters.values()].map(entryOf),
  };
}

export function driverNames(): ReadonlySet<string> {
  return new Set(drivers.keys());
}

function entryOf(described: AnyDriver | AnyFilter): CatalogueEntry {
  return {
    name: described.name,
    summary: described.summary,
    positional: "positional" in described ? described.positional : undefined,
    parameters: Object.entries(described.parameters).map(([key, parameter]) => ({
      name: key,
      value: parameter.value,
      help: parameter.help,
      required: parameter.optional !== true && !("default" in parameter),
      default: textOf(parameter.default, parameter.value),
    })),
  };
}

/** A default as one would type it. */
function textOf(value: unknown, form: string): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "boolean") return value ? "on" : "off";
  // "64 KiB" is read, 64K is typed.
  if (form === "SIZE") return formatSize(Number(value)).replace(/ (.?)i?B$/, "$1");
  return String(value);
}
