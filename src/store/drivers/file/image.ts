/**
 * An image on this machine, opened and looked at: a raw file or a block device (open(2), block/file-posix.c of QEMU
 * for the locks, sysfs-block for devices). Every way in which that fails is one line that says what to do.
 *
 * Invariant: nothing here creates, truncates or writes the image.
 */
import { close, constants, fstat, open, type Stats } from "node:fs";
import { readFile, stat, statfs } from "node:fs/promises";
import { promisify } from "node:util";
import { ffi, ffiMissingReason } from "../../../io/ffi.ts";
import { ImageUse, lockImage } from "../../../io/image-lock.ts";
import { type ErrnoName, errnoName, StoreError } from "../../errors.ts";

const openFile = promisify(open);
const closeFile = promisify(close);
const statFile = promisify(fstat);

// <linux/magic.h>
const TMPFS_MAGIC = 0x01021994;
const RAMFS_MAGIC = 0x858458f6;
const FALLOC_FL_PUNCH_HOLE_KEEP_SIZE = 3;
const SECTOR = 512;

export interface ImageOptions {
  readonly path: string;
  readonly readOnly: boolean;
  /** Go past the page cache. */
  readonly direct: boolean;
  readonly lock: boolean;
  /** A reader lets others write. */
  readonly shared: boolean;
}

export interface Image extends AsyncDisposable {
  readonly path: string;
  /** Through the page cache. */
  readonly descriptor: number;
  /** With O_DIRECT, where that was asked for. */
  readonly directDescriptor: number | undefined;
  /** What O_DIRECT wants of offsets, lengths and memory. Bytes. */
  readonly directAlignment: number;
  /** Bytes. */
  readonly size: number;
  readonly isDevice: boolean;
  /** On tmpfs. */
  readonly inMemory: boolean;
  /** What others may not do meanwhile is locked. */
  readonly locked: boolean;
  /** Bytes of the smallest hole, or undefined where there are no holes. */
  readonly holeGranularity: number | undefined;
  /** Bytes of the file system's or device's blocks. */
  readonly blockBytes: number;
}

/** Throws a StoreError. */
export async function openImage(options: ImageOptions): Promise<Image> {
  const { path, readOnly } = options;
  const descriptors: number[] = [];
  const release = async () => {
    for (const descriptor of descriptors.splice(0)) await closeFile(descriptor);
  };
  try {
    const mode = readOnly ? constants.O_RDONLY : constants.O_RDWR;
    const descriptor = await openOrSay(options, mode);
    descriptors.push(descriptor);
    const stats = await statFile(descriptor);
    const isDevice = stats.isBlockDevice();
    const device = isDevice ? await deviceFacts(stats.rdev) : undefined;
    const size = device?.size ?? stats.size;
    checkSize(path, size, isDevice);
    if (options.lock) lockOrSay(options, descriptor);
    let directDescriptor: number | undefined;
    if (options.direct) {
      directDescriptor = await openDirect(path, descriptor, mode);
      descriptors.push(directDescriptor);
    }
    const { type } = await statfs(`/proc/self/fd/${descriptor}`);
    const under = device ?? (await deviceFacts(stats.dev));
    return {
      path,
      descriptor,
      directDescriptor,
      directAlignment: under.logicalBlock,
      size,
      isDevice,
      inMemory: !isDevice && (type === TMPFS_MAGIC || type === RAMFS_MAGIC),
      locked: options.lock && ffi() !== undefined,
      holeGranularity: readOnly ? undefined : device ? device.discard : holesOf(descriptor, stats),
      blockBytes: device?.logicalBlock ?? stats.blksize,
      [Symbol.asyncDispose]: release,
    };
  } catch (error) {
    await release();
    throw error;
  }
}

async function openOrSay({ path, readOnly, lock }: ImageOptions, mode: number): Promise<number> {
  try {
    // Looked at before it is opened: a FIFO would wait for its other end, and O_NONBLOCK against that would make
    // io_uring answer EAGAIN where a file system cannot promise not to wait.
    const stats = await stat(path);
    if (stats.isDirectory()) throw new StoreError("EISDIR", `${path} is a directory, not a disk`);
    if (!stats.isFile() && !stats.isBlockDevice()) {
      throw new StoreError("EINVAL", `${path} is neither a file nor a block device`);
    }
    // The kernel then refuses a device that is mounted, and refuses to mount it.
    const alone = stats.isBlockDevice() && !readOnly && lock ? constants.O_EXCL : 0;
    return await openFile(path, mode | alone);
  } catch (cause) {
    if (cause instanceof StoreError) throw cause;
    const { code } = cause as NodeJS.ErrnoException;
    const say = (name: ErrnoName, message: string) => new StoreError(name, message, { cause });
    if (code === "ENOENT" || code === "ENOTDIR") {
      throw say("ENOENT", `there is no ${path}; to make a disk of 1G: truncate -s 1G ${path}`);
    }
    if (!readOnly && (code === "EACCES" || code === "EPERM" || code === "EROFS")) {
      const readable = await openFile(path, constants.O_RDONLY).then(
        (descriptor) => closeFile(descriptor).then(() => true),
        () => false,
      );
      if (readable) throw say("EROFS", `${path} is not writable; serve it read-only with -r`);
    }
    if (code === "EBUSY") throw say("EBUSY", `${path} is in use: mounted, or part of a device`);
    if (code === "EACCES") throw say("EACCES", `no permission to open ${path}`);
    throw asStoreError(cause, `cannot open ${path}`);
  }
}

/** The same image once more, whatever its path names by now. */
async function openDirect(path: string, descriptor: number, mode: number): Promise<number> {
  if (ffi() === undefined) {
    const why = `it aligns memory by its address, and ${ffiMissingReason()}`;
    throw new StoreError("EOPNOTSUPP", `cache=none needs foreign calls: ${why}`);
  }
  try {
    return await openFile(`/proc/self/fd/${descriptor}`, mode | constants.O_DIRECT);
  } catch (cause) {
    throw new StoreError(
      "EOPNOTSUPP",
      `${path} cannot be opened with O_DIRECT; leave out cache=none`,
      { cause },
    );
  }
}

function checkSize(path: string, size: number, isDevice: boolean): void {
  if (size === 0) {
    const remedy = isDevice ? "it has no medium" : `give it a size: truncate -s 1G ${path}`;
    throw new StoreError("EINVAL", `${path} is empty; ${remedy}`);
  }
  if (size % SECTOR !== 0) {
    const whole = Math.ceil(size / SECTOR) * SECTOR;
    throw new StoreError(
      "EINVAL",
      `${path} has ${size} bytes, no whole number of 512-byte sectors; to fill it up: truncate -s ${whole} ${path}`,
    );
  }
}

function lockOrSay({ path, readOnly, shared }: ImageOptions, descriptor: number): void {
  const calls = ffi();
  if (calls === undefined) return;
  const { consistentRead, write, resize } = ImageUse;
  const uses = readOnly ? consistentRead : consistentRead | write;
  const bars = readOnly && shared ? 0 : write | resize;
  let conflict: string | undefined;
  try {
    conflict = lockImage(calls, descriptor, uses, bars);
  } catch (cause) {
    throw asStoreError(cause, `cannot lock ${path}; to go without: lock=off`);
  }
  if (conflict === undefined) return;
  throw new StoreError("EBUSY", `${path} is in use: ${conflict}`);
}

interface DeviceFacts {
  readonly size: number;
  readonly logicalBlock: number;
  /** Bytes, or undefined where the device discards nothing. */
  readonly discard: number | undefined;
}

/** What sysfs knows of a device number; what it does not know is a careful guess. */
async function deviceFacts(device: number): Promise<DeviceFacts> {
  // gnu_dev_major and gnu_dev_minor of <sys/sysmacros.h>, for the numbers that fit 32 bits.
  const major = (device >>> 8) & 0xfff;
  const minor = (device & 0xff) | ((device >>> 12) & 0xfff00);
  const directory = `/sys/dev/block/${major}:${minor}`;
  const number = async (...names: string[]): Promise<number | undefined> => {
    for (const name of names) {
      const text = await readFile(`${directory}/${name}`, "latin1").catch(() => undefined);
      if (text !== undefined) return Number(text);
    }
    return undefined;
  };
  // A partition has no queue of its own.
  const queue = (name: string) => number(`queue/${name}`, `../queue/${name}`);
  const discards = ((await queue("discard_max_bytes")) ?? 0) > 0 && ffi() !== undefined;
  return {
    size: ((await number("size")) ?? 0) * SECTOR,
    logicalBlock: (await queue("logical_block_size")) ?? 4096,
    discard: discards ? ((await queue("discard_granularity")) ?? SECTOR) : undefined,
  };
}

/** Bytes of whole sectors that an open image has now. */
export async function imageSize({ descriptor, isDevice }: Image): Promise<number> {
  const stats = await statFile(descriptor);
  const size = isDevice ? (await deviceFacts(stats.rdev)).size : stats.size;
  return size - (size % SECTOR);
}

/** Asks the file system by punching a hole beyond the end of the file, where there is nothing. */
function holesOf(descriptor: number, { size, blksize }: Stats): number | undefined {
  const beyond = Math.ceil(size / blksize) * blksize;
  const mode = FALLOC_FL_PUNCH_HOLE_KEEP_SIZE;
  return ffi()?.fallocate(descriptor, mode, beyond, blksize) === 0 ? blksize : undefined;
}

/** The error of a system call, as one line after `what`. */
export function asStoreError(cause: unknown, what: string): StoreError {
  if (cause instanceof StoreError) return cause;
  const { errno } = cause as NodeJS.ErrnoException;
  const message = cause instanceof Error ? cause.message : String(cause);
  return new StoreError(errnoName(-(errno ?? 0)), `${what}: ${message}`, { cause });
}
