/**
 * A parameter of either end of the split driver, as a row of its table (backend/parameters.ts, frontend/parameters.ts):
 * what text is parsed with, values are brought into their range by, and help is written from.
 */

/** `field` is the limit that the parameter sets; what is typed is `name`. */
export type ParameterOf<NumberField, SwitchField, ChoiceField> = {
  /** As typed: `max_queues`. */
  readonly name: string;
  /** One line, a sentence. */
  readonly help: string;
} & (
  | {
      readonly kind: "number";
      readonly field: NumberField;
      readonly minimum: number;
      readonly maximum: number;
    }
  | { readonly kind: "switch"; readonly field: SwitchField }
  | {
      readonly kind: "choice";
      readonly field: ChoiceField;
      readonly choices: readonly (string | number)[];
    }
);

/** A row of either table. */
export type LimitParameter = ParameterOf<string, string, string>;
export type LimitValue = number | boolean | string;

/** `a number from 0 to 4`, `0 or 1`, `512 or 4096`: what a value must be. */
export function describeRange(parameter: LimitParameter): string {
  switch (parameter.kind) {
    case "number":
      return `a number from ${parameter.minimum} to ${parameter.maximum}`;
    case "switch":
      return "0 or 1";
    case "choice":
      return parameter.choices.join(", ").replace(/, ([^,]*)$/, " or $1");
  }
}

/** The value of a text, numbers in whatever range; undefined where it is none. */
export function parseLimit(parameter: LimitParameter, text: string): LimitValue | undefined {
  switch (parameter.kind) {
    case "number":
      return /^-?\d{1,15}$/.test(text) ? Number(text) : undefined;
    case "switch":
      // The kernel takes all of these for a module's bool.
      if (/^(?:1|y|yes|on|true)$/i.test(text)) return true;
      return /^(?:0|n|no|off|false)$/i.test(text) ? false : undefined;
    case "choice":
      return parameter.choices.find((choice) => String(choice) === text);
  }
}

/** The value within its range; undefined for what is no value of the parameter at all. */
export function limitInRange(parameter: LimitParameter, value: unknown): LimitValue | undefined {
  switch (parameter.kind) {
    case "number":
      if (typeof value !== "number" || Number.isNaN(value)) return undefined;
      return Math.min(Math.max(Math.trunc(value), parameter.minimum), parameter.maximum);
    case "switch":
      return typeof value === "boolean" ? value : undefined;
    case "choice":
      return parameter.choices.find((choice) => choice === value);
  }
}
