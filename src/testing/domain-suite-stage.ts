/** What the tests of `domainSuite` stand on: two domains, and pages of the one that the other is granted. */
import assert from "node:assert/strict";
import {
  type Domain,
  GrantMapBatch,
  GrantStatus,
  type OwnPages,
  PAGE_SIZE,
} from "../xen/domain.ts";

/** Two domains of one thread. */
export interface OpenedDomains extends AsyncDisposable {
  /** Grants pages and offers ports. */
  readonly front: Domain;
  /** Maps pages and binds ports. */
  readonly back: Domain;
  /** A xenstore path below which both may write. */
  readonly path: string;
}

/** Declares a test on two fresh domains. */
export type DomainTest = (
  sentence: string,
  body: (domains: OpenedDomains) => Promise<void> | void,
) => void;

/** What an event, or a call back, may take. */
export const EVENT_MILLISECONDS = 10_000;
/** No grant has this reference. */
export const NO_REFERENCE = 0x00ff_fff0;

/** Pages of `front`'s that `back` was granted. */
export function granted(
  { front, back }: OpenedDomains,
  count: number,
  readOnly: (index: number) => boolean = () => false,
): OwnPages {
  const pages = front.grants.allocate(count);
  assert.ok(pages !== undefined, `no room for ${count} pages`);
  for (let i = 0; i < count; i++) assert.ok(pages.grant(i, back.id, readOnly(i)));
  return pages;
}

export function pageOf({ region, start }: OwnPages, index: number): Uint8Array {
  return region.bytes.subarray(start + index * PAGE_SIZE, start + (index + 1) * PAGE_SIZE);
}

interface MapOptions {
  readonly together?: boolean;
  readonly readOnly?: boolean;
}

export function mapBatch(
  { front, back }: OpenedDomains,
  references: ArrayLike<number>,
  { together = false, readOnly = false }: MapOptions,
): GrantMapBatch {
  const batch = new GrantMapBatch(references.length);
  batch.count = references.length;
  batch.together = together;
  batch.references.set(references);
  batch.readOnly.fill(readOnly ? 1 : 0);
  back.grants.map(front.id, batch);
  return batch;
}

export function bytesOf(batch: GrantMapBatch, index: number): Uint8Array {
  const start = batch.starts[index]!;
  return batch.regions[index]!.bytes.subarray(start, start + PAGE_SIZE);
}

export function mapAll(
  domains: OpenedDomains,
  references: ArrayLike<number>,
  options: MapOptions,
): { readonly bytes: Uint8Array; readonly handle: number }[] {
  const batch = mapBatch(domains, references, options);
  assert.ok(batch.statuses.every((status) => status === GrantStatus.okay));
  return Array.from(batch.handles, (handle, i) => ({ bytes: bytesOf(batch, i), handle }));
}
