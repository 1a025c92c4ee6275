/** Run in dom0: the suites of backends and of frontends on this Xen, dom0 being both domains. The scripted peers boot as the
 * drivers of twenty years do, break every rule there is, and leave in every way a domain can. */
import { BlockBackend, BlockFrontend } from "../../../../src/block/index.ts";
import { Reactor } from "../../../../src/io/reactor.ts";
import { openStore, parseDisk } from "../../../../src/store/registry.ts";
import { backendSuite, frontendSuite } from "../../../../src/testing/index.ts";
import { systemClock } from "../../../../src/util/clock.ts";
import type { Domain } from "../../../../src/xen/domain.ts";
import { openHost } from "../../../../src/xen/host/index.ts";
import {
  createVbd,
  removeVbd,
  takeOffline,
  type VbdDescription,
  type VbdPaths,
} from "../../../../src/xen/toolstack.ts";

interface Stage extends AsyncDisposable {
  readonly reactor: Reactor;
  readonly front: Domain;
  readonly back: Domain;
  readonly paths: VbdPaths;
}

let vdev = 51712;

/** Two openings of dom0, and a device between them that no driver of the kernel's takes. */
async function openStage(): Promise<Stage> {
  await using undo = new AsyncDisposableStack();
  const reactor = new Reactor();
  const front = undo.use(await openHost({ reactor }));
  const back = undo.use(await openHost({ reactor }));
  vdev += 16;
  const vbd: VbdDescription = {
    frontendDomid: front.id,
    backendDomid: back.id,
    vdev,
    readOnly: false,
    params: "",
    kind: "vbd3",
    frontendKind: "vbdkit",
  };
  const paths = await createVbd(back.store, vbd);
  undo.defer(() => removeVbd(back.store, paths));
  const ends = undo.move();
  return { reactor, front, back, paths, [Symbol.asyncDispose]: () => ends.disposeAsync() };
}

backendSuite("our backend in dom0", {
  complete: true,
  async open() {
    await using undo = new AsyncDisposableStack();
    const { reactor, front, back, paths } = undo.use(await openStage());
    const disk = await openStore(parseDisk(["memory", "2M"], []), { reactor });
    undo.use(await BlockBackend.open(back, paths.backend, disk, { clock: systemClock }));
    const ends = undo.move();
    return {
      frontendDomain: front,
      backendDomid: back.id,
      paths,
      resize: (size) => disk.resize(size),
      takeOffline: () => takeOffline(back.store, paths),
      mappedPages: () => back.grants.counters.mapped,
      [Symbol.asyncDispose]: () => ends.disposeAsync(),
    };
  },
});

frontendSuite("our frontend in dom0", {
  async open() {
    const { reactor, front, back, paths, ...ends } = await openStage();
    return {
      backendDomain: back,
      frontendDomid: front.id,
      reactor,
      paths,
      connect: () => BlockFrontend.connect(front, paths.frontend, { clock: systemClock }),
      leftovers: () => front.grants.counters.granted,
      ...ends,
    };
  },
});
