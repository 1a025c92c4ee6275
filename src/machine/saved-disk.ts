/** A disk as a saved guest keeps it: what it was attached as, as JSON. What is read back is checked, field by field. */
import {
  type BackendLimits,
  defaultBackendLimits,
  defaultFrontendLimits,
  dialects,
  type FrontendLimits,
} from "../block/index.ts";
import type { EngineChoice, StoreSpec } from "../store/block-store.ts";
import { oneLine } from "../util/one-line.ts";
import { XenError } from "../xen/domain.ts";
import type { BackendKind } from "../xen/vbd.ts";
import type { AttachedDisk, Link } from "./attached-disk.ts";

export interface SavedDisk {
  /** xvda */
  readonly vdev: string;
  readonly link: Link;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly removable: boolean;
  readonly kind: BackendKind;
  readonly reconnect: boolean;
  readonly engine: EngineChoice;
  readonly frontend: Partial<FrontendLimits>;
  readonly backend: Partial<BackendLimits>;
  /** null where the disk had been given opened. */
  readonly spec: StoreSpec | null;
}

export function savedDisk({ vdev, spec, options }: AttachedDisk): SavedDisk {
  return {
    vdev,
    link: options.link ?? "thread",
    readOnly: options.readOnly === true,
    cdrom: options.cdrom === true,
    removable: options.removable === true,
    kind: options.kind ?? "vbd",
    reconnect: options.reconnect === true,
    engine: options.engine ?? "auto",
    frontend: options.frontend ?? {},
    backend: options.backend ?? {},
    spec: spec ?? null,
  };
}

const links: readonly unknown[] = ["thread", "worker", "process"] satisfies Link[];
const kinds: readonly unknown[] = ["vbd", "vbd3", "qdisk"] satisfies BackendKind[];
const engines: readonly unknown[] = ["auto", "io_uring", "pread", "libuv"] satisfies EngineChoice[];
const protocols: readonly unknown[] = [
  "x86_64-abi",
  "x86_32-abi",
  "native",
] satisfies FrontendLimits["protocol"][];
const sectorSizes: readonly unknown[] = [512, 4096] satisfies BackendLimits["sectorSize"][];

/** Throws XenError("EINVAL") with the field that is none. */
export function parseSavedDisk(value: unknown): SavedDisk {
  const { vdev, link, kind, engine, frontend, backend, spec, ...rest } = recordOf(value, "JSON");
  const { readOnly, cdrom, removable, reconnect, ...unknown } = rest;
  assertThat(isWord(vdev), "vdev");
  assertThat(links.includes(link), "link");
  assertThat(kinds.includes(kind), "kind");
  assertThat(engines.includes(engine), "engine");
  for (const [name, flag] of Object.entries({ readOnly, cdrom, removable, reconnect })) {
    assertThat(typeof flag === "boolean", name);
  }
  // It would be taken for an option of attach().
  for (const name of Object.keys(unknown)) assertThat(false, name);
  checkLimits(frontend, defaultFrontendLimits, "frontend");
  checkLimits(backend, defaultBackendLimits, "backend");
  if (spec !== null) checkSpec(spec);
  return value as SavedDisk;
}

function checkLimits(value: unknown, defaults: object, what: string): void {
  const known = defaults as Readonly<Record<string, unknown>>;
  for (const [name, limit] of Object.entries(recordOf(value, what))) {
    const field = `${what}.${name}`;
    assertThat(Object.hasOwn(known, name) && typeof limit === typeof known[name], field);
    if (typeof limit === "number") assertThat(Number.isSafeInteger(limit), field);
    if (name === "dialect") assertThat(Object.hasOwn(dialects, limit as string), field);
    if (name === "protocol") assertThat(protocols.includes(limit), field);
    if (name === "sectorSize") assertThat(sectorSizes.includes(limit), field);
  }
}

function checkSpec(value: unknown): void {
  const { driver, parameters, filters, guessed } = recordOf(value, "spec");
  assertThat(isWord(driver), "spec.driver");
  checkParameters(parameters, "spec.parameters");
  assertThat(Array.isArray(filters), "spec.filters");
  for (const filter of filters as unknown[]) {
    const { name, parameters: its } = recordOf(filter, "spec.filters");
    assertThat(isWord(name), "spec.filters.name");
    checkParameters(its, "spec.filters.parameters");
  }
  assertThat(guessed === undefined || typeof guessed === "boolean", "spec.guessed");
}

function checkParameters(value: unknown, what: string): void {
  for (const [name, text] of Object.entries(recordOf(value, what))) {
    assertThat(isWord(name) && typeof text === "string", what);
  }
}

/** What things are called, and what an error says of them. */
function isWord(value: unknown): boolean {
  return typeof value === "string" && /^[\w-]{1,64}$/.test(value);
}

function recordOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  assertThat(typeof value === "object" && value !== null && !Array.isArray(value), what);
  return value as Readonly<Record<string, unknown>>;
}

function assertThat(holds: boolean, what: string): void {
  if (holds) return;
  throw new XenError("EINVAL", `the saved guest has a disk that is none: ${oneLine(what)}`);
}
