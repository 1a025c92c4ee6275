/**
 * The engine of plain system calls, done in the kick. On tmpfs they never wait; on a disk cold data blocks the event loop,
 * so that it must be asked for by name there.
 */
import { Engine, IoOperation } from "./engine.ts";
import type { Ffi } from "./ffi.ts";
import { adjust, transfer } from "./plain-calls.ts";
import type { Reactor } from "./reactor.ts";
import { VectorTable } from "./vector-table.ts";

/** Per kick; the rest has its turn in the next round, after what other stores and the ring have to do. */
const REQUESTS_PER_KICK = 64;
/** Bytes per kick: a quarter of a millisecond of copying. */
const BYTES_PER_KICK = 1 << 20;

export class PreadEngine extends Engine {
  override readonly name = "pread";
  readonly #calls: Ffi;
  readonly #vectors = new VectorTable(1);

  constructor(reactor: Reactor, calls: Ffi) {
    super(reactor);
    this.#calls = calls;
  }

  override close(): void {
    // It has nothing but memory.
  }

  protected override work(budget: number): void {
    let bytes = 0;
    for (let i = Math.min(budget, REQUESTS_PER_KICK); i > 0 && bytes < BYTES_PER_KICK; i--) {
      const file = this.nextFile();
      if (file === undefined) return;
      const request = this.take(file);
      const operation = file.owner.operationOf(request);
      if (operation === IoOperation.sync) {
        this.sync(file, request);
      } else if (operation <= IoOperation.write) {
        bytes += request.length;
        file.owner.finished(
          request,
          transfer(this.#calls, file, request, operation, this.#vectors, 0),
        );
      } else {
        adjust(this.#calls, this.reactor, file, request, operation);
      }
    }
    if (this.waiting > 0) this.needKick();
  }
}
