/** Sizes as nbdkit and QEMU write them: 512, 4K, 1.5G, 10GiB; powers of 1024. */
const UNITS = ["", "K", "M", "G", "T", "P", "E"];

/** Bytes. Throws an Error that completes "size=TEXT: ...". */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGTPE]?)(?:i?B)?$/i.exec(text.trim());
  if (match === null) throw new Error("not a size; write bytes, or 512K, 1G, 1.5T");
  const bytes = Number(match[1]) * 1024 ** UNITS.indexOf((match[2] ?? "").toUpperCase());
  if (!Number.isSafeInteger(bytes)) throw new Error("not a whole number of bytes below 2^53");
  return bytes;
}

/** "1 GiB", "1.5 MiB", "512 B": at most one decimal. */
export function formatSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(1);
  return `${digits} ${unit === 0 ? "B" : `${UNITS[unit]}iB`}`;
}
