/** Our rings beside the RING_* macros: both take the same random steps and must agree after each. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { BackRing } from "../../src/ring/back-ring.ts";
import { FrontRing } from "../../src/ring/front-ring.ts";
import { shows } from "../../src/testing/index.ts";
import { BlkifRequest, BlkifResponse, blkifLayout } from "../../src/wire/blkif.ts";
import { CProgram, compiledProtocols } from "../wire/c-program.ts";

const seed = Math.floor(Math.random() * 2 ** 31);
const pageCounts = [1, 2, 3, 16];
/** Where the indexes begin: most wrap around 2^32 in mid-trace. */
const starts = [0, 2 ** 32 - 1, 2 ** 32 - 40, 2 ** 32 - 700, 2 ** 31 - 300];
const stepsPerTrace = 4000;

/** Numbers below a limit, the same for a seed. */
function randomNumbers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b_79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  };
}

/** Both of our ends on one ring, driven by the commands of ring.c. */
class Trace {
  readonly commands: string[] = [];
  readonly lines: string[] = [];
  readonly front: FrontRing;
  readonly back: BackRing;
  readonly #shared: Uint32Array;
  readonly #request = new BlkifRequest();
  readonly #response = new BlkifResponse();
  #responsesCounted = 0;
  #requestsCounted = 0;

  constructor(protocol: "x86_64-abi" | "x86_32-abi", pages: number, start: number) {
    const bytes = new Uint8Array(new SharedArrayBuffer(4096 * pages)).fill(0xa5);
    const layout = blkifLayout(protocol);
    this.#shared = new Uint32Array(bytes.buffer, 0, 4);
    this.front = new FrontRing(bytes, layout);
    if (start !== 0) {
      this.#shared.set([start, start + 1, start, start + 1]);
      this.front = new FrontRing(bytes, layout, "attach");
    }
    this.back = new BackRing(bytes, layout, start === 0 ? "fresh" : "attach");
    this.#record(`s${start}`, 0);
  }

  #record(command: string, result: number): void {
    const { front, back } = this;
    const own = [front.requestsProduced, front.responsesConsumed];
    own.push(back.responsesProduced, back.requestsConsumed);
    this.commands.push(command);
    this.lines.push([result, ...this.#shared, ...own].join(" "));
  }

  /** What the command gives, or undefined where it is not allowed now. */
  #run(command: string): number | undefined {
    const { front, back } = this;
    switch (command) {
      case "p":
        if (front.free === 0) return undefined;
        this.#request.idLow = front.requestsProduced;
        this.#request.operation = 3;
        front.push(this.#request);
        return 0;
      case "q":
        return Number(front.publish());
      case "n":
        this.#responsesCounted = front.pending();
        return this.#responsesCounted;
      case "c":
        if (this.#responsesCounted === 0) return undefined;
        this.#responsesCounted--;
        front.consume(this.#response);
        return this.#response.idLow | 0;
      case "f":
        return Number(front.finalCheck());
      case "e":
        return front.free;
      case "N":
        this.#requestsCounted = back.pending();
        return this.#requestsCounted;
      case "C":
        if (this.#requestsCounted === 0) return undefined;
        this.#requestsCounted--;
        back.consume(this.#request);
        return this.#request.idLow | 0;
      case "R":
        if (back.requestsConsumed === back.responsesProduced) return undefined;
        back.respond(~back.responsesProduced, 0, 3, 0);
        return 0;
      case "Q":
        return Number(back.publish());
      case "F":
        return Number(back.finalCheck());
      case "O":
        return Number(back.canConsume());
      default:
        throw new Error(command);
    }
  }

  step(command: string): void {
    const result = this.#run(command);
    if (result !== undefined) this.#record(command, result);
  }

  /** A peer writes one of the shared producers. */
  claim(side: "<" | ">", index: number): void {
    this.#shared[side === "<" ? 0 : 2] = index;
    this.#record(side + index, side === "<" ? this.back.pending() : this.front.pending());
  }
}

/** Bursts of one command, so that rings run full and empty as well as half full. */
function walk(trace: Trace, random: (limit: number) => number): void {
  const commands = "ppqncccfeNCCRRQFO";
  while (trace.commands.length < stepsPerTrace) {
    const command = commands[random(commands.length)]!;
    const burst = random(8) === 0 ? random(2 * trace.front.size) : 1 + random(3);
    for (let i = 0; i < burst; i++) trace.step(command);
  }
}

for (const protocol of compiledProtocols) {
  test(
    `${protocol}: every step gives what the macros give, across 2^32 too (seed ${seed})`,
    shows(["2.11"], () => {
      using program = new CProgram(join(import.meta.dirname, "ring.c"), protocol);
      const random = randomNumbers(seed);
      let notified = 0;
      let heldOff = 0;
      for (const pages of pageCounts) {
        const traces = starts.map((start) => {
          const trace = new Trace(protocol, pages, start);
          walk(trace, random);
          assert.ok(trace.front.requestsProduced !== start, "the trace did something");
          return trace;
        });
        const commands = traces.flatMap((trace) => trace.commands);
        const theirs = program.run([String(pages)], `${commands.join("\n")}\n`);
        for (const [i, line] of traces.flatMap((trace) => trace.lines).entries()) {
          assert.equal(line, theirs[i], `${pages} pages, step ${i}: ${commands[i]}`);
          if (!/[qQ]/.test(commands[i]!)) continue;
          if (line.startsWith("1 ")) notified++;
          else heldOff++;
        }
      }
      assert.ok(notified > 100 && heldOff > 100, `${notified} notified, ${heldOff} held off`);
    }),
  );

  test(`${protocol}: a claim that the macros call an overflow breaks the ring, a possible one counts alike (seed ${seed})`, () => {
    using program = new CProgram(join(import.meta.dirname, "ring.c"), protocol);
    const random = randomNumbers(seed ^ 0xffff);
    const traces = Array.from({ length: 400 }, () => {
      const trace = new Trace(protocol, 1, starts[random(starts.length)]!);
      const commands = "ppppqqnccNNCCRRQ";
      const length = random(300);
      while (trace.commands.length < length) trace.step(commands[random(commands.length)]!);
      trace.step("n");
      trace.step("N");
      const side = random(2) === 0 ? "<" : ">";
      const [, requests, , responses] = trace.lines.at(-1)!.split(" ").map(Number);
      const distance = random(4) === 0 ? random(2 ** 32) : random(40) - 8;
      trace.claim(side, ((side === "<" ? requests! : responses!) + distance) >>> 0);
      return trace;
    });
    const commands = traces.flatMap((trace) => trace.commands);
    const theirs = program.run(["1"], `${commands.join("\n")}\n`);
    let step = 0;
    const seen = { broken: 0, possible: 0 };
    for (const trace of traces) {
      step += trace.lines.length;
      const [before, line] = trace.lines.slice(-2) as [string, string];
      const side = trace.commands.at(-1)![0] as "<" | ">";
      const [counted, ...ours] = line.split(" ").map(Number) as [number, ...number[]];
      const [macro, ...same] = theirs[step - 1]!.split(" ").map(Number) as [number, ...number[]];
      assert.deepEqual(ours, same);
      if (counted === -1) {
        seen.broken++;
        const producer = side === "<" ? 1 : 3;
        const claimed = ours[producer - 1]!;
        const [, ...indexes] = before.split(" ").map(Number) as [number, ...number[]];
        const back = ((claimed - indexes[producer - 1]!) | 0) < 0;
        const unasked = side === ">" && ((claimed - indexes[0]!) | 0) > 0;
        assert.ok(macro === -1 || back || unasked, `${before}, then ${line}`);
      } else {
        seen.possible++;
        assert.equal(counted, macro, `${before}, then ${line}`);
      }
    }
    assert.ok(seen.broken > 50 && seen.possible > 50, JSON.stringify(seen));
  });
}
