/** One request of a client, and what its handler gives back; the parts that all handlers share. */
import { encodeXenStoreStrings, type XsdError } from "../../wire/xenstore.ts";
import type { Actor } from "./nodes.ts";
import type { Session } from "./session.ts";

/** The payload of the answer, or the error; `afterwards` runs when the answer is queued. */
export type Answer = Uint8Array | XsdError | { payload: Uint8Array; afterwards(): void };

export interface Request {
  readonly session: Session;
  readonly actor: Actor;
  readonly transactionId: number;
  readonly payload: Uint8Array;
  /** Those of the payload that a NUL ends. */
  readonly strings: readonly string[];
  /** The payload's only string, with nothing after it. */
  readonly only: string | undefined;
}

export const OK: Uint8Array = encodeXenStoreStrings(["OK"]);

export function textAnswer(text: string | number): Answer {
  return encodeXenStoreStrings([String(text)]);
}

/** A number of at most nine digits and nothing else; the C daemon takes what atoi makes of any text. */
export function numberOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

export function domidOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,5}$/.test(text) ? Number(text) : undefined;
}
