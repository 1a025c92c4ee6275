/**
 * An image on this machine, opened and looked at: a raw file or a block device (open(2), block/file-posix.c of QEMU
 * for the locks, sysfs-block for devices). Every way in which that fails is one line that says what to do.
 *
 * Invariant: nothing here creates, truncates or writes the image.
 */
import { close, constants, fstat, open as openCallback, type Stats } from "node:fs";
import { open, readdir, readFile, stat, statfs } from "node:fs/promises";
import { promisify } from "node:util";
import { ffi, ffiMissingReason } from "../../../io/ffi.ts";
import { ImageUse, lockImage } from "../../../io/image-lock.ts";
import { quote } from "../../../util/quote.ts";
import { formatRefusal } from "../../disk-syntax.ts";
import { type ErrnoName, errnoName, StoreError } from "../../errors.ts";
import { formatOf, PROBED_BYTES } from "../../probe.ts";

const openFile = promisify(openCallback);
const closeFile = promisify(close);
const statFile = promisify(fstat);

// <linux/magic.h>
const TMPFS_MAGIC = 0x01021994;
const RAMFS_MAGIC = 0x858458f6;
const EXT4_SUPER_MAGIC = 0xef53;
const XFS_SUPER_MAGIC = 0x58465342;
const BTRFS_SUPER_MAGIC = 0x9123683e;
const F2FS_SUPER_MAGIC = 0xf2f52010;
const OVERLAYFS_SUPER_MAGIC = 0x794c7630;
const FALLOC_FL_PUNCH_HOLE_KEEP_SIZE = 3;
const SECTOR = 512;

const LOCAL_FILE_SYSTEMS: ReadonlySet<number> = new Set([
  EXT4_SUPER_MAGIC,
  XFS_SUPER_MAGIC,
  BTRFS_SUPER_MAGIC,
  F2FS_SUPER_MAGIC,
  OVERLAYFS_SUPER_MAGIC,
]);

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
  readonly descriptor: number;
  /** The descriptor goes past the page cache (O_DIRECT). Both ways at once would not do: what one wrote to a page the
   * other has changed is lost. */
  readonly direct: boolean;
  /** What offsets and lengths are multiples of, and with O_DIRECT memory too. Bytes. */
  readonly minimum: number;
  /** What sizes are multiples of. Bytes. */
  readonly sizeUnit: number;
  /** Bytes. */
  readonly size: number;
  readonly isDevice: boolean;
  /** On tmpfs. */
  readonly inMemory: boolean;
  /** Nothing but a disk of this machine stands behind the page cache, as far as we know: no server, no other process. */
  readonly onLocalDisk: boolean;
  /** What others may not do meanwhile is locked. */
  readonly locked: boolean;
  /** Bytes of the smallest hole, or undefined where there are no holes. */
  readonly holeGranularity: number | undefined;
  /** Bytes of the file system's or device's blocks. */
  readonly blockBytes: number;
}

/** Throws a StoreError. */
export async function openImage(options: ImageOptions): Promise<Image> {
  const { path, readOnly, direct } = options;
  const descriptor = await openOrSay(options);
  try {
    const stats = await statFile(descriptor);
    const isDevice = stats.isBlockDevice();
    const device = isDevice ? await deviceFacts(stats.rdev) : undefined;
    const size = device?.size ?? stats.size;
    const under = device ?? (await deviceFacts(stats.dev));
    const minimum = isDevice || direct ? under.logicalBlock : 1;
    const sizeUnit = Math.max(SECTOR, minimum);
    await checkSize(options, size, sizeUnit, isDevice);
    if (options.lock) await lockOrSay(options, descriptor);
    const { type } = await statfs(`/proc/self/fd/${descriptor}`);
    return {
      path,
      descriptor,
      direct,
      minimum,
      sizeUnit,
      size,
      isDevice,
      inMemory: !isDevice && (type === TMPFS_MAGIC || type === RAMFS_MAGIC),
      onLocalDisk: isDevice || LOCAL_FILE_SYSTEMS.has(type),
      locked: options.lock && ffi() !== undefined,
      holeGranularity: readOnly ? undefined : device ? device.discard : holesOf(descriptor, stats),
      blockBytes: device?.logicalBlock ?? stats.blksize,
      [Symbol.asyncDispose]: () => closeFile(descriptor),
    };
  } catch (error) {
    await closeFile(descriptor);
    throw error;
  }
}

async function openOrSay(options: ImageOptions): Promise<number> {
  const { path, readOnly, direct, lock } = options;
  const mode = readOnly ? constants.O_RDONLY : constants.O_RDWR;
  let stats: Stats | undefined;
  try {
    // Looked at before it is opened: a FIFO would wait for its other end, and O_NONBLOCK against that would make
    // io_uring answer EAGAIN where a file system cannot promise not to wait.
    stats = await stat(path);
    if (stats.isDirectory()) throw new StoreError("EISDIR", `${path} is a directory, not a disk`);
    if (!stats.isFile() && !stats.isBlockDevice()) {
      throw new StoreError("EINVAL", `${path} is neither a file nor a block device`);
    }
    if (direct && ffi() === undefined) {
      const why = `it aligns memory by its address, and ${ffiMissingReason()}`;
      throw new StoreError("EOPNOTSUPP", `cache=none needs foreign calls: ${why}`);
    }
    // The kernel then refuses a device that is mounted, and refuses to mount it.
    const alone = stats.isBlockDevice() && !readOnly && lock ? constants.O_EXCL : 0;
    return await openFile(path, mode | alone | (direct ? constants.O_DIRECT : 0));
  } catch (cause) {
    if (cause instanceof StoreError) throw cause;
    throw await openError(options, stats, cause as NodeJS.ErrnoException);
  }
}

async function openError(
  { path, readOnly, direct }: ImageOptions,
  stats: Stats | undefined,
  cause: NodeJS.ErrnoException,
): Promise<StoreError> {
  const { code } = cause;
  const say = (name: ErrnoName, message: string) => new StoreError(name, message, { cause });
  if (code === "ENOENT" || code === "ENOTDIR") {
    return say(
      "ENOENT",
      `there is no ${path}; to make a disk of 1G: truncate -s 1G ${quote(path)}`,
    );
  }
  if (!readOnly && (code === "EACCES" || code === "EPERM" || code === "EROFS")) {
    const readable = await openFile(path, constants.O_RDONLY).then(
      (descriptor) => closeFile(descriptor).then(() => true),
      () => false,
    );
    if (readable) return say("EROFS", `${path} is not writable; serve it read-only with -r`);
  }
  if (code === "EBUSY") {
    const here = stats !== undefined && (await isLockedHere(stats, -1));
    return say("EBUSY", `${path} is in use: ${here ? HERE : "mounted, or part of a device"}`);
  }
  if (code === "EACCES") return say("EACCES", `no permission to open ${path}`);
  if (code === "EINVAL" && direct) {
    return say("EOPNOTSUPP", `${path} cannot be opened with O_DIRECT; leave out cache=none`);
  }
  return asStoreError(cause, `cannot open ${path}`);
}

async function checkSize(
  { path, direct }: ImageOptions,
  size: number,
  unit: number,
  isDevice: boolean,
): Promise<void> {
  if (size === 0) {
    const remedy = isDevice ? "it has no medium" : `give it a size: truncate -s 1G ${quote(path)}`;
    throw new StoreError("EINVAL", `${path} is empty; ${remedy}`);
  }
  if (size % unit === 0) return;
  // Filling up an image of a format would help nobody.
  const format = await formatAt(path);
  if (format !== undefined) throw formatRefusal(path, format, false);
  const blocks = unit === SECTOR ? "512-byte sectors" : `blocks of ${unit} bytes`;
  const why = direct && size % SECTOR === 0 ? ", which cache=none needs" : "";
  const whole = Math.ceil(size / unit) * unit;
  const remedy = `to fill it up: truncate -s ${whole} ${quote(path)}`;
  throw new StoreError(
    "EINVAL",
    `${path} has ${size} bytes, no whole number of ${blocks}${why}; ${remedy}`,
  );
}

/** The format that the image's first bytes tell of; undefined also where they cannot be read. */
async function formatAt(path: string): Promise<string | undefined> {
  try {
    await using file = await open(path);
    const { buffer, bytesRead } = await file.read({
      buffer: Buffer.alloc(PROBED_BYTES),
      position: 0,
    });
    return formatOf(buffer.subarray(0, bytesRead));
  } catch {
    return undefined;
  }
}

async function lockOrSay(options: ImageOptions, descriptor: number): Promise<void> {
  const { path, readOnly, shared } = options;
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
  const here = await isLockedHere(await statFile(descriptor), descriptor);
  throw new StoreError("EBUSY", `${path} is in use: ${here ? HERE : conflict}`);
}

const HERE = "this process has it open already; a disk is served once";

/** Whether a descriptor of this process (of any thread) other than `own` holds a lock on that file. */
async function isLockedHere({ dev, ino }: Stats, own: number): Promise<boolean> {
  for (const name of await readdir("/proc/self/fd").catch(() => [])) {
    if (Number(name) === own) continue;
    // A descriptor may be closed by now.
    const other = await stat(`/proc/self/fd/${name}`).catch(() => undefined);
    if (other?.dev !== dev || other.ino !== ino) continue;
    const facts = await readFile(`/proc/self/fdinfo/${name}`, "latin1").catch(() => "");
    if (/^lock:.*OFDLCK/m.test(facts)) return true;
  }
  return false;
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

/** Bytes of whole blocks that an open image has now. */
export async function imageSize({ descriptor, isDevice, sizeUnit }: Image): Promise<number> {
  const stats = await statFile(descriptor);
  const size = isDevice ? (await deviceFacts(stats.rdev)).size : stats.size;
  return size - (size % sizeUnit);
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
