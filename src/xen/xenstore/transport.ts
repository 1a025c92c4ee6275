/**
 * How a client and the daemon exchange bytes: the face of a Unix socket, a MessagePort, or a pair in one process.
 *
 * Invariant: a byte that was given to `send` arrives once and in order, or the transport closes.
 */
export interface XenStoreTransport {
  /** False while the other end does not keep up: `send` still takes bytes, but a sender of goodwill waits. */
  readonly writable: boolean;
  /** Bytes of a message's payload, where that is less than the protocol allows. */
  readonly maxPayloadBytes?: number;
  /** Takes `bytes` over: they must not change afterwards. Does nothing once closed. */
  send(bytes: Uint8Array): void;
  /** Nothing is lost that arrives before it is set in the turn that made the transport. */
  onmessage: ((bytes: Uint8Array) => void) | undefined;
  /** `writable` became true again. */
  ondrain: (() => void) | undefined;
  /** Called once, later than the call that closed; a reason where neither end meant to. */
  onclose: ((reason?: Error) => void) | undefined;
  /** No `onmessage` until `resume`; soon, the other end is not writable. */
  pause(): void;
  resume(): void;
  /** Idempotent. What was sent and not delivered yet may be lost. A transport that can, tells the other end the reason. */
  close(reason?: Error): void;
}
