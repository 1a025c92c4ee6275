/** Words as a person can paste them into a shell. */

/** Quotes a word for a POSIX shell, where it needs it. */
export function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
