/**
 * An archive that Linux unpacks into its first root: the "newc" format of Documentation/driver-api/early-userspace/
 * buffer-format.rst. Everything belongs to root, whoever makes it, and carries no time: the same content, the same bytes.
 */

export type CpioEntry =
  | { readonly name: string; readonly kind: "directory" }
  | { readonly name: string; readonly kind: "link"; readonly target: string }
  | {
      readonly name: string;
      readonly kind: "file";
      readonly content: Buffer;
      readonly executable?: boolean;
    };

/** Folders must come before what is in them. Names are relative: "bin/sh". */
export function cpio(entries: readonly CpioEntry[]): Buffer {
  const parts = entries.flatMap((entry, index) => member(index + 1, entry));
  return Buffer.concat([...parts, ...member(0, trailer)]);
}

const trailer: CpioEntry = { name: "TRAILER!!!", kind: "file", content: Buffer.alloc(0) };

function member(inode: number, entry: CpioEntry): Buffer[] {
  const content = contentOf(entry);
  const name = Buffer.from(`${entry.name}\0`);
  const fields = [
    inode,
    modeOf(entry),
    ...[0, 0], // owner
    1, // links
    0, // time
    content.length,
    ...[0, 0, 0, 0], // devices
    name.length,
    0, // checksum
  ];
  const header = Buffer.from(
    `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`,
  );
  return [padded(Buffer.concat([header, name])), padded(content)];
}

function contentOf(entry: CpioEntry): Buffer {
  if (entry.kind === "file") return entry.content;
  return entry.kind === "link" ? Buffer.from(entry.target) : Buffer.alloc(0);
}

function modeOf(entry: CpioEntry): number {
  if (entry.kind === "directory") return 0o040755;
  if (entry.kind === "link") return 0o120777;
  return entry.executable ? 0o100755 : 0o100644;
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}
