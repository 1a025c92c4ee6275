/** Disks that are opened by a process that may be in another folder than the person who named them. */
import { resolve } from "node:path";
import { formatNbdUri, parseNbdUri } from "../nbd/uri.ts";
import type { StoreSpec } from "./block-store.ts";
import type { Parameter } from "./parameters.ts";
import { drivers, filters } from "./registry.ts";

type Texts = Readonly<Record<string, string>>;
type Table = Readonly<Record<string, Parameter<unknown>>>;

/** The same disk, with every path in it resolved against the folder of this process: parameters whose value is a FILE, the
 * socket of an NBD URI, and both of these in a DISK written as DRIVER,key=value. */
export function absoluteSpec(spec: StoreSpec): StoreSpec {
  return {
    ...spec,
    parameters: absoluteTexts(spec.parameters, drivers.get(spec.driver)?.parameters),
    filters: spec.filters.map(({ name, parameters }) => ({
      name,
      parameters: absoluteTexts(parameters, filters.get(name)?.parameters),
    })),
  };
}

function absoluteTexts(texts: Texts, table: Table | undefined): Record<string, string> {
  return Object.fromEntries(
    Object.entries(texts).map(([name, text]) => {
      const form = table !== undefined && Object.hasOwn(table, name) ? table[name]!.value : "";
      return [name, forms[form]?.(text) ?? text];
    }),
  );
}

const forms: Readonly<Record<string, (text: string) => string>> = {
  FILE: (path) => resolve(path),
  URI(text) {
    try {
      const { address, exportName } = parseNbdUri(text);
      if (!("path" in address)) return text;
      return formatNbdUri({ address: { path: resolve(address.path) }, exportName });
    } catch {
      // Whoever opens it says what is wrong with it.
      return text;
    }
  },
  DISK(text) {
    const [driver = "", ...pairs] = text.split(",");
    const texts = pairs.map((pair) => {
      const equals = pair.indexOf("=");
      return [pair.slice(0, equals), pair.slice(equals + 1)] as const;
    });
    const table = drivers.get(driver)?.parameters;
    if (table === undefined || pairs.some((pair) => !pair.includes("="))) return text;
    const absolute = Object.entries(absoluteTexts(Object.fromEntries(texts), table));
    return [driver, ...absolute.map((pair) => pair.join("="))].join(",");
  },
};
