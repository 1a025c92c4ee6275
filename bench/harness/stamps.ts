/**
 * Data that can be verified while it is measured: every page of a disk says at its beginning which page it is, at its end
 * which time it was written, and is the same filling between. To look at both ends of a page costs next to nothing after
 * it has been copied.
 */
export const PAGE_BYTES = 4096;
const PAGE_WORDS = PAGE_BYTES / 4;

const filling = Uint32Array.from(
  { length: PAGE_WORDS },
  (_, index) => Math.imul(index + 1, 0x9e3779b1) >>> 0,
);

/** Makes `bytes` the pages from number `first` on, as nobody has written them yet. */
export function fillPages(bytes: Uint8Array, first: number): void {
  const words = wordsOf(bytes);
  for (let at = 0; at < words.length; at += PAGE_WORDS) {
    words.set(filling, at);
    words[at] = first + at / PAGE_WORDS;
    words[at + PAGE_WORDS - 1] = 0;
  }
}

export function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** Says of the page that begins at word `at` which one it is, and when it was written. */
export function stamp(words: Uint32Array, at: number, page: number, time: number): void {
  words[at] = page;
  words[at + PAGE_WORDS - 1] = time;
}

/** Whether the page that begins at word `at` says so. */
export function isStamped(words: Uint32Array, at: number, page: number, time: number): boolean {
  return words[at] === page && words[at + PAGE_WORDS - 1] === time;
}

/** Throws unless the page that begins at word `at` is whole. */
export function assertPage(words: Uint32Array, at: number, page: number, time: number): void {
  let right = isStamped(words, at, page, time);
  for (let i = 1; i < PAGE_WORDS - 1 && right; i++) right = words[at + i] === filling[i];
  if (right) return;
  const [first, last] = [words[at], words[at + PAGE_WORDS - 1]];
  throw new Error(
    `page ${page}, written as ${time}, is not whole: it begins ${first}, ends ${last}`,
  );
}
