/** A store that fails or holds back requests when a test says so, before any other store. */
import type { BlockRequest } from "../store/block-store.ts";
import { Errno, type ErrnoName } from "../store/errors.ts";
import { ForwardingStore, type OperationName, operationNames } from "../store/forwarding-store.ts";

interface Fault {
  readonly operation: OperationName;
  readonly errno: number;
  times: number;
}

export class FaultyStore extends ForwardingStore {
  readonly #faults: Fault[] = [];
  readonly #held: BlockRequest[] = [];
  #holding = false;

  /** The next `times` requests of that operation end with the error and do nothing. */
  fail(operation: OperationName, error: ErrnoName, times = 1): void {
    this.#faults.push({ operation, errno: Errno[error], times });
  }

  /** Requests wait from now on. */
  hold(): void {
    this.#holding = true;
  }

  /** Requests that wait. */
  get held(): number {
    return this.#held.length;
  }

  /** Lets the first `count` of them go, all if absent; and all that come, where none is left waiting. */
  release(count: number = this.#held.length): void {
    for (const request of this.#held.splice(0, count)) this.next.submit(request);
    if (this.#held.length === 0) this.#holding = false;
    this.reactor.soon();
  }

  override submit(request: BlockRequest): void {
    const name = operationNames[request.operation];
    const at = this.#faults.findIndex((fault) => fault.operation === name);
    if (at >= 0) {
      const fault = this.#faults[at]!;
      if (--fault.times === 0) this.#faults.splice(at, 1);
      this.answer(request, fault.errno);
    } else if (this.#holding) this.#held.push(request);
    else this.next.submit(request);
  }

  override async cancel(reason: Error): Promise<void> {
    for (const request of this.#held.splice(0)) this.answer(request, Errno.ECANCELED);
    await super.cancel(reason);
  }
}
