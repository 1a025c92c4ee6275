/**
 * The whole state of the daemon: tree, watches, domains, and the sessions of its clients; synchronous, without any
 * input or output.
 */

import type { Clock } from "../../util/clock.ts";
import { DomainTable } from "./domains.ts";
import type { Journal } from "./journal.ts";
import type { XenStoreLimits } from "./limits.ts";
import { removeTree } from "./nodes.ts";
import { INTRODUCE_DOMAIN, RELEASE_DOMAIN } from "./paths.ts";
import { ownerOf, PRIVATE, withoutDomains } from "./permissions.ts";
import type { Session } from "./session.ts";
import { TraceLog } from "./trace-log.ts";
import { Tree } from "./tree.ts";
import { DirectView } from "./view.ts";
import { WatchTable } from "./watches.ts";

/** Who hears of domains. */
export interface DomainLives {
  /** It was introduced, for the first time or again, with a port of its xenstore ring (0: without). */
  introduced(domid: number, port: number): void;
  /** It died, and its sessions have ended. */
  released(domid: number): void;
}

export class XenStoreState {
  readonly tree: Tree = Tree.empty();
  readonly watches: WatchTable = new WatchTable();
  readonly view: DirectView = new DirectView(this.tree, this.watches);
  readonly sessions: Set<Session> = new Set();
  readonly domains: DomainTable;
  readonly limits: XenStoreLimits;
  readonly clock: Clock;
  readonly trace: TraceLog = new TraceLog();
  /** Where the state outlives the daemon. */
  journal: Journal | undefined;
  readonly #lives: DomainLives;

  constructor(
    limits: XenStoreLimits,
    clock: Clock,
    domainExists: (domid: number) => boolean,
    lives: DomainLives,
  ) {
    this.limits = limits;
    this.clock = clock;
    this.#lives = lives;
    this.domains = new DomainTable(domainExists, limits);
    // As the C daemon begins: toolstacks look for it.
    for (const path of ["/tool", "/tool/xenstored"]) this.tree.create(path, PRIVATE);
  }

  /** A domain came to be: @introduceDomain. Where it is known, only its ring is looked at again. */
  introduce(domid: number, port = 0): void {
    const domain = this.domains.get(domid);
    const came = !domain.introduced;
    domain.introduced = true;
    domain.port = port;
    this.journal?.domain(domain.kept());
    this.#lives.introduced(domid, port);
    if (came) this.#fireSpecial(INTRODUCE_DOMAIN, domid);
  }

  /** A domain was shut down, which is told once until it is resumed (check_domain of the C daemon). */
  shutdown(domid: number): void {
    const domain = this.domains.get(domid);
    if (!domain.introduced || domain.shutdown) return;
    domain.shutdown = true;
    this.journal?.domain(domain.kept());
    this.#fireSpecial(RELEASE_DOMAIN, domid);
  }

  /** A domain that was shut down runs on, so the next time is news. */
  resume(domid: number): void {
    const domain = this.domains.get(domid);
    domain.shutdown = false;
    this.journal?.domain(domain.kept());
  }

  /** A domain died: all that was its own goes, so that the next domain of that number inherits nothing (XSA-322). */
  release(domid: number): void {
    this.tree.author = 0;
    const wasIntroduced = this.domains.isIntroduced(domid);
    for (const session of [...this.sessions]) {
      // Its own watches first: it does not hear of its end.
      if (session.subject.domid === domid) session.end();
      else session.forgetDomain(domid);
    }
    this.#lives.released(domid);
    this.domains.delete(domid);
    this.journal?.forget(domid);
    this.#removeTraces(domid);
    if (wasIntroduced) this.#fireSpecial(RELEASE_DOMAIN, domid);
  }

  /** `culprits` made changes that a transaction of `domid` met. Nobody holds back domain 0. */
  chargeConflict(domid: number, culprits: Iterable<number>): void {
    for (const culprit of culprits) {
      if (culprit === domid || culprit === 0) continue;
      this.domains.get(culprit).conflicts.charge(this.clock.now());
    }
  }

  #removeTraces(domid: number): void {
    const everywhere = ["/", INTRODUCE_DOMAIN, RELEASE_DOMAIN].flatMap((path) =>
      this.tree.from(path),
    );
    // From the top: what lies below a removed node is gone by the time it is looked at.
    for (const { path } of everywhere) {
      const permissions = this.tree.get(path)?.permissions;
      if (permissions === undefined || !permissions.some((entry) => entry.domid === domid)) {
        continue;
      }
      if (ownerOf(permissions) !== domid) {
        this.tree.setPermissions(
          path,
          withoutDomains(permissions, (other) => other !== domid),
        );
      } else if (path === "/" || path.startsWith("@")) {
        this.tree.setPermissions(path, PRIVATE);
      } else {
        removeTree(this.view, path);
      }
    }
  }

  #fireSpecial(path: string, domid: number): void {
    const permissions = this.tree.get(path)?.permissions ?? PRIVATE;
    this.watches.fireSpecial(path, domid, permissions);
  }
}
