/** The drivers and filters there are, as plain data: for lists, help, completion and JSON. */
import type { Parameter } from "../store/parameters.ts";
import { drivers, filters } from "../store/registry.ts";

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

/** What a driver or filter says of itself. */
interface Described {
  readonly name: string;
  readonly summary: string;
  readonly positional?: string;
  readonly parameters: object;
}

export function catalogue(): Catalogue {
  return {
    drivers: [...drivers.values()].map(entryOf),
    filters: [...filters.values()].map(entryOf),
  };
}

function entryOf(described: Described): CatalogueEntry {
  const { name, summary, positional } = described;
  const table = Object.entries(described.parameters as Record<string, Parameter<unknown>>);
  return {
    name,
    summary,
    positional,
    parameters: table.map(([key, parameter]) => ({
      name: key,
      value: parameter.value,
      help: parameter.help,
      required: parameter.optional !== true && !("default" in parameter),
      default: textOf(parameter.default),
    })),
  };
}

/** A default as one would type it. */
function textOf(value: unknown): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "boolean") return value ? "on" : "off";
  return String(value);
}
