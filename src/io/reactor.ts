/**
 * One per thread: the order in which stores, drivers and sockets get to work on what they have batched.
 *
 * Whoever has gathered something to do (a batch of requests, responses to publish, an event to deliver) says
 * `dirty` once; nobody but the reactor calls `kick`. Thus one wake-up does one publish, one notify and one system
 * call for many requests, and no chain of completions ever recurses.
 */

export interface Kickable {
  /** Does what was gathered since `dirty`. Called by the reactor alone; may call `dirty` again. */
  kick(): void;
}

/** Rounds before the event loop gets its turn, so that no disk starves sockets, signals or its neighbours. */
const ROUNDS_PER_TURN = 256;
/** A round of large requests copies megabytes; time is looked at after every few rounds, because looking costs, too. By a
 * clock that may jump, and is the cheapest: then a turn is shorter, or as many rounds as above. */
const TURN_MILLISECONDS = 2;
const ROUNDS_PER_LOOK = 8;
/** Settles that promises may bring about before the event loop gets its turn: one who awaits request after request never
 * leaves the microtask queue by himself. */
const SETTLES_BY_PROMISES_PER_TURN = 64;

export class Reactor {
  /** A circle of so many places as a power of two, of which #count from #first on are taken. */
  #dirty: (Kickable | undefined)[] = new Array<undefined>(16).fill(undefined);
  #first = 0;
  #count = 0;
  #settling = false;
  #scheduled = false;
  #turn = 0;
  /** Settles by `soon` since the event loop had its turn. */
  #settlesByPromises = 0;
  readonly #settleSoon = (): void => {
    this.#scheduled = false;
    this.settle();
  };
  readonly #turnPassed = (): void => {
    this.#settlesByPromises = 0;
  };

  /** Another number in each settle: what takes long to find out is found out once in one. */
  get turn(): number {
    return this.#turn;
  }

  /** `work.kick()` will be called once, in this settle or the next. The caller says it once per batch. */
  dirty(work: Kickable): void {
    if (this.#count === this.#dirty.length) this.#grow();
    this.#dirty[(this.#first + this.#count++) & (this.#dirty.length - 1)] = work;
  }

  #take(): Kickable {
    const work = this.#dirty[this.#first]!;
    this.#dirty[this.#first] = undefined;
    this.#first = (this.#first + 1) & (this.#dirty.length - 1);
    this.#count--;
    return work;
  }

  #grow(): void {
    const full = this.#dirty;
    const inOrder = [...full.slice(this.#first), ...full.slice(0, this.#first)];
    this.#dirty = [...inOrder, ...new Array<undefined>(full.length).fill(undefined)];
    this.#first = 0;
  }

  /** Kicks in rounds until nothing is dirty, or goes on in a later turn. Every callback of the event loop that hands
   * work to the data plane (socket, poll, timer) ends with it. */
  settle(rounds: number = ROUNDS_PER_TURN): void {
    if (this.#settling) return;
    this.#settling = true;
    this.#turn++;
    let began = 0;
    try {
      for (let round = 1; this.#count > 0 && round <= rounds; round++) {
        if (round % ROUNDS_PER_LOOK === 0) {
          if (began === 0) began = Date.now();
          else if (Date.now() - began > TURN_MILLISECONDS) break;
        }
        for (let left = this.#count; left > 0; left--) this.#take().kick();
      }
    } finally {
      this.#settling = false;
    }
    if (this.#count > 0 && !this.#scheduled) {
      this.#scheduled = true;
      setImmediate(this.#settleSoon);
    }
  }

  /** For promises and timers: one settle at the end of this turn, whatever was gathered in it. */
  soon(): void {
    if (this.#scheduled || this.#settling) return;
    this.#scheduled = true;
    if (this.#settlesByPromises === SETTLES_BY_PROMISES_PER_TURN) {
      setImmediate(this.#settleSoon);
      return;
    }
    if (this.#settlesByPromises++ === 0) setImmediate(this.#turnPassed);
    queueMicrotask(this.#settleSoon);
  }
}

let ofThread: Reactor | undefined;

/** The reactor of this thread, for whoever brings none: a process has one per thread, and stores that share a reactor
 * fit together. */
export function threadReactor(): Reactor {
  ofThread ??= new Reactor();
  return ofThread;
}
