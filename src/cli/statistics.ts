/** From what a server knows of its attached disks to their statistics by Linux's names. */
import type { AttachmentInformation, RingReport } from "../index.ts";
import {
  type DiskStatistics,
  type DomainStatistics,
  type RingStatistics,
  type ServerStatistics,
  sumStatistics,
} from "../trace/statistics.ts";
import type { ServedDiskInfo, ServerInfo } from "./server-info.ts";

/** `uptimeSeconds` has more digits than the info's: rates are taken from it. */
export function statisticsOf(info: ServerInfo, uptimeSeconds: number): ServerStatistics {
  const domains = new Map<number, DomainStatistics>();
  for (const { attachment } of info.disks) {
    // Domains that several disks share are told once.
    for (const { domain, grants, events } of endsOf(attachment)) {
      const { sent: eventsSent, delivered: eventsDelivered } = events;
      domains.set(domain, { domain, ...grants, eventsSent, eventsDelivered });
    }
  }
  return {
    version: info.version,
    pid: info.pid,
    uptimeSeconds,
    disks: info.disks.map(diskStatistics),
    domains: [...domains.values()].sort((left, right) => left.domain - right.domain),
  };
}

function diskStatistics({ vdev, disk, domain, attachment }: ServedDiskInfo): DiskStatistics {
  const rings = attachment.backend.rings.map(ringStatistics);
  const { freezes, merged, copiedBytes, errors } = attachment.frontend;
  return {
    vdev,
    disk,
    link: attachment.link,
    domain: domainOf(attachment.frontendPath),
    guest: domain,
    statistics: sumStatistics(rings.map(({ statistics }) => statistics)),
    inFlight: rings.reduce((sum, ring) => sum + ring.inFlight, 0),
    rings,
    frontend: { waits: freezes, merged, copiedBytes, errors },
  };
}

function ringStatistics({ statistics, queue }: RingReport): RingStatistics {
  return {
    statistics,
    inFlight: queue.inFlight,
    errors: queue.errors,
    brokenRules: queue.brokenRules,
    grantCache: {
      mapped: queue.mappedPages,
      persistent: queue.persistentPages,
      purged: queue.purgedPages,
    },
  };
}

function endsOf({ frontendPath, frontend, backendPath, backend }: AttachmentInformation) {
  return [
    { domain: domainOf(frontendPath), grants: frontend.grants, events: frontend.events },
    { domain: domainOf(backendPath), grants: backend.grants, events: backend.events },
  ];
}

/** The number in /local/domain/N/... */
function domainOf(path: string): number {
  return Number(path.split("/")[3]);
}
