/**
 * What changes in a xenstore, as bytes: the operations that a record of the state's file holds (docs/xenstore.md).
 *
 * Invariant: whatever the bytes, reading them gives operations whose fields have their types, or throws
 * XenError("EINVAL") with what is wrong; nothing is allocated for a length that the record does not have.
 */
import { decodeXenStoreText } from "../../wire/xenstore.ts";
import { XenError } from "../domain.ts";
import { type DomainLimits, quotas } from "./limits.ts";
import type { Permissions } from "./permissions.ts";

/** The first byte of an operation. */
const Type = {
  create: 1,
  value: 2,
  permissions: 3,
  remove: 4,
  domain: 5,
  forget: 6,
  limit: 7,
  watch: 8,
  unwatch: 9,
  ring: 10,
  sent: 11,
  disconnect: 12,
  generation: 13,
  complete: 14,
} as const;

export interface KeptWatch {
  readonly path: string;
  readonly token: string;
  readonly prefix: string;
  readonly depth: number | undefined;
}

export interface KeptDomain {
  readonly domid: number;
  readonly introduced: boolean;
  readonly shutdown: boolean;
  readonly target: number | undefined;
  readonly features: number;
  /** Of its xenstore ring; 0 where it has none. */
  readonly port: number;
  readonly limits: readonly (readonly [keyof DomainLimits, number])[];
}

/** Where the connection of a ring has got to. */
export interface RingState {
  /** What was read of the requests: an index of the ring. */
  readonly consumed: number;
  /** Of that, what was not carried out yet. */
  readonly rest: Uint8Array;
  /** Events of its watches wait. */
  readonly behind: boolean;
  readonly transactions: readonly number[];
  /** Answers, each a whole message, that wait behind those that earlier operations have. */
  readonly answers: readonly Uint8Array[];
}

/** What went to a ring: all that went before has left. */
export interface SentState {
  /** Answers that waited and are part of it. */
  readonly answers: number;
  /** Where it begins: an index of the ring. */
  readonly start: number;
  readonly bytes: Uint8Array;
}

export type Operation =
  | {
      readonly type: "create";
      readonly path: string;
      readonly permissions: Permissions;
      readonly value: Uint8Array;
    }
  | { readonly type: "value"; readonly path: string; readonly value: Uint8Array }
  | { readonly type: "permissions"; readonly path: string; readonly permissions: Permissions }
  | { readonly type: "remove"; readonly path: string }
  | ({ readonly type: "domain" } & KeptDomain)
  | { readonly type: "forget"; readonly domid: number }
  | { readonly type: "limit"; readonly name: keyof DomainLimits; readonly value: number }
  | ({ readonly type: "watch"; readonly domid: number } & KeptWatch)
  | {
      readonly type: "unwatch";
      readonly domid: number;
      readonly path: string;
      readonly token: string;
    }
  | ({ readonly type: "ring"; readonly domid: number } & RingState)
  | ({ readonly type: "sent"; readonly domid: number } & SentState)
  | { readonly type: "disconnect"; readonly domid: number }
  | { readonly type: "generation"; readonly generation: number }
  | { readonly type: "complete" };

const accesses = ["none", "read", "write", "both"] as const;
/** Of an entry whose domain is gone. */
const GONE = 0x80;
const NO_DEPTH = 0xffff_ffff;
const INTRODUCED = 1;
const SHUTDOWN = 2;
const TARGETED = 4;
const BEHIND = 1;

const FIRST_BYTES = 16 * 1024;

/** Gathers operations, one after the other. */
export class OperationWriter {
  #bytes: Buffer = Buffer.allocUnsafe(FIRST_BYTES);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Those gathered since; they are overwritten by the next. */
  take(): Uint8Array {
    const taken = this.#bytes.subarray(0, this.#length);
    this.#length = 0;
    return taken;
  }

  create(path: string, permissions: Permissions, value: Uint8Array): void {
    this.#byte(Type.create);
    this.#text(path);
    this.#permissions(permissions);
    this.#data(value);
  }

  setValue(path: string, value: Uint8Array): void {
    this.#byte(Type.value);
    this.#text(path);
    this.#data(value);
  }

  setPermissions(path: string, permissions: Permissions): void {
    this.#byte(Type.permissions);
    this.#text(path);
    this.#permissions(permissions);
  }

  remove(path: string): void {
    this.#byte(Type.remove);
    this.#text(path);
  }

  domain({ domid, introduced, shutdown, target, features, port, limits }: KeptDomain): void {
    this.#about(Type.domain, domid);
    const targeted = target === undefined ? 0 : TARGETED;
    this.#byte((introduced ? INTRODUCED : 0) | (shutdown ? SHUTDOWN : 0) | targeted);
    this.#word(target ?? 0);
    this.#word(features);
    this.#word(port);
    this.#byte(limits.length);
    for (const [name, value] of limits) this.#limit(name, value);
  }

  forget(domid: number): void {
    this.#about(Type.forget, domid);
  }

  limit(name: keyof DomainLimits, value: number): void {
    this.#byte(Type.limit);
    this.#limit(name, value);
  }

  watch(domid: number, { path, token, prefix, depth }: KeptWatch): void {
    this.#about(Type.watch, domid);
    this.#text(path);
    this.#text(token);
    this.#text(prefix);
    this.#word(depth ?? NO_DEPTH);
  }

  unwatch(domid: number, path: string, token: string): void {
    this.#about(Type.unwatch, domid);
    this.#text(path);
    this.#text(token);
  }

  ring(domid: number, { consumed, rest, behind, transactions, answers }: RingState): void {
    this.#about(Type.ring, domid);
    this.#word(consumed);
    this.#byte(behind ? BEHIND : 0);
    this.#data(rest);
    this.#word(transactions.length);
    for (const id of transactions) this.#word(id);
    this.#word(answers.length);
    for (const answer of answers) this.#data(answer);
  }

  sent(domid: number, { answers, start, bytes }: SentState): void {
    this.#about(Type.sent, domid);
    this.#word(answers);
    this.#word(start);
    this.#data(bytes);
  }

  disconnect(domid: number): void {
    this.#about(Type.disconnect, domid);
  }

  generation(generation: number): void {
    this.#byte(Type.generation);
    this.#double(generation);
  }

  complete(): void {
    this.#byte(Type.complete);
  }

  #about(type: number, domid: number): void {
    this.#byte(type);
    this.#word(domid);
  }

  #limit(name: keyof DomainLimits, value: number): void {
    this.#byte(quotas.findIndex(({ limit }) => limit === name));
    this.#double(value);
  }

  #permissions(permissions: Permissions): void {
    this.#word(permissions.length);
    for (const { domid, access, gone } of permissions) {
      this.#word(domid);
      this.#byte(accesses.indexOf(access) | (gone === true ? GONE : 0));
    }
  }

  #text(text: string): void {
    this.#word(text.length);
    const at = this.#room(text.length);
    this.#bytes.write(text, at, "latin1");
  }

  #data(bytes: Uint8Array): void {
    this.#word(bytes.length);
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  #byte(value: number): void {
    const at = this.#room(1);
    this.#bytes[at] = value;
  }

  #word(value: number): void {
    const at = this.#room(4);
    this.#bytes.writeUInt32LE(value, at);
  }

  #double(value: number): void {
    const at = this.#room(8);
    this.#bytes.writeDoubleLE(value, at);
  }

  /** Where so many more bytes begin. */
  #room(bytes: number): number {
    const at = this.#length;
    this.#length += bytes;
    if (this.#length > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(this.#length * 2);
      larger.set(this.#bytes.subarray(0, at));
      this.#bytes = larger;
    }
    return at;
  }
}

/** The operations of one record. */
export function readOperations(bytes: Buffer): Operation[] {
  const reader = new Reader(bytes);
  const operations: Operation[] = [];
  while (!reader.atEnd) operations.push(readOperation(reader));
  return operations;
}

function readOperation(reader: Reader): Operation {
  const type = reader.byte();
  switch (type) {
    case Type.create: {
      const [path, permissions] = [reader.text(), reader.permissions()];
      return { type: "create", path, permissions, value: reader.data() };
    }
    case Type.value:
      return { type: "value", path: reader.text(), value: reader.data() };
    case Type.permissions:
      return { type: "permissions", path: reader.text(), permissions: reader.permissions() };
    case Type.remove:
      return { type: "remove", path: reader.text() };
    case Type.domain:
      return { type: "domain", ...readDomain(reader) };
    case Type.forget:
      return { type: "forget", domid: reader.domid() };
    case Type.limit: {
      const [name, value] = reader.limit();
      return { type: "limit", name, value };
    }
    case Type.watch: {
      const domid = reader.domid();
      const [path, token, prefix] = [reader.text(), reader.text(), reader.text()];
      const depth = reader.word();
      const levels = depth === NO_DEPTH ? undefined : depth;
      return { type: "watch", domid, path, token, prefix, depth: levels };
    }
    case Type.unwatch: {
      const domid = reader.domid();
      return { type: "unwatch", domid, path: reader.text(), token: reader.text() };
    }
    case Type.ring: {
      const [domid, consumed, flags] = [reader.domid(), reader.word(), reader.byte()];
      if (flags > BEHIND) throw malformed("unknown flags of a ring");
      const rest = reader.data();
      const transactions = reader.many(4, () => reader.word());
      const answers = reader.many(4, () => reader.data());
      const behind = flags === BEHIND;
      return { type: "ring", domid, consumed, rest, behind, transactions, answers };
    }
    case Type.sent: {
      const [domid, answers, start] = [reader.domid(), reader.word(), reader.word()];
      return { type: "sent", domid, answers, start, bytes: reader.data() };
    }
    case Type.disconnect:
      return { type: "disconnect", domid: reader.domid() };
    case Type.generation:
      return { type: "generation", generation: reader.double() };
    case Type.complete:
      return { type: "complete" };
    default:
      throw malformed(`an operation ${type}`);
  }
}

function readDomain(reader: Reader): KeptDomain {
  const [domid, flags] = [reader.domid(), reader.byte()];
  if (flags > (INTRODUCED | SHUTDOWN | TARGETED)) throw malformed("unknown flags of a domain");
  const [target, features, port] = [reader.domid(), reader.word(), reader.word()];
  const limits: [keyof DomainLimits, number][] = [];
  for (let left = reader.byte(); left > 0; left--) limits.push(reader.limit());
  return {
    ...{ domid, features, port, limits },
    introduced: (flags & INTRODUCED) !== 0,
    shutdown: (flags & SHUTDOWN) !== 0,
    target: flags & TARGETED ? target : undefined,
  };
}

class Reader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get atEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  byte(): number {
    return this.#bytes[this.#take(1)]!;
  }

  word(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  double(): number {
    return this.#bytes.readDoubleLE(this.#take(8));
  }

  domid(): number {
    const domid = this.word();
    if (domid > 0xffff) throw malformed(`a domain ${domid}`);
    return domid;
  }

  text(): string {
    return decodeXenStoreText(this.#view());
  }

  /** A copy: the record that it is part of is not kept. */
  data(): Uint8Array {
    return Uint8Array.from(this.#view());
  }

  limit(): [keyof DomainLimits, number] {
    const [quota, value] = [quotas[this.byte()], this.double()];
    if (quota === undefined || !(value > 0)) throw malformed("a limit");
    return [quota.limit, value];
  }

  permissions(): Permissions {
    const [owner, ...others] = this.many(5, () => {
      const [domid, bits] = [this.domid(), this.byte()];
      const access = accesses[bits & ~GONE];
      if (access === undefined) throw malformed("a permission");
      return bits & GONE ? ({ domid, access, gone: true } as const) : { domid, access };
    });
    if (owner === undefined) throw malformed("a node without an owner");
    return [owner, ...others];
  }

  /** As many as a word says, each of `bytes` at least. */
  many<T>(bytes: number, read: () => T): T[] {
    const count = this.word();
    if (count * bytes > this.#bytes.length - this.#at) throw malformed("a number that is too high");
    return Array.from({ length: count }, read);
  }

  #view(): Buffer {
    const length = this.word();
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  #take(bytes: number): number {
    const at = this.#at;
    if (bytes > this.#bytes.length - at) throw malformed("a length that is too high");
    this.#at += bytes;
    return at;
  }
}

/** A record whose check sum is right and that makes no sense all the same. */
export function malformed(what: string): XenError {
  return new XenError("EINVAL", what);
}
