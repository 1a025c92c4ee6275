/**
 * `--backend NAME=VALUE` and `--frontend NAME=VALUE`: the limits of both ends by the names of Linux's module
 * parameters, read from the tables that the ends themselves keep.
 *
 * Invariant: a name that is unknown or a text that is no value is a mistake; a number out of its range is brought into
 * it, as Linux does, and a person is told.
 */
import { type BackendParameter, backendParameters } from "../block/backend/parameters.ts";
import {
  type BackendLimits,
  defaultBackendLimits,
  defaultFrontendLimits,
  type FrontendLimits,
} from "../block/features.ts";
import { type FrontendParameter, frontendParameters } from "../block/frontend/parameters.ts";
import { describeRange, limitInRange, parseLimit } from "../block/parameters.ts";
import { didYouMean } from "../util/nearest.ts";
import { UsageError } from "./errors.ts";
import { table } from "./output.ts";

type Knob = BackendParameter | FrontendParameter;
type Note = (message: string) => void;

export function backendKnobs(words: readonly string[], note: Note): Partial<BackendLimits> {
  return turn("--backend", words, backendParameters, note);
}

export function frontendKnobs(words: readonly string[], note: Note): Partial<FrontendLimits> {
  return turn("--frontend", words, frontendParameters, note);
}

function turn(option: string, words: readonly string[], knobs: readonly Knob[], note: Note) {
  const values: Record<string, number | boolean | string> = {};
  for (const word of words) {
    const [, name, text] = /^([^=]+)=(.*)$/.exec(word) ?? [];
    if (name === undefined || text === undefined) {
      throw new UsageError(`${option} ${word}: write NAME=VALUE`);
    }
    const knob = knobs.find((candidate) => candidate.name === name);
    if (knob === undefined) {
      const names = knobs.map((candidate) => candidate.name);
      throw new UsageError(`${option}: there is no parameter "${name}"${didYouMean(name, names)}`);
    }
    const value = parseLimit(knob, text.trim());
    if (value === undefined)
      throw new UsageError(`${option} ${word}: write ${describeRange(knob)}`);
    const allowed = limitInRange(knob, value) ?? value;
    if (allowed !== value)
      note(`${option} ${word} is not ${describeRange(knob)}: taken as ${allowed}`);
    values[knob.field] = allowed;
  }
  return values;
}

/** The parameters of both ends, with ranges and defaults, for `serve --help`. */
export function knobHelp(): string {
  return [
    "Parameters of --backend, as of Linux's xen-blkback:",
    knobRows(backendParameters, defaultBackendLimits),
    "",
    frontendKnobHelp(),
  ].join("\n");
}

export function frontendKnobHelp(): string {
  const rows = knobRows(frontendParameters, defaultFrontendLimits);
  return `Parameters of --frontend, as of Linux's xen-blkfront:\n${rows}`;
}

function knobRows(knobs: readonly Knob[], defaults: object): string {
  return table(
    knobs.map((knob) => [`${knob.name}=${shortRange(knob)}`, sentence(knob, defaults)]),
    "  ",
  );
}

function shortRange(knob: Knob): string {
  if (knob.kind === "number") return `${knob.minimum}..${knob.maximum}`;
  return knob.kind === "switch" ? "0|1" : knob.choices.join("|");
}

function sentence({ help, field }: Knob, defaults: object): string {
  const value = (defaults as Record<string, number | boolean | string>)[field];
  return `${help} Default ${typeof value === "boolean" ? Number(value) : value}.`;
}
