/** The domains that the daemon knows of, and what each holds of it: one place of accounting for all its clients. */
import { ConflictCredit } from "./conflict-credit.ts";
import { DOMID_FIRST_RESERVED, type Subject } from "./permissions.ts";

export class KnownDomain implements Subject {
  readonly domid: number;
  /** The domain whose rights it has too (XS_SET_TARGET). */
  target: number | undefined;
  introduced = false;
  /** Its end was announced, and it was not resumed since. */
  shutdown = false;
  watches = 0;
  transactions = 0;
  /** What it did to the transactions of others. */
  readonly conflicts: ConflictCredit = new ConflictCredit();

  constructor(domid: number) {
    this.domid = domid;
  }
}

export class DomainTable {
  readonly #domains = new Map<number, KnownDomain>();
  readonly #exists: (domid: number) => boolean;

  /** `exists` asks the machine; it is not asked for domain 0 and for those that are introduced. */
  constructor(exists: (domid: number) => boolean) {
    this.#exists = exists;
    this.get(0).introduced = true;
  }

  get(domid: number): KnownDomain {
    let domain = this.#domains.get(domid);
    if (domain === undefined) {
      domain = new KnownDomain(domid);
      this.#domains.set(domid, domain);
    }
    return domain;
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
