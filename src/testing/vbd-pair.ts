/**
 * Two domains and the directories of a vbd between them, with nobody in it yet: the stage on which a frontend or a
 * backend under test meets a scripted peer.
 */
import { setImmediate as turn } from "node:timers/promises";
import { Reactor } from "../io/reactor.ts";
import type { Domain } from "../xen/domain.ts";
import { EmbeddedMachine } from "../xen/embedded/index.ts";
import {
  createDomainNodes,
  createVbd,
  removeVbd,
  takeOffline,
  type VbdPaths,
} from "../xen/toolstack.ts";

export interface VbdPairOptions {
  readonly readOnly?: boolean;
  /** Of the threads of both domains; a fresh one if absent. */
  readonly reactor?: Reactor;
  /** Pages of each domain; 4096 if absent. */
  readonly memoryPages?: number;
  /** Entries of each grant table. */
  readonly grantEntries?: number;
  /** 51712 (xvda) if absent. */
  readonly vdev?: number;
}

export interface VbdPair extends AsyncDisposable {
  readonly reactor: Reactor;
  /** Domain 0. */
  readonly backendDomain: Domain;
  /** Domain 1. */
  readonly frontendDomain: Domain;
  readonly paths: VbdPaths;
  /** Says that the device is to go, as a toolstack does. */
  takeOffline(): Promise<void>;
  /** Removes both directories, as a toolstack does when the device has gone or shall be gone. */
  remove(): Promise<void>;
}

const FRONTEND_DOMID = 1;
const BACKEND_DOMID = 0;
/** 16 MiB: rings of 16 pages and a pool of 1024 pages, with room. */
const MEMORY_PAGES = 4096;

export async function vbdPair(options: VbdPairOptions = {}): Promise<VbdPair> {
  await using undo = new AsyncDisposableStack();
  const reactor = options.reactor ?? new Reactor();
  const { memoryPages = MEMORY_PAGES, grantEntries, vdev = 51712 } = options;
  const machine = undo.use(await EmbeddedMachine.create({ reactor, memoryPages }));
  const domainOptions = grantEntries === undefined ? {} : { grantEntries };
  const backendDomain = await machine.createDomain(BACKEND_DOMID);
  const frontendDomain = await machine.createDomain(FRONTEND_DOMID, domainOptions);
  await createDomainNodes(backendDomain.store, BACKEND_DOMID, "Domain-0");
  await createDomainNodes(backendDomain.store, FRONTEND_DOMID, "guest");
  const paths = await createVbd(backendDomain.store, {
    frontendDomid: FRONTEND_DOMID,
    backendDomid: BACKEND_DOMID,
    vdev,
    readOnly: options.readOnly === true,
    params: "test",
  });
  const ends = undo.move();
  return {
    reactor,
    backendDomain,
    frontendDomain,
    paths,
    takeOffline: () => takeOffline(backendDomain.store, paths),
    remove: () => removeVbd(backendDomain.store, paths),
    [Symbol.asyncDispose]: () => ends.disposeAsync(),
  };
}

/** Waits, turn by turn, until `look` answers something else than undefined; rejects after `milliseconds` with what is
 * missing. */
export async function until<T>(
  look: () => T | undefined | Promise<T | undefined>,
  missing: () => string,
  milliseconds: number,
): Promise<T> {
  const started = performance.now();
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (performance.now() - started > milliseconds) throw new Error(missing());
    await turn();
  }
}
