/**
 * The commands of one ring, at most one for each slot: those that are free, and those that the backend has (Linux's shadow
 * of the ring, FreeBSD's queues of free and busy commands). The one that was used last is used first, and one is made only
 * where all are in flight: few requests at a time need little memory, which stays in the processor's cache.
 *
 * Invariant: a command is free, or in flight and named by one response to come; its id is not used meanwhile.
 */
import { Fifo } from "../../util/fifo.ts";
import type { BlkifResponse } from "../../wire/blkif.ts";
import { Command, CommandState } from "./command.ts";

export class Commands {
  readonly #all: Command[] = [];
  readonly #free = new Fifo<Command>();
  readonly #count: number;
  readonly #maxPages: number;
  #inFlight = 0;

  constructor(count: number, maxPages: number) {
    this.#count = count;
    this.#maxPages = maxPages;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** The command that is next to be sent; undefined where all are in flight. */
  get free(): Command | undefined {
    return this.#free.peek() ?? this.#make();
  }

  #make(): Command | undefined {
    const id = this.#all.length;
    if (id === this.#count) return undefined;
    const command = new Command(id, this.#maxPages);
    this.#all.push(command);
    this.#free.push(command);
    return command;
  }

  /** `free` was sent. */
  sent(): void {
    this.#free.shift();
    this.#inFlight++;
  }

  /** The command in flight that a response names, if it names one. */
  named({ idLow, idHigh }: BlkifResponse): Command | undefined {
    const command = idHigh === 0 ? this.#all[idLow] : undefined;
    return command?.state === CommandState.busy ? command : undefined;
  }

  /** Takes one back whose pages have been given back. */
  reclaim(command: Command): void {
    forget(command);
    this.#free.unshift(command);
    this.#inFlight--;
  }

  /** Whether one of that operation was sent after it, and not answered yet. */
  sentAfter({ sequence }: Command, operation: number): boolean {
    return this.#all.some(
      (other) =>
        other.state === CommandState.busy &&
        other.operation === operation &&
        other.sequence > sequence,
    );
  }

  /** Those in flight, in the order they were sent. */
  busy(): Command[] {
    const busy = this.#all.filter(({ state }) => state === CommandState.busy);
    return busy.sort((one, other) => one.sequence - other.sequence);
  }

  /** Gives up all in flight, whose answers will not be looked at. They are not used again. */
  abandon(): void {
    for (const command of this.busy()) forget(command);
    this.#inFlight = 0;
  }
}

function forget(command: Command): void {
  command.state = CommandState.free;
  command.request = undefined;
  command.last = undefined;
}
