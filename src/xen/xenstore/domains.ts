/** The domains that the daemon knows of, and what each holds of it: one place of accounting for all its clients. */
import { XENSTORE_SERVER_FEATURES } from "../../wire/xenstore.ts";
import { DOMID_FIRST_RESERVED } from "../domain.ts";
import { ConflictCredit } from "./conflict-credit.ts";
import type { DomainLimits } from "./limits.ts";
import type { Subject } from "./permissions.ts";
import type { KeptDomain } from "./state-operations.ts";

export class KnownDomain implements Subject {
  readonly domid: number;
  /** The domain whose rights it has too (XS_SET_TARGET). */
  target: number | undefined;
  introduced = false;
  /** Of its xenstore ring, as it was introduced with; 0 where it has none. */
  port = 0;
  /** It has shut down, and @releaseDomain has been told. */
  shutdown = false;
  /** XENSTORE_SERVER_FEATURE_* that it may use. */
  features: number = XENSTORE_SERVER_FEATURES;
  watches = 0;
  /** Of the paths and tokens of its watches. */
  watchBytes = 0;
  transactions = 0;
  /** What it did to the transactions of others. */
  readonly conflicts: ConflictCredit = new ConflictCredit();
  readonly #limits: DomainLimits;
  readonly #own: { -readonly [Name in keyof DomainLimits]?: number } = {};

  /** `limits` are those that it has where it has none of its own; they may change. */
  constructor(domid: number, limits: DomainLimits) {
    this.domid = domid;
    this.#limits = limits;
  }

  /** Infinity where there is none. */
  limit(name: keyof DomainLimits): number {
    return this.#own[name] ?? this.#limits[name];
  }

  setLimit(name: keyof DomainLimits, value: number): void {
    this.#own[name] = value;
  }

  /** What of it outlives the daemon. */
  kept(): KeptDomain {
    const { domid, introduced, shutdown, target, features, port } = this;
    const limits = Object.entries(this.#own) as [keyof DomainLimits, number][];
    return { domid, introduced, shutdown, target, features, port, limits };
  }

  restore({ introduced, shutdown, target, features, port, limits }: KeptDomain): void {
    Object.assign(this, { introduced, shutdown, target, features, port });
    for (const [name, value] of limits) this.setLimit(name, value);
  }
}

export class DomainTable {
  readonly #domains = new Map<number, KnownDomain>();
  readonly #exists: (domid: number) => boolean;
  /** Of all domains that have none of their own. */
  readonly #limits: { -readonly [Name in keyof DomainLimits]: number };
  /** Those that are not what the daemon began with. */
  readonly changedLimits: Map<keyof DomainLimits, number> = new Map();

  /** `exists` asks the machine; it is not asked for domain 0 and for those that are introduced. */
  constructor(exists: (domid: number) => boolean, limits: DomainLimits) {
    this.#exists = exists;
    this.#limits = { ...limits };
    this.get(0).introduced = true;
  }

  get(domid: number): KnownDomain {
    let domain = this.#domains.get(domid);
    if (domain === undefined) {
      domain = new KnownDomain(domid, this.#limits);
      this.#domains.set(domid, domain);
    }
    return domain;
  }

  /** What domains have that have no limit of their own. */
  limit(name: keyof DomainLimits): number {
    return this.#limits[name];
  }

  setLimit(name: keyof DomainLimits, value: number): void {
    this.#limits[name] = value;
    this.changedLimits.set(name, value);
  }

  [Symbol.iterator](): Iterator<KnownDomain> {
    return this.#domains.values();
  }

  isIntroduced(domid: number): boolean {
    return this.#domains.get(domid)?.introduced === true;
  }

  /** Whether permissions may name it. */
  exists(domid: number): boolean {
    return (
      domid < DOMID_FIRST_RESERVED &&
      (domid === 0 || this.isIntroduced(domid) || this.#exists(domid))
    );
  }

  /** Forgets all about it: a later domain of that number begins with nothing (XSA-322). */
  delete(domid: number): void {
    this.#domains.delete(domid);
    for (const domain of this.#domains.values()) {
      if (domain.target === domid) domain.target = undefined;
    }
  }
}
