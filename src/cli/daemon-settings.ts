/** What `vbdkit daemon` was asked for, which it tells its processes; and what they say to one another. Plain data. */
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

/** A guest's process gets its settings this way: they are more than a command line shows well. */
export const SETTINGS_VARIABLE = "VBDKIT_DAEMON_SETTINGS";

/** "serve" comes first, once: until then the process waits for a guest. */
export type ToGuestProcess =
  | { readonly serve: number }
  | { readonly leave: true }
  | { readonly number: number; readonly question: DaemonQuestion };

export type FromGuestProcess =
  | { readonly number: number; readonly answer: unknown }
  | { readonly number: number; readonly error: string };
