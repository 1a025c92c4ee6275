/**
 * Errors of the storage port. A request ends with a number (an errno of Linux, 0 for success); everything that
 * people see is a StoreError with the same errno as its stable `code`. The lossy mappings to blkif and NBD statuses
 * are functions of this one table.
 */

/** Numbers of include/uapi/asm-generic/errno{-base,}.h; the same on every architecture that Xen runs on. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  ENXIO: 6,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EISDIR: 21,
  EINVAL: 22,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  EPIPE: 32,
  ENOSYS: 38,
  EPROTO: 71,
  EOVERFLOW: 75,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ECONNRESET: 104,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  ECANCELED: 125,
} as const;
export type ErrnoName = keyof typeof Errno;

const names = new Map<number, ErrnoName>(
  Object.entries(Errno).map(([name, number]) => [number, name as ErrnoName]),
);

/** "EIO" for 5; an unknown number is EIO, because a peer must not invent codes. */
export function errnoName(number: number): ErrnoName {
  return names.get(number) ?? "EIO";
}

/** An error of a store that a person may read. `code` is stable; the message says what to do where we know it. */
export class StoreError extends Error {
  readonly code: ErrnoName;

  constructor(code: ErrnoName, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "StoreError";
    this.code = code;
  }

  get errno(): number {
    return Errno[this.code];
  }
}

/** The errno of any error: its own code where that is an errno we know, else EIO. */
export function errnoOf(error: unknown): number {
  const code = (error as { code?: unknown } | undefined)?.code;
  return typeof code === "string" && Object.hasOwn(Errno, code)
    ? Errno[code as ErrnoName]
    : Errno.EIO;
}
