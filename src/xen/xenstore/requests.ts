/**
 * Requests of the wire and their answers (docs/misc/xenstore.txt; the table of process_message in the C daemon).
 *
 * Invariant: whatever the payload, the answer is a payload or the name of an error; nothing a client sends throws.
 */
import {
  decodeXenStoreStrings,
  encodeXenStoreStrings,
  XENSTORE_PAYLOAD_MAX,
  XENSTORE_SERVER_FEATURE_WATCHDEPTH,
  type XenStoreMessage,
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_DOMAIN_PATH,
  XS_GET_FEATURE,
  XS_GET_PERMS,
  XS_GET_QUOTA,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_FEATURE,
  XS_SET_PERMS,
  XS_SET_QUOTA,
  XS_SET_TARGET,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
  type XsdError,
} from "../../wire/xenstore.ts";
import { control } from "./control.ts";
import {
  getDomainPath,
  getFeature,
  getQuota,
  introduce,
  isDomainIntroduced,
  release,
  resume,
  setFeature,
  setQuota,
  setTarget,
} from "./domain-requests.ts";
import { findNode, makeDirectory, removeNode, setNodePermissions, writeNode } from "./nodes.ts";
import { canonicalPath, domainPath } from "./paths.ts";
import {
  formatPermission,
  isPrivileged,
  parsePermission,
  READ,
  withoutDomains,
} from "./permissions.ts";
import { type Answer, numberOf, OK, type Request } from "./request.ts";
import { type Session, watchBytes } from "./session.ts";
import type { View } from "./view.ts";

interface Handler {
  readonly answer: (request: Request) => Answer;
  /** For domain 0 alone. */
  readonly privileged?: true;
  /** The transaction id is not looked at. */
  readonly outside?: true;
}

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
  [XS_GET_FEATURE, { answer: getFeature }],
  [XS_SET_FEATURE, { answer: setFeature, privileged: true }],
  [XS_GET_QUOTA, { answer: getQuota, privileged: true }],
  [XS_SET_QUOTA, { answer: setQuota, privileged: true }],
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
  transaction?.beginRequest();
  const answer = handler.answer(readRequest(session, view, message));
  if (transaction?.refusal !== undefined) return transaction.refusal;
  const tooLong = answer instanceof Uint8Array && answer.length > XENSTORE_PAYLOAD_MAX;
  return tooLong ? "E2BIG" : answer;
}

function readRequest(session: Session, view: View, message: XenStoreMessage): Request {
  const { transactionId, payload } = message;
  const strings = decodeXenStoreStrings(payload);
  const whole = strings.length === 1 && payload[payload.length - 1] === 0;
  const actor = { subject: session.subject, view };
  const only = whole ? strings[0] : undefined;
  return { session, actor, transactionId, payload, strings, only };
}

function pathOf(
  { session }: Request,
  text: string | undefined,
  special = false,
): string | undefined {
  if (text === undefined) return undefined;
  const characters = session.subject.limit("pathCharacters");
  // Most requests name a node that was named before.
  const known = text.startsWith("/") && session.state.tree.remembers(text);
  if (known && text.length <= characters) return text;
  return canonicalPath(text, session.subject.domid, special, characters);
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
    writeNode(request.actor, path, new Uint8Array(request.payload.subarray(text.length + 1))),
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
  const { subject, state } = request.session;
  const [text, ...words] = request.strings;
  if (!isPrivileged(subject) && words.length > subject.limit("permissions")) return "ENOSPC";
  const parsed = words.map(parsePermission).filter((permission) => permission !== undefined);
  const [owner, ...others] = parsed;
  if (owner === undefined || parsed.length !== words.length) return "EINVAL";
  const exists = (domid: number): boolean => state.domains.exists(domid);
  if (!exists(owner.domid)) return "ENOENT";
  const path = pathOf(request, text, true);
  if (path === undefined) return "EINVAL";
  // What is given to a domain that does not exist would be inherited by a later one of that number.
  return done(setNodePermissions(request.actor, path, withoutDomains([owner, ...others], exists)));
}

/** PATH, TOKEN and, in the newer protocol, DEPTH. */
function watch(request: Request): Answer {
  const { session } = request;
  const { subject, state } = session;
  const [text = "", token = "", ...others] = request.strings;
  const path = pathOf(request, text, true);
  const depth = numberOf(others[0]);
  const deep = (subject.features & XENSTORE_SERVER_FEATURE_WATCHDEPTH) !== 0;
  const known = others.length === 0 || (deep && others.length === 1 && depth !== undefined);
  if (request.strings.length < 2 || !known || path === undefined) return "EINVAL";
  if (session.hasWatch(path, token)) return "EEXIST";
  if (!isPrivileged(subject)) {
    if (subject.watches > subject.limit("watches")) return "E2BIG";
    const bytes = state.tree.ownedBytes(subject.domid) + subject.watchBytes;
    if (bytes + watchBytes({ path, token }) > subject.limit("memoryBytes")) return "ENOMEM";
  }
  const prefix = /^[/@]/.test(text) ? "" : `${domainPath(subject.domid)}/`;
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
  const { subject } = session;
  if (transactionId !== 0) return "EBUSY";
  if (!isPrivileged(subject) && subject.transactions > subject.limit("transactions")) {
    return "ENOSPC";
  }
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
  const changes = transaction.commit(state.tree, state.watches);
  if (changes === "EAGAIN") state.chargeConflict(subject.domid, transaction.culprits);
  if (typeof changes === "string") return changes;
  const bounded = !isPrivileged(subject);
  state.watches.fireAll(changes, bounded ? state.limits.commitPathBytes : Number.POSITIVE_INFINITY);
  return OK;
}
