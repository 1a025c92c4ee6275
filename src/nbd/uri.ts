/**
 * NBD URIs, as doc/uri.md of the NBD project and nbd_connect_uri(3) write them:
 * `nbd://host[:10809]/export` and `nbd+unix:///export?socket=/path`.
 */
import { StoreError } from "../store/errors.ts";
import { NBD_DEFAULT_PORT } from "../wire/nbd.ts";

export type NbdAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

export interface NbdUri {
  readonly address: NbdAddress;
  /** Decoded; "" for the server's default. */
  readonly exportName: string;
}

/** Throws StoreError("EINVAL") that says what is wrong with the URI. */
export function parseNbdUri(text: string): NbdUri {
  const wrong = (what: string) => new StoreError("EINVAL", `${text}: ${what}`);
  let url: URL;
  try {
    url = new URL(text);
  } catch (cause) {
    throw new StoreError("EINVAL", `${text}: not a URI; write nbd://HOST[:PORT]/EXPORT`, { cause });
  }
  let exportName: string;
  try {
    // A name may be "." or "a/..", which a URL's pathname takes for folders.
    const path = /^[^:]*:\/\/[^/?#]*([^?#]*)/.exec(text.trim())?.[1] ?? url.pathname;
    // One slash belongs to the syntax; any more belong to the name.
    exportName = decodeURIComponent(path.replace(/^\//, ""));
  } catch (cause) {
    throw new StoreError("EINVAL", `${text}: the export name is not percent-encoded UTF-8`, {
      cause,
    });
  }
  switch (url.protocol) {
    case "nbd:": {
      if (url.searchParams.has("socket")) throw wrong("socket= belongs to nbd+unix:///");
      const host = decodeURIComponent(url.hostname.replace(/^\[(.*)\]$/, "$1")) || "localhost";
      const port = url.port === "" ? NBD_DEFAULT_PORT : Number(url.port);
      return { address: { host, port }, exportName };
    }
    case "nbd+unix:": {
      const path = url.searchParams.get("socket");
      if (path === null || path === "") throw wrong("nbd+unix needs ?socket=/PATH");
      if (url.host !== "") throw wrong("nbd+unix takes no host; write nbd+unix:///EXPORT?socket=");
      return { address: { path }, exportName };
    }
    case "nbds:":
    case "nbds+unix:":
      throw wrong("TLS is not supported; use nbd: or nbd+unix:, over a tunnel where it must be");
    default:
      throw wrong("not an NBD URI; write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=");
  }
}

/** The URI that `parseNbdUri` takes apart into these. */
export function formatNbdUri({ address, exportName }: NbdUri): string {
  const name = encodeURIComponent(exportName).replaceAll("%2F", "/");
  if ("path" in address) {
    const socket = encodeURIComponent(address.path).replaceAll("%2F", "/");
    return `nbd+unix:///${name}?socket=${socket}`;
  }
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  const port = address.port === NBD_DEFAULT_PORT ? "" : `:${address.port}`;
  return `nbd://${host}${port}/${name}`;
}
