/** What a run has seen. */

export class Tally {
  operations = 0;
  /** Events compared. */
  events = 0;
  readonly #outcomes = new Map<string, Map<string, number>>();
  readonly #differences = new Map<string, Map<string, number>>();

  /** Of the C daemon. */
  outcome(name: string, outcome = "OK"): void {
    count(this.#outcomes, name, outcome);
  }

  /** One that is intended. */
  difference(reason: string, name: string, theirs = "OK", mine = "OK"): void {
    count(this.#differences, `${reason}: ${name}`, `${theirs}/${mine}`);
  }

  /** Outcomes that came less often than `times`. */
  seldom(times: number): string[] {
    return Array.from(this.#outcomes, ([name, counts]) =>
      [...counts].filter(([, found]) => found < times).map(([outcome]) => `${name} ${outcome}`),
    ).flat();
  }

  /** A line for each operation, and for each of the differences: first what the C daemon answered. */
  table(): string[] {
    return [...lines(this.#outcomes), ...lines(this.#differences)];
  }
}

function count(rows: Map<string, Map<string, number>>, row: string, cell: string): void {
  const counts = rows.get(row) ?? new Map<string, number>();
  rows.set(row, counts.set(cell, (counts.get(cell) ?? 0) + 1));
}

function lines(rows: ReadonlyMap<string, ReadonlyMap<string, number>>): string[] {
  return Array.from(rows, ([row, counts]) => {
    const cells = [...counts].sort().map(([cell, found]) => `${cell} ${found}`);
    return `${row.padEnd(21)} ${cells.join(", ")}`;
  }).sort();
}
