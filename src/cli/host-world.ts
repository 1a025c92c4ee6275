/**
 * A Xen host as the commands ask it: attach, detach, list and resize by the xenstore, as xl does, and by the control socket
 * of `vbdkit daemon` where only who serves a disk can do it.
 */
import {
  attachHostDisk,
  detachHostDisk,
  type HostDisk,
  type HostGuest,
  listGuests,
  listHostDisks,
  untilConnected,
} from "../daemon/host-disks.ts";
import { XenError, type XenStore } from "../xen/domain.ts";
import { openHostStore } from "../xen/host/index.ts";
import { parseVdev, vdevName } from "../xen/vbd.ts";
import { stateName } from "../xen/xenbus.ts";
import { readAttachRequest } from "./attach-request.ts";
import { type Asker, askServer, type RequestFields } from "./control.ts";
import { RUN_FOLDER } from "./daemon-settings.ts";
import type { ListedDisk, ListedDomain } from "./disk-list.ts";
import { UsageError } from "./errors.ts";
import { findByName } from "./find-by-name.ts";

/** What a request of a command is answered with; rejects with what stands against it. */
export async function askHost(
  request: string,
  fields: RequestFields,
  asker: Asker,
): Promise<unknown> {
  const answer = Object.hasOwn(answers, request) ? answers[request] : undefined;
  if (answer === undefined) {
    const names = Object.keys(answers).join(", ");
    throw new UsageError(`${request} is not for a Xen host; there are ${names}`);
  }
  await using store = await openHostStore();
  const domid = Number(await store.read("domid"));
  return await answer({ store, domid }, fields, asker);
}

interface Host {
  readonly store: XenStore;
  /** The domain that we run in, which has the backends. */
  readonly domid: number;
}

const answers: Readonly<
  Record<string, (host: Host, fields: RequestFields, asker: Asker) => Promise<unknown>>
> = { attach, detach, list, resize };

async function attach(
  { store, domid }: Host,
  fields: RequestFields,
  { signal, note }: Asker,
): Promise<ListedDisk> {
  const request = readAttachRequest(fields);
  // Persistent grants are an offer of both ends, and on unless they were turned off.
  const { persistent: _, ...frontend } = request.frontend;
  if (request.link !== "thread" || Object.keys(frontend).length > 0) {
    throw new UsageError("on a Xen host the guest has its own frontend: leave its options out");
  }
  const disk = await attachHostDisk(store, {
    backendDomid: domid,
    guest: await findGuest(store, request.domain ?? ""),
    vdev: request.vdev,
    readOnly: request.readOnly,
    cdrom: request.cdrom,
    discard: request.backend.discard !== false,
    text: request.text,
    request: JSON.stringify(fields),
    signal,
  });
  const connected = await untilConnected(store, disk, signal);
  if (connected.size === undefined) note("the guest has not connected to it yet");
  return listed(connected);
}

async function detach(host: Host, fields: RequestFields, { signal }: Asker): Promise<true> {
  await detachHostDisk(host.store, await find(host, fields), fields.force === true, signal);
  return true;
}

async function list({ store, domid }: Host, { domain }: RequestFields): Promise<ListedDomain[]> {
  const guests =
    domain === undefined ? await listGuests(store) : [await findGuest(store, String(domain))];
  return await Promise.all(
    guests.map(async (guest) => ({
      name: guest.name,
      domid: guest.domid,
      disks: (await listHostDisks(store, domid, guest)).map(listed),
    })),
  );
}

async function resize(host: Host, fields: RequestFields, { signal }: Asker): Promise<ListedDisk> {
  const disk = await find(host, fields);
  if (disk.size === undefined) {
    throw new UsageError("the guest is not connected: change the size of the image itself");
  }
  const size = Number(fields.size) + (fields.relative === true ? disk.size : 0);
  const { paths, guest } = disk;
  const order = { path: paths.backend, size, shrink: fields.shrink === true };
  await askServer<true>(RUN_FOLDER, "resize", { fields: order, patient: true, signal });
  // The backend writes it a moment later.
  const disks = await listHostDisks(host.store, host.domid, guest);
  return { ...listed(disks.find(({ vdev }) => vdev === disk.vdev) ?? disk), size };
}

/** By name or domid. Rejects with an Error that names the nearest. */
export async function findGuest(store: XenStore, wanted: string): Promise<HostGuest> {
  const guests = await listGuests(store);
  const byDomid = guests.find(({ domid }) => String(domid) === wanted);
  return byDomid ?? findByName("there is no domain", wanted, guests, ({ name }) => name);
}

async function find({ store, domid }: Host, fields: RequestFields): Promise<HostDisk> {
  const guest = await findGuest(store, String(fields.domain));
  const disks = await listHostDisks(store, domid, guest);
  if (disks.length === 0) throw new XenError("ENOENT", `${guest.name} has no disks from here`);
  const name = vdevName(parseVdev(String(fields.vdev)));
  return findByName(`${guest.name} has no disk`, name, disks, ({ vdev }) => vdevName(vdev));
}

function listed(disk: HostDisk): ListedDisk {
  const { error } = disk;
  return {
    domain: disk.guest.name,
    vdev: vdevName(disk.vdev),
    handle: disk.vdev,
    backend: disk.backendDomid,
    state: stateName(disk.state).toLowerCase(),
    ...disk.ring,
    size: disk.size ?? 0,
    access: disk.readOnly ? "r" : "w",
    link: "xen",
    disk: disk.text,
    frontendPath: disk.paths.frontend,
    backendPath: disk.paths.backend,
    ...(error === undefined ? {} : { error }),
  };
}
