/** Parameters of drivers and filters, declared once: parsing, help and documentation read the same table. */
import { didYouMean } from "../util/nearest.ts";
import { StoreError } from "./errors.ts";

export interface Parameter<T> {
  /** One line, a sentence. */
  readonly help: string;
  /** What the value looks like in help: `SIZE`, `FILE`, `TIME`, `on|off`. */
  readonly value: string;
  /** Absent: the parameter is required. */
  readonly default?: T;
  /** May be left out without a default: its field is undefined then. */
  readonly optional?: boolean;
  /** Throws an Error whose message completes the sentence "NAME=TEXT: ...". */
  parse(text: string): T;
}
export type ParameterTable<O> = { readonly [K in keyof O]-?: Parameter<Exclude<O[K], undefined>> };

/** Parses text parameters against a table. Throws StoreError("EINVAL") that names the parameter and, for an unknown
 * one, the nearest known. `owner` is the driver or filter, for the message. */
export function parseParameters<O>(
  owner: string,
  table: ParameterTable<O>,
  texts: Readonly<Record<string, string>>,
): O {
  const known = table as Record<string, Parameter<unknown>>;
  for (const name of Object.keys(texts)) {
    if (!Object.hasOwn(known, name)) {
      const names = Object.keys(known);
      const list = names.length === 0 ? "it takes none" : `it takes ${names.join(", ")}`;
      throw new StoreError(
        "EINVAL",
        `${owner} has no parameter "${name}": ${list}${didYouMean(name, names)}`,
      );
    }
  }
  const options: Record<string, unknown> = {};
  for (const [name, parameter] of Object.entries(known)) {
    const text = Object.hasOwn(texts, name) ? texts[name] : undefined;
    if (text !== undefined) {
      try {
        options[name] = parameter.parse(text);
      } catch (error) {
        throw new StoreError(
          "EINVAL",
          `${owner}: ${name}=${text}: ${error instanceof Error ? error.message : String(error)}`,
          { cause: error },
        );
      }
    } else if ("default" in parameter) options[name] = parameter.default;
    else if (parameter.optional !== true) {
      throw new StoreError(
        "EINVAL",
        `${owner} needs ${name}=${parameter.value}: ${parameter.help}`,
      );
    }
  }
  return options as O;
}
