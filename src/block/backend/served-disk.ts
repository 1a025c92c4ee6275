/**
 * The disk behind a backend: the store as requests reach it (aligned, with what it lacks emulated), and the facts of it
 * that requests are checked against and that are published.
 */
import type { Reactor } from "../../io/reactor.ts";
import { align } from "../../store/align.ts";
import type { BlockStore, BlockStoreInfo } from "../../store/block-store.ts";
import { emulate } from "../../store/emulate.ts";
import { type BackendLimits, dialects, unitBytes } from "../features.ts";
import { type DeviceNodes, deviceKeys, type Keys } from "./device-nodes.ts";
import type { Unsupported } from "./queue.ts";
import type { DeviceFacts } from "./request.ts";

/** Bytes of a sector, as everything of ours counts them. */
const SECTOR_SIZE = 512;

export interface ServedDiskOptions {
  readonly reactor: Reactor;
  readonly limits: BackendLimits;
  readonly nodes: DeviceNodes;
  /** What is not offered, although the store may have it. */
  readonly withdrawn: ReadonlySet<Unsupported>;
  readonly onresized: () => void;
  readonly onfailed: (error: Error) => void;
}

export class ServedDisk implements AsyncDisposable {
  readonly store: BlockStore;
  readonly facts: DeviceFacts;
  readonly #raw: BlockStore;
  readonly #options: ServedDiskOptions;
  readonly #subscription: Disposable;

  /** Owns `store` from now on. */
  constructor(store: BlockStore, options: ServedDiskOptions) {
    const { limits, reactor } = options;
    this.#options = options;
    this.#raw = store;
    this.store = emulate(align(store, limits.sectorSize, reactor), reactor);
    this.facts = this.#factsOf(store.info);
    this.#subscription = store.subscribe({
      resized: (info) => {
        this.facts.sectors = this.#sectorsOf(info);
        options.onresized();
      },
      failed: options.onfailed,
    });
  }

  #factsOf(info: BlockStoreInfo): DeviceFacts {
    const { limits, nodes, withdrawn } = this.#options;
    const { sectorSize, maxIndirectSegments } = limits;
    const dialect = dialects[limits.dialect];
    const readOnly = nodes.readOnly || info.readOnly;
    const discard = nodes.discard && limits.discard && !readOnly && !withdrawn.has("discard");
    return {
      sectors: this.#sectorsOf(info),
      readOnly,
      sectorsPerBlock: sectorSize / SECTOR_SIZE,
      sectorUnit: unitBytes(dialect.sectorNumber, sectorSize) / SECTOR_SIZE,
      segmentUnit: unitBytes(dialect.segments, sectorSize) / SECTOR_SIZE,
      maxIndirectSegments,
      discard: discard && info.discard !== undefined,
      secureDiscard: this.store.info.discard?.secure === true,
    };
  }

  /** Whole logical blocks alone, in sectors. */
  #sectorsOf(info: BlockStoreInfo): number {
    const { sectorSize } = this.#options.limits;
    return Math.floor(info.size / sectorSize) * (sectorSize / SECTOR_SIZE);
  }

  /** The `sectors` node, in what this dialect counts. */
  get sectorsNode(): number {
    const { sectorSize, dialect } = this.#options.limits;
    return (this.facts.sectors * SECTOR_SIZE) / unitBytes(dialects[dialect].sectors, sectorSize);
  }

  /** Bytes. */
  get physicalSectorSize(): number {
    const { preferred, minimum } = this.#raw.info.block;
    return Math.max(this.#options.limits.sectorSize, minimum, Math.min(preferred, 4096));
  }

  /** What a frontend reads of it when it sees Connected. */
  get keys(): Keys {
    const { limits, nodes, withdrawn } = this.#options;
    return deviceKeys({
      limits,
      discard: this.facts.discard ? this.store.info.discard : undefined,
      flush: !withdrawn.has("flush"),
      sectors: this.sectorsNode,
      nodes,
      readOnly: this.facts.readOnly,
      physicalSectorSize: this.physicalSectorSize,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#subscription[Symbol.dispose]();
    await this.store[Symbol.asyncDispose]();
  }
}
