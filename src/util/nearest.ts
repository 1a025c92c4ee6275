/** "Did you mean": the known word nearest to one that is not known. */

/** Optimal string alignment distance: insertions, deletions, changes and neighbours swapped each count one. */
function distance(left: string, right: string): number {
  const width = right.length + 1;
  const table = new Uint16Array((left.length + 1) * width);
  for (let row = 0; row <= left.length; row++) {
    for (let column = 0; column <= right.length; column++) {
      const at = row * width + column;
      if (row === 0 || column === 0) {
        table[at] = row + column;
        continue;
      }
      const change = left[row - 1] === right[column - 1] ? 0 : 1;
      let least = Math.min(
        table[at - width]! + 1,
        table[at - 1]! + 1,
        table[at - width - 1]! + change,
      );
      const swapped = left[row - 1] === right[column - 2] && left[row - 2] === right[column - 1];
      if (row > 1 && column > 1 && swapped) least = Math.min(least, table[at - 2 * width - 2]! + 1);
      table[at] = least;
    }
  }
  return table.at(-1)!;
}

/** Longer words are no slips of a known one, and comparing them would cost what they like. */
const MAX_WORD = 64;

/** The nearest of `known`, where it is near enough to be a slip: about a third of the letters. */
export function nearest(word: string, known: Iterable<string>): string | undefined {
  if (word.length > MAX_WORD) return undefined;
  let found: string | undefined;
  let least = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of known) {
    const steps = distance(word, candidate);
    if (steps < least) {
      least = steps;
      found = candidate;
    }
  }
  return found;
}

/** `; did you mean "serve"?` or nothing. */
export function didYouMean(word: string, known: Iterable<string>): string {
  const found = nearest(word, known);
  return found === undefined ? "" : `; did you mean "${found}"?`;
}
