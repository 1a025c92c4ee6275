/** Nodes of a xenstore as its tools print and read them (xenstore_client.c; sanitise_value and unsanitise_value of
 * libxenstore): printable ASCII as it is, the rest as C escapes. */

/** Permissions begin at this column in a tree, where the value leaves them room. */
const PERMISSIONS_COLUMN = 60;
/** What ` = "\..."` takes of the width. */
const VALUE_FRAME = 8;

const escapes: Readonly<Record<string, string>> = { "\t": "t", "\n": "n", "\r": "r", "\\": "\\" };

export function escapeValue(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) {
    const character = String.fromCharCode(byte);
    const letter = escapes[character];
    if (letter !== undefined) text += `\\${letter}`;
    else if (byte >= 0x20 && byte <= 0x7e) text += character;
    else if (byte < 8) text += `\\${byte.toString(8).padStart(3, "0")}`;
    else text += `\\x${byte.toString(16).padStart(2, "0")}`;
  }
  return text;
}

/** The bytes that `text` names; a backslash before anything else stands for itself. */
export function unescapeValue(text: string): Uint8Array {
  const plain = Buffer.from(text, "utf8").toString("latin1");
  const bytes = plain.replaceAll(
    /\\(?:([tnr\\])|x([0-9a-fA-F]{1,2})|([0-7]{1,3}))/g,
    (_, letter: string | undefined, hex: string | undefined, octal: string | undefined) => {
      if (letter !== undefined) return { t: "\t", n: "\n", r: "\r", "\\": "\\" }[letter]!;
      return String.fromCharCode(
        hex === undefined ? Number.parseInt(octal!, 8) & 0xff : Number.parseInt(hex, 16),
      );
    },
  );
  return Buffer.from(bytes, "latin1");
}

/** A line of `xenstore-ls -f`. */
export function listedPath(
  path: string,
  value: Uint8Array | undefined,
  permissions: string | undefined,
): string {
  const text = value === undefined ? ":" : ` = "${escapeValue(value)}"`;
  return path + text + (permissions === undefined ? "" : `   (${permissions})`);
}

/** A line of `xenstore-ls`: a value that is too long for `width` is cut, permissions follow a row of dots. */
export function listedName(
  name: string,
  value: Uint8Array | undefined,
  permissions: string | undefined,
  width: number,
): string {
  if (value === undefined) return `${name}:`;
  const room = width - VALUE_FRAME - name.length;
  const cut = value.length > room;
  const text = cut
    ? `${name} = "${escapeValue(value).slice(0, Math.max(0, room))}\\..."`
    : `${name} = "${escapeValue(value)}"`;
  if (permissions === undefined) return text;
  if (cut) return `${text}  (${permissions})`;
  let dots = " ";
  for (let column = text.length + 1; column < PERMISSIONS_COLUMN; column++) {
    dots += column % 2 === 1 ? "." : " ";
  }
  return `${text}${dots}  (${permissions})`;
}
