/**
 * What is asked of a server that is to attach a disk: plain data, made from the words of `vbdkit serve` or
 * `vbdkit attach`, which crosses the control socket. Whatever can be wrong with the words is found before it is sent.
 *
 * Invariant: paths in it are absolute: the server may be in another folder.
 */
import type { BackendLimits, FrontendLimits, Link } from "../index.ts";
import type { EngineChoice, StoreSpec } from "../store/block-store.ts";
import { unlockedSpec } from "../store/registry.ts";
import { UsageError } from "./errors.ts";
import { backendKnobs, frontendKnobs } from "./knobs.ts";
import type { DiskOptions, FrontendOptions } from "./options.ts";
import { printNote } from "./output.ts";

export interface AttachRequest extends AttachSettings {
  /** A guest by name or domid; null is the one that a server makes for disks that name none. */
  readonly domain: string | null;
  /** xvda, 51712 ... */
  readonly vdev: string;
  /** The disk as it was typed, for people. */
  readonly text: string;
  readonly spec: StoreSpec;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  /** The directory below backend/. */
  readonly kind: "vbd" | "vbd3";
  /** Name of the NBD export; null for DOMAIN/VDEV. */
  readonly exportName: string | null;
}

/** What the options say of both ends. */
export interface AttachSettings {
  readonly link: Link;
  readonly engine: EngineChoice;
  readonly backend: Partial<BackendLimits>;
  readonly frontend: Partial<FrontendLimits>;
}

/** Throws UsageError for a parameter that is none, and says on standard error which was brought into its range. */
export function settingsOf(options: DiskOptions): AttachSettings {
  const { maxPersistentGrants } = options;
  return {
    link: options.link,
    engine: options.engine,
    backend: {
      ...ringLimitsOf(options),
      ...defined({ maxPersistentGrants, discard: options.discard }),
      ...backendKnobs(options.backend ?? [], printNote),
    },
    frontend: frontendLimitsOf(options),
  };
}

/** As `settingsOf`, of a frontend alone. */
export function frontendLimitsOf(options: FrontendOptions): Partial<FrontendLimits> {
  return {
    ...ringLimitsOf(options),
    ...defined({ protocol: options.protocol }),
    ...frontendKnobs(options.frontend ?? [], printNote),
  };
}

/** What both ends bound. */
function ringLimitsOf({ maxRingPageOrder, maxIndirectSegments, persistent }: FrontendOptions) {
  return defined({ maxRingPageOrder, maxIndirectSegments, persistent });
}

/** A disk that others may write at the same time. Only a driver that locks keeps them out. */
export function unlocked(spec: StoreSpec): StoreSpec {
  const free = unlockedSpec(spec);
  if (free !== undefined) return free;
  throw new UsageError(`--shared: driver ${spec.driver} locks nothing that could be shared`);
}

/** Without the fields that are undefined: an option that was not given leaves the default of the library. */
function defined<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as never;
}

/** What came over a socket, where it has the shape of a request. Names, ranges and files are checked by whoever opens the
 * disk. */
export function readAttachRequest(given: Readonly<Record<string, unknown>>): AttachRequest {
  const { domain, vdev, text, exportName, kind, link, engine, spec, backend, frontend } = given;
  const fine =
    [domain, exportName].every((word) => word === null || typeof word === "string") &&
    [vdev, text].every((word) => typeof word === "string") &&
    (kind === "vbd" || kind === "vbd3") &&
    ["thread", "worker", "process"].includes(link as string) &&
    ["auto", "io_uring", "pread", "libuv"].includes(engine as string) &&
    [given.readOnly, given.cdrom].every((value) => typeof value === "boolean") &&
    [backend, frontend].every((value) => typeof value === "object" && value !== null);
  if (!fine) throw new UsageError("this is no request to attach a disk");
  readStoreSpec(spec);
  return given as unknown as AttachRequest;
}

/** What came over a socket, where it has the shape of a disk. */
export function readStoreSpec(given: unknown): StoreSpec {
  const { driver, parameters, filters } = (given ?? {}) as Partial<
    Record<keyof StoreSpec, unknown>
  >;
  const fine =
    typeof driver === "string" &&
    isTexts(parameters) &&
    Array.isArray(filters) &&
    filters.every((filter) => typeof filter?.name === "string" && isTexts(filter.parameters));
  if (!fine) throw new UsageError("this is no disk");
  return given as StoreSpec;
}

function isTexts(value: unknown): boolean {
  return (
    typeof value === "object" &&
    value !== null &&
    Object.values(value).every((text) => typeof text === "string")
  );
}
