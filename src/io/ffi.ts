/**
 * Foreign calls: one small face over koffi, an optional dependency, and the only file that names it.
 *
 * Functions bear the names of their man pages (section 2), take and return plain numbers, and answer -1 with
 * `errno()` where C does; addresses are below 2^47 and so exact. Invariant: everything above works, more slowly or
 * with fewer features, where `ffi()` is undefined.
 */
import { createRequire } from "node:module";
import { getSystemErrorMessage, getSystemErrorName } from "node:util";

/** A watch of the event loop on a descriptor. It must stay referenced, or it is collected and watches no more. */
export interface PollHandle {
  close(): void;
  ref(): void;
  unref(): void;
}

export interface Ffi {
  /** Returns the address, or -1. */
  mmap(
    address: number,
    length: number,
    protection: number,
    flags: number,
    descriptor: number,
    offset: number,
  ): number;
  munmap(address: number, length: number): number;
  memfdCreate(name: string, flags: number): number;
  ftruncate(descriptor: number, length: number): number;
  /** `argument` is a number or an address, as the command wants. */
  fcntl(descriptor: number, command: number, argument: number): number;
  /** `argument` is a number or an address, as the request wants. */
  ioctl(descriptor: number, request: number, argument: number): number;
  /** The same in a thread of its own, for requests that take a disk's time. Calls back with the result; the errno is
   * lost. The argument's memory must live until then. */
  ioctlLater(
    descriptor: number,
    request: number,
    argument: number,
    done: (result: number) => void,
  ): void;
  /** For descriptors that these calls opened: a worker's fs.close warns of them. */
  close(descriptor: number): number;
  eventfd(initial: number, flags: number): number;
  read(descriptor: number, address: number, length: number): number;
  write(descriptor: number, address: number, length: number): number;
  pread(descriptor: number, address: number, length: number, offset: number): number;
  pwrite(descriptor: number, address: number, length: number, offset: number): number;
  /** `vectors` is the address of `count` struct iovec; `flags` are RWF_*. */
  preadv2(
    descriptor: number,
    vectors: number,
    count: number,
    offset: number,
    flags: number,
  ): number;
  pwritev2(
    descriptor: number,
    vectors: number,
    count: number,
    offset: number,
    flags: number,
  ): number;
  fallocate(descriptor: number, mode: number, offset: number, length: number): number;
  /** The same in a thread of its own, as ioctlLater. */
  fallocateLater(
    descriptor: number,
    mode: number,
    offset: number,
    length: number,
    done: (result: number) => void,
  ): void;
  fdatasync(descriptor: number): number;
  /** Returns the offset, or -1. */
  lseek(descriptor: number, offset: number, whence: number): number;
  /** Returns the error number itself, as posix_fadvise(2) does. */
  posixFadvise(descriptor: number, offset: number, length: number, advice: number): number;
  /** `parameters` is the address of a struct io_uring_params. Returns a descriptor. */
  ioUringSetup(entries: number, parameters: number): number;
  /** Returns how many entries were submitted. */
  ioUringEnter(descriptor: number, submit: number, minimumComplete: number, flags: number): number;
  ioUringRegister(descriptor: number, operation: number, argument: number, count: number): number;
  /** Of the last of these calls that answered -1. */
  errno(): number;
  /** An ArrayBuffer over foreign memory, which it does not own: fatal to touch after munmap. */
  view(address: number, length: number): ArrayBuffer;
  /** Address of the first byte. The caller keeps the view alive while the address is in use. */
  addressOf(bytes: ArrayBufferView): number;
  /** `status` is 0 or a negative errno. A descriptor that is watched already, or cannot be polled, ends the process:
   * use poller.ts, which checks. */
  poll(descriptor: number, callback: (status: number) => void): PollHandle;
}

type Koffi = typeof import("koffi");

/** The same on every architecture but alpha, which neither Node nor Xen runs on. */
const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const SYS_IO_URING_REGISTER = 427;

let loaded: Ffi | undefined;
let missingReason: string | undefined;
let tried = false;

/** The foreign calls of this process, or undefined where it has none; `ffiMissingReason` says why. */
export function ffi(): Ffi | undefined {
  if (!tried) {
    tried = true;
    try {
      loaded = bind(load());
    } catch (error) {
      missingReason = (error instanceof Error ? error.message : String(error)).split("\n", 1)[0];
    }
  }
  return loaded;
}

/** A sentence for people on why `ffi()` is undefined; undefined where it is not. */
export function ffiMissingReason(): string | undefined {
  ffi();
  return missingReason;
}

/** The foreign calls, where there is no way without. Throws an Error with code ERR_NO_FFI that says who needs them. */
export function requireFfi(who: string): Ffi {
  const calls = ffi();
  if (calls !== undefined) return calls;
  throw Object.assign(new Error(`${who} needs foreign calls, and ${missingReason}`), {
    code: "ERR_NO_FFI",
  });
}

/** An Error for a failed call: `code` is the name of the errno, as in Node's own. */
export function systemError(call: string, errno: number, subject?: string): NodeJS.ErrnoException {
  const code = getSystemErrorName(-errno);
  const on = subject === undefined ? "" : ` ${subject}`;
  const message = `${code}: ${getSystemErrorMessage(-errno)}, ${call}${on}`;
  return Object.assign(new Error(message), { code, errno: -errno, syscall: call });
}

function load(): Koffi {
  if (process.env.VBDKIT_NO_FFI === "1") throw new Error("VBDKIT_NO_FFI=1 turns them off");
  if (process.platform !== "linux") {
    throw new Error(`they are written for Linux, not ${process.platform}`);
  }
  try {
    return createRequire(import.meta.url)("koffi") as Koffi;
  } catch (cause) {
    throw new Error("koffi is not installed (npm install koffi)", { cause });
  }
}

function bind(koffi: Koffi): Ffi {
  // The C library that Node itself runs on, whatever its file name: glibc or musl.
  const libc = koffi.load(null);
  const call = (name: string, result: string, ...parameters: string[]) =>
    libc.func(name, result, parameters);
  // syscall(2), fcntl(2) and ioctl(2) are variadic, which for integers is the plain calling convention on Linux.
  const setup = call("syscall", "long", "long", "uint", "intptr");
  const enter = call("syscall", "long", "long", "int", "uint", "uint", "uint", "intptr", "size_t");
  const ioctl = call("ioctl", "int", "int", "ulong", "intptr");
  const fallocate = call("fallocate", "int", "int", "int", "int64_t", "int64_t");
  const register = call("syscall", "long", "long", "int", "uint", "intptr", "uint");
  return {
    mmap: call("mmap", "intptr", "intptr", "size_t", "int", "int", "int", "int64_t"),
    munmap: call("munmap", "int", "intptr", "size_t"),
    memfdCreate: call("memfd_create", "int", "const char *", "uint"),
    ftruncate: call("ftruncate", "int", "int", "int64_t"),
    fcntl: call("fcntl", "int", "int", "int", "intptr"),
    ioctl,
    ioctlLater: (descriptor, request, argument, done) =>
      ioctl.async(descriptor, request, argument, (error: unknown, result: number) =>
        done(error ? -1 : result),
      ),
    close: call("close", "int", "int"),
    eventfd: call("eventfd", "int", "uint", "int"),
    read: call("read", "long", "int", "intptr", "size_t"),
    write: call("write", "long", "int", "intptr", "size_t"),
    pread: call("pread", "long", "int", "intptr", "size_t", "int64_t"),
    pwrite: call("pwrite", "long", "int", "intptr", "size_t", "int64_t"),
    preadv2: call("preadv2", "long", "int", "intptr", "int", "int64_t", "int"),
    pwritev2: call("pwritev2", "long", "int", "intptr", "int", "int64_t", "int"),
    fallocate,
    fallocateLater: (descriptor, mode, offset, length, done) =>
      fallocate.async(descriptor, mode, offset, length, (error: unknown, result: number) =>
        done(error ? -1 : result),
      ),
    fdatasync: call("fdatasync", "int", "int"),
    lseek: call("lseek", "int64_t", "int", "int64_t", "int"),
    posixFadvise: call("posix_fadvise", "int", "int", "int64_t", "int64_t", "int"),
    ioUringSetup: (entries, parameters) => setup(SYS_IO_URING_SETUP, entries, parameters),
    ioUringEnter: (descriptor, submit, minimumComplete, flags) =>
      enter(SYS_IO_URING_ENTER, descriptor, submit, minimumComplete, flags, 0, 0),
    ioUringRegister: (descriptor, operation, argument, count) =>
      register(SYS_IO_URING_REGISTER, descriptor, operation, argument, count),
    errno: () => koffi.errno(),
    view: (address, length) => koffi.view(address, length),
    addressOf: (bytes) => Number(koffi.address(bytes)),
    // koffi's types say that the callback gets the events alone; it gets the status first.
    poll: (descriptor, callback) =>
      koffi.node.poll(descriptor, { readable: true }, callback as unknown as () => void),
  };
}
