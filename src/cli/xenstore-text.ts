/** Values of a xenstore as its tools print and read them (sanitise_value and unsanitise_value of Xen's libxenstore):
 * printable ASCII as it is, the rest as C escapes. */

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
