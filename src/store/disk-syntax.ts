/**
 * DISK as a person types it (nbdkit's command line): `[DRIVER] NAME [key=value ...]` with filters before it.
 *
 * Invariant: the name decides, never the content of what it names. An image that a guest can write must not choose the
 * driver that reads it (QEMU's format probing, CVE-2008-2004).
 */
import { didYouMean } from "../util/nearest.ts";
import { quote } from "../util/quote.ts";
import type { StoreSpec } from "./block-store.ts";
import { StoreError } from "./errors.ts";

/** What the syntax has to know of drivers and filters. */
interface Vocabulary {
  readonly drivers: ReadonlyMap<string, { positional?: string; parameters: object }>;
  readonly filters: ReadonlyMap<string, { parameters: object }>;
}

/** Image formats by the suffix of the file; each is the name its filter has or will have. */
const formatOfSuffix: Readonly<Record<string, string>> = {
  ".qcow2": "qcow2",
  ".qcow": "qcow",
  ".vhd": "vhd",
  ".vhdx": "vhdx",
  ".vmdk": "vmdk",
  ".vdi": "vdi",
};

const PARAMETER = /^([a-z][a-z0-9-]*)=(.*)$/s;
const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i;

/** DISK in one string. It is cut at spaces where its first word is a driver or parameters follow; else it is a name. */
export function parseDiskText(
  text: string,
  filterNames: readonly string[],
  vocabulary: Vocabulary,
): StoreSpec {
  const words = text.split(/\s+/).filter((word) => word !== "");
  const several =
    vocabulary.drivers.has(words[0] ?? "") || (words[1] !== undefined && PARAMETER.test(words[1]));
  return parseDiskWords(several ? words : [text], filterNames, vocabulary);
}

export function parseDiskWords(
  words: readonly string[],
  filterNames: readonly string[],
  vocabulary: Vocabulary,
): StoreSpec {
  const { drivers, filters } = vocabulary;
  for (const name of filterNames) {
    if (!filters.has(name)) {
      throw invalid(`there is no filter "${name}"${didYouMean(name, filters.keys())}`);
    }
  }
  const first = words[0];
  if (first === undefined || first === "") throw invalid("a disk needs a name");
  const explicit = drivers.has(first);
  const { bare, pairs } = sort(explicit ? words.slice(1) : words);
  if (!explicit && bare.length > 1) {
    const hint = didYouMean(first, drivers.keys());
    if (hint !== "") throw invalid(`there is no driver "${first}"${hint}`);
    throw invalid(`a disk has one name, and "${bare[0]}" is no driver: what is "${bare[1]}"?`);
  }
  if (!explicit && bare.length === 0) {
    throw invalid(`"${words.join(" ")}" has parameters, but neither a driver nor a name`);
  }
  const driver = explicit ? first : driverOf(bare[0]!, filterNames);
  const { positional, parameters: declared } = drivers.get(driver)!;
  if (bare.length > 0) {
    if (positional === undefined || bare.length > 1) {
      throw invalid(`${driver}: what is "${bare.at(-1)}"? Parameters are written key=value`);
    }
    addPair(pairs, positional, bare[0]!);
  }
  const shares = distribute(pairs, driver, declared, filterNames, filters);
  return {
    driver,
    parameters: shares.parameters,
    filters: filterNames.map((name, index) => ({ name, parameters: shares.filters[index]! })),
    ...(driver === "file" && !explicit ? { guessed: true } : {}),
  };
}

function sort(words: readonly string[]): { bare: string[]; pairs: Map<string, string> } {
  const bare: string[] = [];
  const pairs = new Map<string, string>();
  for (const word of words) {
    const match = PARAMETER.exec(word);
    if (match === null) bare.push(word);
    else addPair(pairs, match[1]!, match[2]!);
  }
  return { bare, pairs };
}

function addPair(pairs: Map<string, string>, key: string, value: string): void {
  if (pairs.has(key)) throw invalid(`${key}= is given twice: ${pairs.get(key)} and ${value}`);
  pairs.set(key, value);
}

/** The driver for a bare name. */
function driverOf(name: string, filterNames: readonly string[]): string {
  const scheme = SCHEME.exec(name)?.[1]?.toLowerCase();
  if (scheme !== undefined) {
    if (/^nbds?(\+[a-z]+)?$/.test(scheme)) return "nbd";
    throw invalid(`no driver opens ${scheme}:// (${name}); nbd://HOST/EXPORT is an NBD server`);
  }
  const suffix = /\.[a-z0-9]+$/i.exec(name)?.[0].toLowerCase() ?? "";
  const format = formatOfSuffix[suffix];
  if (format !== undefined && !filterNames.includes(format))
    throw formatRefusal(name, format, true);
  return "file";
}

/** Format names that QEMU spells in its own way. */
const qemuNames: Readonly<Record<string, string>> = { vhd: "vpc" };

/** The error for an image whose format we would serve as raw bytes. `mayBeRaw` where its bytes would make a disk; `use` is
 * what a person does with the URI of the server. */
export function formatRefusal(
  name: string,
  format: string,
  mayBeRaw: boolean,
  use = (uri: string) => `vbdkit serve '${uri}'`,
): StoreError {
  const server = `qemu-nbd -t -f ${qemuNames[format] ?? format} -k /tmp/disk.sock ${quote(name)}`;
  const raw = `; if it is a raw disk all the same, write: file ${quote(name)}`;
  return invalid(
    `${name} is an image in ${format} format, which needs another server: run ${server}, ` +
      `then ${use("nbd+unix:///?socket=/tmp/disk.sock")}${mayBeRaw ? raw : ""}`,
  );
}

/** Each parameter to the filter that declares it, or else to the driver. */
function distribute(
  pairs: ReadonlyMap<string, string>,
  driver: string,
  declared: object,
  filterNames: readonly string[],
  known: Vocabulary["filters"],
): { parameters: Record<string, string>; filters: Record<string, string>[] } {
  const parameters: Record<string, string> = {};
  const filters = filterNames.map((): Record<string, string> => ({}));
  for (const [key, value] of pairs) {
    const takers = filterNames.flatMap((name, index) =>
      Object.hasOwn(known.get(name)!.parameters, key) ? [index] : [],
    );
    const names = takers.map((index) => `filter ${filterNames[index]}`);
    if (takers.length > 0 && Object.hasOwn(declared, key)) names.push(`driver ${driver}`);
    if (names.length > 1) {
      throw invalid(
        `${key}= is ambiguous: ${names.join(" and ")} each have a parameter of that name`,
      );
    }
    if (takers.length === 0) parameters[key] = value;
    else filters[takers[0]!]![key] = value;
  }
  return { parameters, filters };
}

function invalid(message: string): StoreError {
  return new StoreError("EINVAL", message);
}
