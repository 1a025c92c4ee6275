/** Time, passed in wherever it is needed, so that a test or a simulator can own it. */
import { performance } from "node:perf_hooks";
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Calls back once after `milliseconds`, unless disposed first. Does not keep the process alive. */
  after(milliseconds: number, callback: () => void): Disposable;
}

// The global `performance` is a getter, which takes longer than a request does.
export const systemClock: Clock = {
  now: () => performance.now(),
  after(milliseconds, callback) {
    const timer = setTimeout(callback, milliseconds);
    timer.unref();
    return { [Symbol.dispose]: () => clearTimeout(timer) };
  },
};
