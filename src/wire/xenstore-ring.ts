/**
 * The page that a domain and the xenstore share: struct xenstore_domain_interface of <xen/io/xs_wire.h>, two byte
 * streams of 1 KiB each (docs/misc/xenstore-ring.txt). Constants keep the header's spelling.
 */

export const XENSTORE_RING_SIZE = 1024;

/** Byte of each field in the page. `req` and `rsp` have XENSTORE_RING_SIZE bytes, the others are 32-bit words. The
 * indexes run freely: the difference of a pair is what lies between, and an index modulo the size is the place. */
export const XenStoreInterface = {
  req: 0,
  rsp: 1024,
  req_cons: 2048,
  req_prod: 2052,
  rsp_cons: 2056,
  rsp_prod: 2060,
  server_features: 2064,
  connection: 2068,
  error: 2072,
} as const;

/** `connection`: a guest writes RECONNECT, the daemon CONNECTED. */
export const XENSTORE_CONNECTED = 0;
export const XENSTORE_RECONNECT = 1;

/** `error`: written by the daemon, which looks at nothing any more but `connection`. */
export const XENSTORE_ERROR_NONE = 0;
export const XENSTORE_ERROR_COMM = 1;
export const XENSTORE_ERROR_RINGIDX = 2;
export const XENSTORE_ERROR_PROTO = 3;
