/**
 * Errors as a person meets them: one line, `vbdkit: ...`, and an exit code that scripts may rely on.
 *
 * Invariant: no stack trace unless --verbose asked for it.
 */
import { StoreError } from "../store/errors.ts";
import { XenError } from "../xen/domain.ts";
import { StoppedError } from "./signals.ts";

/** Documented in docs/commands/index.md. */
export const ExitCode = {
  okay: 0,
  /** The operation failed: an I/O error, a server that is not there, a disk somebody else writes. */
  failure: 1,
  /** What was typed cannot be right: unknown option, driver or parameter, a size that is none. */
  usage: 2,
} as const;

/** What was typed cannot be right. The message says what to type instead. */
export class UsageError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "UsageError";
  }
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return ExitCode.usage;
  if (error instanceof StoppedError) return error.exitCode;
  const ours = error instanceof StoreError || error instanceof XenError;
  if (ours && error.code === "EINVAL") return ExitCode.usage;
  return ExitCode.failure;
}

/** What the operating system says, in words, where Node repeats the name of a system call. */
const systemMessages: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EADDRINUSE: "address already in use",
  EADDRNOTAVAIL: "no such address on this machine",
  ECONNREFUSED: "nobody listens there",
  ECONNRESET: "the other side closed the connection",
  EEXIST: "exists already",
  EISDIR: "is a directory",
  ENAMETOOLONG: "the name is too long",
  ENOENT: "no such file or directory",
  ENOSPC: "no space left",
  ENOTDIR: "not a directory",
  ENOTSOCK: "not a socket",
  EPERM: "operation not permitted",
  EROFS: "read-only file system",
};

export function systemMessage(error: NodeJS.ErrnoException): string {
  return systemMessages[error.code ?? ""] ?? error.message;
}

/** One line that names the thing and what is wrong with it. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const system = error as NodeJS.ErrnoException & { address?: string; port?: number };
  const words = system.syscall === undefined ? undefined : systemMessages[system.code ?? ""];
  const subject =
    system.path ??
    (system.port === undefined ? system.address : `${system.address}:${system.port}`);
  const message =
    words === undefined || subject === undefined ? error.message : `${subject}: ${words}`;
  return message.replaceAll(/\s*\n\s*/g, " ").trim();
}

/** Says on standard error what went wrong and sets the exit code. */
export function report(error: unknown, verbose = false): void {
  process.stderr.write(`vbdkit: ${messageOf(error)}\n`);
  if (verbose && error instanceof Error) {
    process.stderr.write(`${error.stack}\n`);
    if (error.cause !== undefined) console.error("caused by", error.cause);
  }
  process.exitCode = exitCodeOf(error);
}
