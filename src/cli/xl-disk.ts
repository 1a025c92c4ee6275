/**
 * xl's DISKSPEC (xl-disk-configuration(5); libxlu_disk_l.l is what xl itself reads it with): words between commas, each a
 * `key=value`, a flag or the next of `target, format, vdev, access`; `target=` takes the rest of the text.
 *
 * Invariant: what is parsed here xl parses too, to the same disk. We are stricter in one thing: whatever is given twice
 * is a mistake, as the manual page says. What the words mean for us is decided elsewhere (attach-spec.ts).
 */
import { didYouMean } from "../util/nearest.ts";
import { UsageError } from "./errors.ts";

const formats = ["raw", "qcow", "qcow2", "vhd", "qed"] as const;
const backendTypes = ["phy", "qdisk", "tap", "standalone"] as const;

export interface XlDisk {
  /** undefined only for a cdrom drive without a disk. */
  readonly target: string | undefined;
  /** undefined where none was given, which xl takes for raw. */
  readonly format: (typeof formats)[number] | undefined;
  /** As typed: xvda, hdc, 51712. */
  readonly vdev: string;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  /** The driver domain, by name or domid. */
  readonly backend: string | undefined;
  readonly backendType: (typeof backendTypes)[number] | undefined;
  readonly script: string | undefined;
  readonly directIoSafe: boolean;
  readonly discard: boolean | undefined;
  readonly trusted: boolean | undefined;
}

/** Parameters that are values, with ours for each; target is not among them, since it takes the rest. */
const keys = ["format", "vdev", "access", "devtype", "backend", "backendtype", "script"] as const;
type Key = (typeof keys)[number] | "target" | "discard" | "trusted" | "direct-io-safe";

/** Flags, and the parameter that each sets. */
const flags: ReadonlyMap<string, readonly [Key, string]> = new Map<string, readonly [Key, string]>([
  ["cdrom", ["devtype", "cdrom"]],
  ["direct-io-safe", ["direct-io-safe", "1"]],
  ["discard", ["discard", "1"]],
  ["no-discard", ["discard", "0"]],
  ["trusted", ["trusted", "1"]],
  ["untrusted", ["trusted", "0"]],
]);

const REPLICATION = "is of COLO, the replication of whole guests, which vbdkit does not do";
/** What else xl knows, and why we refuse it. */
const refusals: ReadonlyMap<string, string> = new Map([
  ...["colo", "no-colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"].map(
    (name): [string, string] => [name, REPLICATION],
  ),
  ["grant_usage", "is of virtio disks, which vbdkit does not serve"],
]);

/** Prefixes that xl 4.1 wanted: a format, a script, or nothing at all. */
const PREFIX = /^(?:(raw|qcow2?|vhd)|(iscsi|e?nbd|drbd)|tapdisk|tap2?|aio|ioemu|file|phy):/;
const UNKNOWN_PREFIX = /^([a-z][a-z0-9]*):(?:[^a-z0-9]|$)/;
/** For "nbd:" is a script to xl. */
const URI = /^nbds?:\/\/[^,]*/;
const LAST = "is written target=DISK, as the last parameter";

/** `components` are words of a command line, each parsed for itself, as xl block-attach does. Throws UsageError that
 * names the parameter. */
export function parseXlDisk(components: readonly string[]): XlDisk {
  const parser = new Parser();
  for (const component of components) parser.component(component);
  return parser.disk();
}

/** The text that is parsed to this disk, every value by its name. */
export function formatXlDisk(disk: XlDisk): string {
  const { target, discard, trusted } = disk;
  const words = [
    `vdev=${disk.vdev}`,
    ...(disk.format === undefined ? [] : [`format=${disk.format}`]),
    `access=${disk.readOnly ? "ro" : "rw"}`,
    ...(disk.cdrom ? ["cdrom"] : []),
    ...(disk.backend === undefined ? [] : [`backend=${disk.backend}`]),
    ...(disk.backendType === undefined ? [] : [`backendtype=${disk.backendType}`]),
    ...(disk.script === undefined ? [] : [`script=${disk.script}`]),
    ...(disk.directIoSafe ? ["direct-io-safe"] : []),
    ...(discard === undefined ? [] : [discard ? "discard" : "no-discard"]),
    ...(trusted === undefined ? [] : [trusted ? "trusted" : "untrusted"]),
    // A comma at the very end is taken for one more separator.
    ...(target === undefined ? [] : [`target=${target}${target.endsWith(",") ? "," : ""}`]),
  ];
  return words.join(",");
}

class Parser {
  /** What was given, positional or by name; empty for a default. */
  readonly #values = new Map<Key, string>();
  #accessByPosition = false;
  #prefixed = false;
  /** `,hdc:cdrom,r`: xend's drive without a disk. */
  #empty = false;

  component(text: string): void {
    if (/[\n\0]/.test(text)) throw new UsageError("a disk is one line of text");
    let rest = text;
    for (;;) {
      rest = rest.replace(/^[ \t]+/, "");
      if (rest === "") return;
      if (rest.startsWith("target=")) {
        this.#set("target", rest.slice("target=".length).replace(/,$/, ""));
        return;
      }
      const uri = URI.exec(rest)?.[0];
      if (uri !== undefined) throw new UsageError(`${uri}: a URI ${LAST}: target=${uri}`);
      const prefix = PREFIX.exec(rest);
      if (prefix !== null) {
        this.#prefix(prefix);
        rest = rest.slice(prefix[0].length);
        continue;
      }
      const comma = rest.indexOf(",");
      const word = comma < 0 ? rest : rest.slice(0, comma);
      const unknown = UNKNOWN_PREFIX.exec(rest);
      if (unknown !== null) {
        const what = `"${unknown[1]}:" is no prefix that xl knows`;
        throw new UsageError(`${what}; a disk with ":" in its name ${LAST}`);
      }
      this.#word(word);
      rest = comma < 0 ? "" : rest.slice(comma + 1);
    }
  }

  disk(): XlDisk {
    const value = (key: Key) => this.#values.get(key) || undefined;
    const vdev = value("vdev");
    if (vdev === undefined) {
      // The commonest slip: what follows target= belongs to it.
      const last = /,\s*vdev=/.test(value("target") ?? "")
        ? "; target= takes the rest of the text: write it last"
        : "";
      throw new UsageError(`a disk needs a vdev: write vdev=xvda, or DISK,,xvda${last}`);
    }
    const cdrom = value("devtype") === "cdrom";
    const target = value("target");
    if (target === undefined && !cdrom) {
      throw new UsageError("a disk needs a target: write target=DISK as the last of it");
    }
    if (target !== undefined && this.#empty) {
      throw new UsageError(`target=${target}: the drive is empty, as ",${vdev}:..." has it`);
    }
    const flag = (key: Key) => {
      const given = value(key);
      return given === undefined ? undefined : given === "1";
    };
    return {
      target,
      format: value("format") as XlDisk["format"],
      vdev,
      readOnly: cdrom || /^ro?$/.test(value("access") ?? "rw"),
      cdrom,
      backend: value("backend"),
      backendType: value("backendtype") as XlDisk["backendType"],
      script: value("script"),
      directIoSafe: flag("direct-io-safe") === true,
      discard: flag("discard"),
      trusted: flag("trusted"),
    };
  }

  #prefix([text, format, script]: RegExpExecArray): void {
    this.#prefixed = true;
    if (format !== undefined) this.#set("format", format);
    else if (script !== undefined) this.#set("script", `block-${text.slice(0, -1)}`);
  }

  #word(word: string): void {
    const flag = flags.get(word);
    const equals = word.indexOf("=");
    const key = equals < 0 ? word : word.slice(0, equals);
    const refusal = refusals.get(key);
    if (refusal !== undefined) throw new UsageError(`${key} ${refusal}`);
    if (flag !== undefined) this.#set(...flag);
    else if (equals < 0) this.#positional(word);
    else this.#named(key, word.slice(equals + 1));
  }

  #named(key: string, value: string): void {
    const known = keys.find((name) => name === key);
    if (known !== undefined) this.#set(known, value);
    else if (key === "specification") {
      if (value === "xen") return;
      throw new UsageError(`specification=${value}: vbdkit's disks are specification=xen`);
    } else if (/^[a-z][-a-z0-9_]*$/i.test(key)) {
      const hint = didYouMean(key, [...keys, "target"]);
      throw new UsageError(
        `${key}= is no parameter of a disk${hint}; those of a driver or filter are written in target=, last`,
      );
    } else {
      throw new UsageError(`"${key}=" is no parameter; a disk with "=" in its name ${LAST}`);
    }
  }

  #positional(word: string): void {
    const values = this.#values;
    const noFormat = !this.#prefixed && !this.#empty && !values.has("format");
    if (!values.has("target")) this.#set("target", word);
    else if (noFormat && values.get("target") === "" && word.includes(":")) {
      this.#empty = true;
      this.#vdev(word);
    } else if (noFormat) this.#set("format", word);
    else if (!values.has("vdev")) this.#vdev(word);
    else if (this.#accessByPosition) {
      throw new UsageError(`"${word}" is one too many: a disk is TARGET,FORMAT,VDEV,ACCESS`);
    } else {
      this.#accessByPosition = true;
      this.#set("access", word);
    }
  }

  /** xvda, or the old hdc:cdrom. */
  #vdev(word: string): void {
    const colon = word.lastIndexOf(":");
    this.#set("vdev", colon < 0 ? word : word.slice(0, colon));
    if (colon >= 0) this.#set("devtype", word.slice(colon + 1));
  }

  #set(key: Key, value: string): void {
    const before = this.#values.get(key);
    // What is empty is a default, which may be given after all; an empty format is raw.
    if (before !== undefined && (before !== "" || key === "format")) {
      throw new UsageError(`${key}= is given twice: ${before || "raw"} and ${value}`);
    }
    if (key === "format" && this.#empty) {
      throw new UsageError(`format=${value}: the drive is empty, and has no format`);
    }
    const allowed = choices[key];
    if (allowed !== undefined && !(value === "" && emptyIsDefault.has(key))) {
      if (!allowed.includes(value)) {
        const hint = didYouMean(value, allowed);
        throw new UsageError(`${key}=${value}: write ${allowed.join(", ")}${hint}`);
      }
    }
    this.#values.set(key, value);
  }
}

const choices: Readonly<Partial<Record<Key, readonly string[]>>> = {
  format: formats,
  access: ["r", "ro", "w", "rw"],
  devtype: ["cdrom", "disk"],
  backendtype: backendTypes,
};
const emptyIsDefault: ReadonlySet<Key> = new Set<Key>(["format", "access"]);
