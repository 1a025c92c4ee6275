/**
 * Requests of the wire and their answers (docs/misc/xenstore.txt; the table of process_message in the C daemon).
 *
 * Invariant: whatever the payload, the answer is a payload or the name of an error; nothing a client sends throws.
 */
import {
  decodeXenStoreStrings,
  encodeXenStoreStrings,
  XENSTORE_PAYLOAD_MAX,
  type XenStoreMessage,
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_DOMAIN_PATH,
  XS_GET_PERMS,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_PERMS,
  XS_SET_TARGET,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
  type XsdError,
} from "../../wire/xenstore.ts";
import {
  type Actor,
  findNode,
  makeDirectory,
  removeNode,
  setNodePermissions,
  writeNode,
} from "./nodes.ts";
import { canonicalPath, domainPath } from "./paths.ts";
import {
  DOMID_FIRST_RESERVED,
  formatPermission,
  isPrivileged,
  type Permissions,
  parsePermission,
  READ,
} from "./permissions.ts";
import type { Session } from "./session.ts";
import type { Tree } from "./tree.ts";
import type { View } from "./view.ts";

/** The payload of the answer, or the error; `afterwards` runs when the answer is queued. */
export type Answer = Uint8Array | XsdError | { payload: Uint8Array; afterwards(): void };

interface Request {
  readonly session: Session;
  readonly actor: Actor;
  readonly transactionId: number;
  readonly payload: Uint8Array;
  /** Those of the payload that a NUL ends. */
  readonly strings: readonly string[];
  /** The payload's only string, with nothing after it. */
  readonly only: string | undefined;
}

interface Handler {
  readonly answer: (request: Request) => Answer;
  /** For domain 0 alone. */
  readonly privileged?: true;
  /** The transaction id is not looked at. */
  readonly outside?: true;
}

const OK = encodeXenStoreStrings(["OK"]);
/** DOMID_SELF of xen.h. */
const DOMID_SELF = 0x7ff0;

const handlers: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [XS_CONTROL, { answer: control, privileged: true }],
  [XS_DIRECTORY, { answer: directory }],
  [XS_READ, { answer: read }],
  [XS_GET_PERMS, { answer: getPermissions }],
  [XS_WATCH, { answer: watch, outside: true }],
  [XS_UNWATCH, { answer: unwatch, outside: true }],
  [XS_TRANSACTION_START, { answer: startTransaction }],
  [XS_TRANSACTION_END, { answer: endTransaction }],
  [XS_INTRODUCE, { answer: introduce, privileged: true }],
  [XS_RELEASE, { answer: release, privileged: true }],
  [XS_GET_DOMAIN_PATH, { answer: getDomainPath }],
  [XS_WRITE, { answer: write }],
  [XS_MKDIR, { answer: mkdir }],
  [XS_RM, { answer: remove }],
  [XS_SET_PERMS, { answer: setPermissions }],
  [XS_IS_DOMAIN_INTRODUCED, { answer: isDomainIntroduced, privileged: true }],
  [XS_RESUME, { answer: resume, privileged: true }],
  [XS_SET_TARGET, { answer: setTarget, privileged: true }],
  [XS_RESET_WATCHES, { answer: resetWatches }],
  [XS_DIRECTORY_PART, { answer: directoryPart }],
]);

export function answerRequest(session: Session, message: XenStoreMessage): Answer {
  const { type, transactionId } = message;
  const handler = handlers.get(type);
  if (handler === undefined) return "ENOSYS";
  if (handler.privileged && !isPrivileged(session.subject)) return "EACCES";
  const view = session.view(handler.outside ? 0 : transactionId);
  if (view === undefined) return "ENOENT";
  const transaction = handler.outside ? undefined : session.transaction(transactionId);
  session.state.tree.author = session.subject.domid;
  if (transaction?.overflowed && type !== XS_TRANSACTION_END) return "ENOSPC";
  const answer = handler.answer(readRequest(session, view, message));
  if (transaction?.overflowed && type !== XS_TRANSACTION_END) return "ENOSPC";
  const tooLong = answer instanceof Uint8Array && answer.length > XENSTORE_PAYLOAD_MAX;
  return tooLong ? "E2BIG" : answer;
}

function readRequest(session: Session, view: View, message: XenStoreMessage): Request {
  const { transactionId, payload } = message;
  const strings = decodeXenStoreStrings(payload);
  const whole = strings.length === 1 && payload.at(-1) === 0;
  const actor = { subject: session.subject, view, limits: session.state.limits };
  const only = whole ? strings[0] : undefined;
  return { session, actor, transactionId, payload, strings, only };
}

function pathOf(
  { session }: Request,
  text: string | undefined,
  special = false,
): string | undefined {
  return text === undefined ? undefined : canonicalPath(text, session.subject.domid, special);
}

function done(error: XsdError | undefined): Answer {
  return error ?? OK;
}

function directory(request: Request): Answer {
  const path = pathOf(request, request.only);
  if (path === undefined) return "EINVAL";
  const node = findNode(request.actor, path, READ);
  if (typeof node === "string") return node;
  request.actor.view.listed(path);
  if (node.childrenBytes > XENSTORE_PAYLOAD_MAX) return "E2BIG";
  return encodeXenStoreStrings([...node.children.keys()]);
}

/** PATH, OFFSET -> the generation of the list, then whole names from OFFSET on, then an empty one at the end. */
function directoryPart(request: Request): Answer {
  const [text, offsetText = ""] = request.strings;
  const path = pathOf(request, text);
  if (path === undefined || request.strings.length !== 2 || !/^\d{1,10}$/.test(offsetText)) {
    return "EINVAL";
  }
  const node = findNode(request.actor, path, READ);
  if (typeof node === "string") return node;
  request.actor.view.listed(path);
  const names = encodeXenStoreStrings([...node.children.keys()]);
  const generation = encodeXenStoreStrings([String(node.listingGeneration)]);
  const rest = names.subarray(Number(offsetText));
  const room = XENSTORE_PAYLOAD_MAX - generation.length - 1;
  const end = rest.length <= room ? rest.length : rest.lastIndexOf(0, room - 1) + 1;
  const last = end === rest.length ? [0] : [];
  return Buffer.concat([generation, rest.subarray(0, end), Uint8Array.from(last)]);
}

function read(request: Request): Answer {
  const path = pathOf(request, request.only);
  if (path === undefined) return "EINVAL";
  const node = findNode(request.actor, path, READ);
  return typeof node === "string" ? node : node.value;
}

function write(request: Request): Answer {
  const [text] = request.strings;
  const path = pathOf(request, text);
  if (text === undefined || path === undefined) return "EINVAL";
  // A copy: the payload is a view of a chunk that is many times larger.
  return done(
    writeNode(request.actor, path, Uint8Array.from(request.payload.subarray(text.length + 1))),
  );
}

function mkdir(request: Request): Answer {
  const path = pathOf(request, request.only);
  return path === undefined ? "EINVAL" : done(makeDirectory(request.actor, path));
}

function remove(request: Request): Answer {
  const path = pathOf(request, request.only);
  return path === undefined ? "EINVAL" : done(removeNode(request.actor, path));
}

function getPermissions(request: Request): Answer {
  const path = pathOf(request, request.only, true);
  if (path === undefined) return "EINVAL";
  const node = findNode(request.actor, path, READ);
  if (typeof node === "string") return node;
  return encodeXenStoreStrings(node.permissions.map(formatPermission));
}

function setPermissions(request: Request): Answer {
  const [text, ...words] = request.strings;
  const parsed = words.map(parsePermission).filter((permission) => permission !== undefined);
  const [owner, ...others] = parsed;
  if (owner === undefined || parsed.length !== words.length) return "EINVAL";
  const path = pathOf(request, text, true);
  if (path === undefined) return "EINVAL";
  // What is given to a domain that does not exist would be inherited by a later one of that number.
  const { domains } = request.session.state;
  if (!domains.exists(owner.domid)) return "ENOENT";
  const permissions: Permissions = [owner, ...others.filter(({ domid }) => domains.exists(domid))];
  return done(setNodePermissions(request.actor, path, permissions));
}

/** PATH, TOKEN and, in the newer protocol, DEPTH. */
function watch(request: Request): Answer {
  const { session } = request;
  const { subject, state } = session;
  const [text = "", token = "", depthText] = request.strings;
  const path = pathOf(request, text, true);
  if (request.strings.length < 2 || request.strings.length > 3 || path === undefined) {
    return "EINVAL";
  }
  if (depthText !== undefined && !/^\d{1,5}$/.test(depthText)) return "EINVAL";
  if (session.hasWatch(path, token)) return "EEXIST";
  if (!isPrivileged(subject) && subject.watches >= state.limits.watches) return "E2BIG";
  const prefix = /^[/@]/.test(text) ? "" : `${domainPath(subject.domid)}/`;
  const depth = depthText === undefined ? undefined : Number(depthText);
  const added = session.addWatch({ path, token, prefix, depth });
  // The first event comes at once, so that a client need not look before it waits.
  return { payload: OK, afterwards: () => session.deliver(added, path) };
}

function unwatch(request: Request): Answer {
  const [text, token = ""] = request.strings;
  const path = pathOf(request, text, true);
  if (request.strings.length !== 2 || path === undefined) return "EINVAL";
  return request.session.removeWatch(path, token) ? OK : "ENOENT";
}

function resetWatches({ session }: Request): Answer {
  session.reset();
  return OK;
}

function startTransaction({ session, transactionId }: Request): Answer {
  const { subject, state } = session;
  if (transactionId !== 0) return "EBUSY";
  if (!isPrivileged(subject) && subject.transactions >= state.limits.transactions) return "ENOSPC";
  return encodeXenStoreStrings([String(session.openTransaction())]);
}

/** "T" commits, "F" abandons; either way the transaction is over. */
function endTransaction({ session, transactionId, only }: Request): Answer {
  if (only !== "T" && only !== "F") return "EINVAL";
  const transaction = session.transaction(transactionId);
  if (transaction === undefined) return "ENOENT";
  session.dropTransaction(transactionId);
  if (only === "F") return OK;
  const { subject, state } = session;
  const changes = transaction.commit(state.tree);
  if (changes === "EAGAIN") state.chargeConflict(subject.domid, transaction.culprits);
  if (typeof changes === "string") return changes;
  const bounded = !isPrivileged(subject);
  state.watches.fireAll(changes, bounded ? state.limits.commitPathBytes : Number.POSITIVE_INFINITY);
  return OK;
}

function domidOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,5}$/.test(text) ? Number(text) : undefined;
}

/** DOMID, GFN and PORT of its ring, which we do not map: domains connect to us by other ways. */
function introduce({ session, strings }: Request): Answer {
  const domid = domidOf(strings[0]);
  const port = Number(strings[2] ?? 0);
  if (domid === undefined || domid >= DOMID_FIRST_RESERVED || !(port > 0)) return "EINVAL";
  session.state.introduce(domid);
  return OK;
}

function introducedDomain({ session, only }: Request): number | XsdError {
  const domid = domidOf(only);
  if (domid === undefined || domid === 0) return "EINVAL";
  return session.state.domains.isIntroduced(domid) ? domid : "ENOENT";
}

function release(request: Request): Answer {
  const domid = introducedDomain(request);
  if (typeof domid === "string") return domid;
  request.session.state.release(domid);
  return OK;
}

/** Shutting down is not ours to notice, so there is nothing to take back. */
function resume(request: Request): Answer {
  const domid = introducedDomain(request);
  if (typeof domid === "string") return domid;
  request.session.state.domains.get(domid).shutdown = false;
  return OK;
}

function setTarget({ session, strings }: Request): Answer {
  const domid = domidOf(strings[0]);
  const target = domidOf(strings[1]);
  if (domid === undefined || target === undefined) return "EINVAL";
  const { domains } = session.state;
  if (!domains.isIntroduced(domid) || !domains.isIntroduced(target)) return "ENOENT";
  domains.get(domid).target = target;
  return OK;
}

function getDomainPath({ only }: Request): Answer {
  const domid = domidOf(only);
  return domid === undefined ? "EINVAL" : encodeXenStoreStrings([domainPath(domid)]);
}

function isDomainIntroduced({ session, only }: Request): Answer {
  const domid = domidOf(only);
  if (domid === undefined) return "EINVAL";
  const known = domid === DOMID_SELF || session.state.domains.isIntroduced(domid);
  return encodeXenStoreStrings([known ? "T" : "F"]);
}

function control({ session, strings }: Request): Answer {
  if (strings[0] === "help") return encodeXenStoreStrings(["check help"]);
  if (strings[0] !== "check") return "EINVAL";
  return encodeXenStoreStrings([checkTree(session.state.tree)]);
}

/** Whether what the tree keeps beside its nodes agrees with them. */
function checkTree(tree: Tree): string {
  const owned = new Map<number, number>();
  for (const path of ["/", "@introduceDomain", "@releaseDomain"]) {
    for (const { node } of tree.below(path)) {
      const [{ domid }] = node.permissions;
      owned.set(domid, (owned.get(domid) ?? 0) + 1);
    }
  }
  const wrong = [...owned].filter(([domid, count]) => tree.owned(domid) !== count);
  return wrong.length === 0 ? "OK" : `nodes of domains ${wrong.map(([domid]) => domid)} miscounted`;
}
