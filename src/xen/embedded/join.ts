/**
 * Becoming a domain of a machine that lives elsewhere, from a worker or a child process, with the ticket that the
 * machine gave out.
 */
import { receiveMessageOnPort } from "node:worker_threads";
import { regionOver } from "../../io/memory.ts";
import { EventDescriptor } from "../../io/poller.ts";
import type { Reactor } from "../../io/reactor.ts";
import { XenError, type XenStore } from "../domain.ts";
import { XenStoreClient } from "../xenstore/client.ts";
import { listen } from "./bell.ts";
import { EmbeddedDomain } from "./domain.ts";
import { DomainMemory } from "./domain-memory.ts";
import { domainPaths, openNeighbour } from "./machine-folder.ts";
import { NeighbourMap, RemoteNeighbour } from "./neighbours.ts";
import { hasStoreRing } from "./store-ring.ts";
import type {
  Announcement,
  DomainRecord,
  DomainTicket,
  ProcessTicket,
  WorkerTicket,
} from "./ticket.ts";

/** The domain that the ticket is for, alive on this thread until it is disposed; once for each ticket. Rejects with
 * XenError("ENOENT") when the machine has ended it meanwhile. */
export function joinMachine(ticket: DomainTicket, reactor: Reactor): Promise<EmbeddedDomain> {
  return ticket.where === "worker"
    ? joinFromWorker(ticket, reactor)
    : joinFromProcess(ticket, reactor);
}

async function joinFromWorker(ticket: WorkerTicket, reactor: Reactor): Promise<EmbeddedDomain> {
  await using undo = new AsyncDisposableStack();
  const { self, announcements } = ticket;
  const records = new Map(ticket.others.map((record) => [record.domid, record]));
  const heard = (announcement: Announcement): void => {
    if ("came" in announcement) records.set(announcement.came.domid, announcement.came);
    else records.delete(announcement.ended);
  };
  announcements.on("message", heard);
  announcements.unref();
  undo.defer(() => announcements.close());
  const neighbours = undo.use(
    new NeighbourMap((domid) => {
      // A domain that somebody names was announced before, but perhaps not in this turn of the event loop.
      for (let next = receiveMessageOnPort(announcements); next !== undefined; ) {
        heard(next.message as Announcement);
        next = receiveMessageOnPort(announcements);
      }
      const record = records.get(domid);
      return record === undefined ? undefined : openRecord(record);
    }),
  );
  const found = openRecord(self);
  if (found === undefined) throw new XenError("ENOENT", `domain ${self.domid} has ended`);
  undo.use(found);
  const store = hasStoreRing(found.memory) ? undefined : new XenStoreClient(ticket.xenstore);
  return enter(undo, found, neighbours, store, reactor);
}

async function joinFromProcess(ticket: ProcessTicket, reactor: Reactor): Promise<EmbeddedDomain> {
  await using undo = new AsyncDisposableStack();
  const { directory, domid } = ticket;
  const neighbours = undo.use(new NeighbourMap((other) => openNeighbour(directory, other)));
  const found = openNeighbour(directory, domid);
  if (found === undefined) throw new XenError("ENOENT", `${directory} has no domain ${domid}`);
  undo.use(found);
  const store = hasStoreRing(found.memory)
    ? undefined
    : await XenStoreClient.connect(domainPaths(directory, domid).xenstore);
  return enter(undo, found, neighbours, store, reactor);
}

/** `ends` are what the domain disposes after itself. */
function enter(
  ends: AsyncDisposableStack,
  found: RemoteNeighbour,
  neighbours: NeighbourMap,
  store: XenStore | undefined,
  reactor: Reactor,
): EmbeddedDomain {
  const domid = found.memory.shape.domid;
  const domain = new EmbeddedDomain(found.memory.retain(), neighbours, store, reactor, ends.move());
  neighbours.set(domid, domain);
  domain.onEnd(listen(domain, found.bell));
  // What was sent before we listened.
  domain.lookAgain();
  return domain;
}

function openRecord(record: DomainRecord): RemoteNeighbour | undefined {
  const { domid } = record;
  if ("directory" in record) return openNeighbour(record.directory, domid);
  const bell = record.bell === undefined ? undefined : new EventDescriptor(record.bell);
  try {
    return new RemoteNeighbour(DomainMemory.open(regionOver(record.memory), domid), bell, false);
  } catch {
    return undefined;
  }
}
