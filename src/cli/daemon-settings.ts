/** What `vbdkit daemon` was asked for, which it tells its processes; and what they say to one another. Plain data. */
import { join } from "node:path";
import type { BackendLimits } from "../index.ts";
import type { EngineChoice } from "../store/block-store.ts";
import type { DaemonQuestion } from "./daemon-service.ts";

/** Where systemd keeps what is gone after a boot; the guests are, too. */
export const RUN_FOLDER = "/run/vbdkit";

export interface DaemonSettings {
  /** Directories below backend/. */
  readonly kinds: readonly string[];
  readonly shared: boolean;
  readonly folder: string;
  readonly user: string | undefined;
  readonly engine: EngineChoice;
  readonly limits: Partial<BackendLimits>;
  readonly pidfile: string | undefined;
  readonly verbose: boolean;
}

/** Folder of the journals, in that of the daemon. */
export function journalsOf({ folder }: DaemonSettings): string {
  return join(folder, "journals");
}

/** "setup" comes first, then "serve", each once: until then the process waits for a guest. */
export type ToGuestProcess =
  | { readonly setup: DaemonSettings }
  | { readonly serve: number }
  | { readonly leave: true }
  | { readonly number: number; readonly question: DaemonQuestion };

/** "ready" comes once: what needs rights is open, and the next word may be "serve". */
export type FromGuestProcess =
  | { readonly ready: true }
  | { readonly number: number; readonly answer: unknown }
  | { readonly number: number; readonly error: string };
