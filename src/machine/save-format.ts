/**
 * The stream of a saved guest, byte for byte as docs/save-format.md has it: a header, then records, each with its number
 * and a check sum, the last one an end. The order and the framing are after Xen's own (libxc-migration-stream).
 *
 * Invariant: whatever the bytes, reading gives a record that was checked, or throws XenError("EINVAL") with what is wrong;
 * nothing is allocated for a length that is over its limit.
 */
import { crc32 } from "node:zlib";
import { MAX_REQUEST_BYTES, type OutstandingRequest } from "../block/index.ts";
import { Operation } from "../store/block-store.ts";
import { PAGE_SIZE, XenError, type XenStorePermission } from "../xen/domain.ts";

const MAGIC = "vbdksave";
const VERSION = 1;
const HEADER_BYTES = 16;
const RECORD_HEADER_BYTES = 16;
/** Pages of one record: what is read or written at once. */
export const PAGES_PER_RECORD = 64;

export const RecordType = {
  guest: 1,
  run: 2,
  pages: 3,
  node: 4,
  disk: 5,
  request: 6,
  end: 7,
  answer: 8,
} as const;

/** Bytes of a body at most: what there can be of each, so that little is read before it is known to be too much. */
const MAX_BODY_BYTES: Readonly<Record<keyof typeof RecordType, number>> = {
  // 128 characters of four bytes.
  guest: 24 + 512,
  // Of the largest domain.
  run: (1 << 22) * 8,
  pages: 8 + PAGES_PER_RECORD * PAGE_SIZE,
  // A path, a value and permissions each come in a message of 4096 bytes; permissions take more room here.
  node: 4 + 3 * 4096 + 4096,
  // What it is attached as stands in the xenstore, too, and is as short there.
  disk: 65536,
  request: 24 + MAX_REQUEST_BYTES,
  end: 0,
  answer: 4096,
};

/** The domain itself. */
export interface GuestRecord {
  readonly type: "guest";
  /** The number that it had: others may name it in permissions. */
  readonly domid: number;
  readonly memoryPages: number;
  readonly grantEntries: number;
  readonly portCount: number;
  readonly maptrackEntries: number;
  readonly shared: boolean;
  /** It reaches the xenstore by a ring. */
  readonly ring: boolean;
  readonly name: string;
}

/** Pages that lie side by side, and what each is granted as. */
export interface RunRecord {
  readonly type: "run";
  /** One for each page. */
  readonly grants: readonly {
    /** 0 where the page is not granted. */
    readonly reference: number;
    readonly peer: number;
    readonly readOnly: boolean;
  }[];
}

/** What some pages of a run hold; those that no record has are zeroes. */
export interface PagesRecord {
  readonly type: "pages";
  /** Which run, from 0. */
  readonly run: number;
  /** First page in it. */
  readonly page: number;
  readonly bytes: Uint8Array;
}

export interface NodeRecord {
  readonly type: "node";
  /** Below the domain's own directory. */
  readonly path: string;
  readonly permissions: readonly XenStorePermission[];
  readonly value: Uint8Array;
}

/** A disk, as plain data that nobody has looked at yet. */
export interface DiskRecord {
  readonly type: "disk";
  readonly disk: unknown;
}

/** A request that had not been answered. */
export interface RequestRecord extends OutstandingRequest {
  readonly type: "request";
  /** Which disk, from 0. */
  readonly disk: number;
}

export interface EndRecord {
  readonly type: "end";
}

/** What the receiver of a guest says when it has it. */
export interface AnswerRecord {
  readonly type: "answer";
  /** Empty where the guest runs there; else why it does not. */
  readonly refusal: string;
}

export type SaveRecord =
  | GuestRecord
  | RunRecord
  | PagesRecord
  | NodeRecord
  | DiskRecord
  | RequestRecord
  | EndRecord
  | AnswerRecord;

const typeNames: ReadonlyMap<number, keyof typeof RecordType> = new Map(
  Object.entries(RecordType).map(([name, type]) => [type, name as keyof typeof RecordType]),
);
/** Bits of what a guest is. */
const SHARED = 1;
const RING = 2;
const accesses = ["none", "read", "write", "both"] as const;
const text = new TextDecoder("utf-8", { fatal: true });

function damaged(what: string): XenError {
  return new XenError("EINVAL", `this is no saved guest, or a damaged one: ${what}`);
}

/** Makes the bytes of a stream, in their order. */
export class RecordWriter {
  #number = 0;

  header(): Uint8Array {
    const bytes = Buffer.alloc(HEADER_BYTES);
    bytes.write(MAGIC, "latin1");
    bytes.writeUInt32LE(VERSION, 8);
    return bytes;
  }

  /** Throws XenError("E2BIG") for what no reader takes. */
  record(record: SaveRecord): Uint8Array {
    const body = encodeBody(record);
    if (body.length > MAX_BODY_BYTES[record.type]) {
      throw new XenError("E2BIG", `a ${record.type} of ${body.length} bytes cannot be saved`);
    }
    const bytes = Buffer.alloc(RECORD_HEADER_BYTES + body.length);
    bytes.writeUInt32LE(RecordType[record.type], 0);
    bytes.writeUInt32LE(body.length, 4);
    bytes.writeUInt32LE(this.#number++, 8);
    bytes.set(body, RECORD_HEADER_BYTES);
    bytes.writeUInt32LE(checkSum(bytes), 12);
    return bytes;
  }
}

/** CRC-32 of a record without the field that holds it. */
function checkSum(record: Uint8Array): number {
  return crc32(record.subarray(RECORD_HEADER_BYTES), crc32(record.subarray(0, 12)));
}

function encodeBody(record: SaveRecord): Uint8Array {
  switch (record.type) {
    case "guest": {
      const words = new Uint32Array([
        record.domid,
        record.memoryPages,
        record.grantEntries,
        record.portCount,
        record.maptrackEntries,
        (record.shared ? SHARED : 0) | (record.ring ? RING : 0),
      ]);
      return Buffer.concat([new Uint8Array(words.buffer), Buffer.from(record.name)]);
    }
    case "run": {
      const bytes = Buffer.alloc(record.grants.length * 8);
      record.grants.forEach(({ reference, peer, readOnly }, i) => {
        bytes.writeUInt32LE(reference, i * 8);
        bytes.writeUInt16LE(peer, i * 8 + 4);
        bytes.writeUInt16LE(readOnly ? 1 : 0, i * 8 + 6);
      });
      return bytes;
    }
    case "pages":
      return Buffer.concat([
        new Uint8Array(new Uint32Array([record.run, record.page]).buffer),
        record.bytes,
      ]);
    case "node": {
      const path = Buffer.from(record.path);
      const head = Buffer.alloc(4 + record.permissions.length * 4);
      head.writeUInt16LE(path.length, 0);
      head.writeUInt16LE(record.permissions.length, 2);
      record.permissions.forEach(({ domid, access }, i) => {
        head.writeUInt16LE(domid, 4 + i * 4);
        head.writeUInt16LE(accesses.indexOf(access), 6 + i * 4);
      });
      return Buffer.concat([head, path, record.value]);
    }
    case "disk":
      return Buffer.from(JSON.stringify(record.disk));
    case "request": {
      const head = Buffer.alloc(24);
      head.writeUInt32LE(record.disk, 0);
      head.writeUInt8(record.operation, 4);
      head.writeUInt8(record.ordered ? 1 : 0, 5);
      head.writeUInt16LE(record.flags, 6);
      head.writeBigUInt64LE(BigInt(record.offset), 8);
      head.writeBigUInt64LE(BigInt(record.length), 16);
      return Buffer.concat([head, record.data]);
    }
    case "end":
      return new Uint8Array(0);
    case "answer":
      return Buffer.from(record.refusal);
  }
}

/** Reads a stream from chunks of any size. What comes after the last record that was asked for is left alone. */
export class RecordReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #bytes: Buffer = Buffer.alloc(0);
  readonly #whole: boolean;
  #number = 0;

  /** `whole`: nothing may come after the end. */
  constructor(chunks: AsyncIterable<Uint8Array>, whole: boolean = false) {
    this.#chunks = chunks[Symbol.asyncIterator]();
    this.#whole = whole;
  }

  async header(): Promise<void> {
    const header = await this.#take(HEADER_BYTES);
    if (header.toString("latin1", 0, 8) !== MAGIC) throw damaged("it does not begin as one");
    const version = header.readUInt32LE(8);
    if (version !== VERSION) throw damaged(`it has version ${version}, and this is ${VERSION}`);
    if (header.readUInt32LE(12) !== 0) throw damaged("its header has unknown bits");
  }

  async next(): Promise<SaveRecord> {
    const header = await this.#take(RECORD_HEADER_BYTES);
    const length = header.readUInt32LE(4);
    const which = `record ${this.#number}`;
    const type = typeNames.get(header.readUInt32LE(0));
    if (type === undefined) throw damaged(`${which} is of no type that there is`);
    if (length > MAX_BODY_BYTES[type]) throw damaged(`${which} claims ${length} bytes`);
    const record = Buffer.concat([header, await this.#take(length)]);
    if (record.readUInt32LE(12) !== checkSum(record)) {
      throw damaged(`the check sum of ${which} is wrong`);
    }
    if (record.readUInt32LE(8) !== this.#number) throw damaged(`${which} is missing`);
    const decoded = decodeBody(type, record.subarray(RECORD_HEADER_BYTES));
    if (decoded === undefined) throw damaged(`${which} has a body that does not fit its type`);
    this.#number++;
    if (type === "end" && this.#whole && !(await this.#exhausted())) {
      throw damaged("something comes after its end");
    }
    return decoded;
  }

  async #exhausted(): Promise<boolean> {
    return this.#bytes.length === 0 && (await this.#chunks.next()).done === true;
  }

  /** Reads what is left and forgets it, so that whoever writes comes to his end. */
  async drain(): Promise<void> {
    while ((await this.#chunks.next()).done !== true);
  }

  async #take(length: number): Promise<Buffer> {
    const parts = [this.#bytes];
    let had = this.#bytes.length;
    while (had < length) {
      const { done, value } = await this.#chunks.next();
      if (done === true) throw damaged("it ends too early");
      parts.push(Buffer.from(value.buffer, value.byteOffset, value.byteLength));
      had += value.length;
    }
    const all = parts.length === 1 ? this.#bytes : Buffer.concat(parts);
    this.#bytes = all.subarray(length);
    return all.subarray(0, length);
  }
}

/** undefined where the body is not one of that type. */
function decodeBody(type: keyof typeof RecordType, body: Buffer): SaveRecord | undefined {
  switch (type) {
    case "guest":
      return decodeGuest(body);
    case "run":
      return decodeRun(body);
    case "pages":
      return decodePages(body);
    case "node":
      return decodeNode(body);
    case "disk":
      return decodeDisk(body);
    case "request":
      return decodeRequest(body);
    case "end":
      return body.length === 0 ? { type: "end" } : undefined;
    case "answer": {
      const refusal = decodeText(body);
      return refusal === undefined ? undefined : { type: "answer", refusal };
    }
  }
}

function decodeText(bytes: Uint8Array): string | undefined {
  try {
    return text.decode(bytes);
  } catch {
    return undefined;
  }
}

function decodeGuest(body: Buffer): GuestRecord | undefined {
  if (body.length < 24) return undefined;
  const name = decodeText(body.subarray(24));
  const flags = body.readUInt32LE(20);
  if (name === undefined || flags > (SHARED | RING)) return undefined;
  return {
    type: "guest",
    domid: body.readUInt32LE(0),
    memoryPages: body.readUInt32LE(4),
    grantEntries: body.readUInt32LE(8),
    portCount: body.readUInt32LE(12),
    maptrackEntries: body.readUInt32LE(16),
    shared: (flags & SHARED) !== 0,
    ring: (flags & RING) !== 0,
    name,
  };
}

function decodeRun(body: Buffer): RunRecord | undefined {
  if (body.length === 0 || body.length % 8 !== 0) return undefined;
  const grants: RunRecord["grants"][number][] = [];
  for (let at = 0; at < body.length; at += 8) {
    const flags = body.readUInt16LE(at + 6);
    if (flags > 1) return undefined;
    grants.push({
      reference: body.readUInt32LE(at),
      peer: body.readUInt16LE(at + 4),
      readOnly: flags === 1,
    });
  }
  return { type: "run", grants };
}

function decodePages(body: Buffer): PagesRecord | undefined {
  const length = body.length - 8;
  if (length <= 0 || length % PAGE_SIZE !== 0 || length > PAGES_PER_RECORD * PAGE_SIZE) {
    return undefined;
  }
  const [run, page] = [body.readUInt32LE(0), body.readUInt32LE(4)];
  return { type: "pages", run, page, bytes: body.subarray(8) };
}

function decodeNode(body: Buffer): NodeRecord | undefined {
  if (body.length < 4) return undefined;
  const pathStart = 4 + body.readUInt16LE(2) * 4;
  const valueStart = pathStart + body.readUInt16LE(0);
  if (valueStart > body.length || pathStart === 4) return undefined;
  const permissions: XenStorePermission[] = [];
  for (let at = 4; at < pathStart; at += 4) {
    const access = accesses[body.readUInt16LE(at + 2)];
    if (access === undefined) return undefined;
    permissions.push({ domid: body.readUInt16LE(at), access });
  }
  const path = decodeText(body.subarray(pathStart, valueStart));
  if (path === undefined) return undefined;
  return { type: "node", path, permissions, value: Uint8Array.from(body.subarray(valueStart)) };
}

function decodeDisk(body: Buffer): DiskRecord | undefined {
  try {
    return { type: "disk", disk: JSON.parse(text.decode(body)) };
  } catch {
    return undefined;
  }
}

const LAST_OPERATION: number = Math.max(...Object.values(Operation));

function decodeRequest(body: Buffer): RequestRecord | undefined {
  if (body.length < 24) return undefined;
  const operation = body.readUInt8(4);
  const ordered = body.readUInt8(5);
  const [offset, length] = [Number(body.readBigUInt64LE(8)), Number(body.readBigUInt64LE(16))];
  if (operation > LAST_OPERATION || ordered > 1) return undefined;
  if (!Number.isSafeInteger(offset + length)) return undefined;
  const carries = operation === Operation.write;
  if (body.length - 24 !== (carries ? length : 0)) return undefined;
  if (operation === Operation.read && length > MAX_REQUEST_BYTES) return undefined;
  return {
    type: "request",
    disk: body.readUInt32LE(0),
    operation: operation as Operation,
    ordered: ordered === 1,
    flags: body.readUInt16LE(6),
    offset,
    length,
    data: body.subarray(24),
  };
}
