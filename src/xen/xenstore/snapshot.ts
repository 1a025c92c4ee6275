/**
 * A whole xenstore as the operations that lead to it from the empty one: how a file of its state begins.
 *
 * Invariant: it is the state at the call, whatever changes while its pieces are taken; the last operation says that it is
 * complete. Nodes come before what is below them, watches in the order of their age.
 */
import type { KeptRing } from "./kept-ring.ts";
import { childPath, INTRODUCE_DOMAIN, RELEASE_DOMAIN } from "./paths.ts";
import type { XenStoreState } from "./state.ts";
import { OperationWriter } from "./state-operations.ts";
import type { PlacedNode, Tree } from "./tree.ts";
import type { Watch } from "./watches.ts";

/** Of one record, about: some tenths of a millisecond. */
const PIECE_BYTES = 64 * 1024;

/** The payloads of the records. What one call gives is overwritten by the next. */
export function snapshotOf(
  state: XenStoreState,
  rings: Iterable<KeptRing>,
): Generator<Uint8Array, void> {
  const rest = new OperationWriter();
  writeRest(rest, state, rings);
  return pieces(state.tree.snapshot(), state.tree.generation, rest.take());
}

function* pieces(tree: Tree, generation: number, rest: Uint8Array): Generator<Uint8Array, void> {
  const writer = new OperationWriter();
  writer.generation(generation);
  for (const { path, node } of nodesOf(tree)) {
    if (path === "/" || path.startsWith("@")) {
      writer.setPermissions(path, node.permissions);
      writer.setValue(path, node.value);
    } else writer.create(path, node.permissions, node.value);
    if (writer.length >= PIECE_BYTES) yield writer.take();
  }
  if (writer.length > 0) yield writer.take();
  yield rest;
}

/** One by one, parents before their children, and these in their order. */
function* nodesOf(tree: Tree): Generator<PlacedNode, void> {
  const waiting: PlacedNode[] = [];
  for (const path of [RELEASE_DOMAIN, INTRODUCE_DOMAIN, "/"]) {
    const node = tree.get(path);
    if (node !== undefined) waiting.push({ path, node });
  }
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    yield next;
    const { path, node } = next;
    for (const [name, child] of [...node.children].reverse()) {
      waiting.push({ path: childPath(path, name), node: child });
    }
  }
}

function writeRest(writer: OperationWriter, state: XenStoreState, rings: Iterable<KeptRing>): void {
  for (const [name, value] of state.domains.changedLimits) writer.limit(name, value);
  for (const domain of state.domains) writer.domain(domain.kept());
  const watches: [number, Watch][] = [];
  for (const { subject, kept, watches: own } of state.sessions) {
    if (kept === undefined) continue;
    for (const watch of own) watches.push([subject.domid, watch]);
  }
  for (const ring of rings) {
    const { ring: where, sent } = ring.whole();
    writer.ring(ring.domid, where);
    writer.sent(ring.domid, sent);
  }
  watches.sort(([, a], [, b]) => a.number - b.number);
  for (const [domid, watch] of watches) writer.watch(domid, watch);
  writer.complete();
}
