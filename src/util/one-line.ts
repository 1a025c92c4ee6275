/** Text of somebody else, as part of a message. */

/** Characters: enough to see what it is. */
const MAX_CHARACTERS = 500;

/** Without what moves a cursor, ends a line or turns the direction of writing, and not for ever. */
export function oneLine(text: string): string {
  const plain = text.slice(0, MAX_CHARACTERS).replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
  return text.length > MAX_CHARACTERS ? `${plain} ...` : plain;
}
