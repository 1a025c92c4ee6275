/**
 * Errno of the storage port to and from the error values of NBD (proto.md, "Error values"): the one lossy table of
 * this protocol.
 */

import { Errno } from "../store/errors.ts";
import {
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
} from "../wire/nbd.ts";

const nbdErrors = new Map<number, number>([
  [0, 0],
  [Errno.EPERM, NBD_EPERM],
  [Errno.EACCES, NBD_EPERM],
  [Errno.EROFS, NBD_EPERM],
  [Errno.ENOMEM, NBD_ENOMEM],
  [Errno.EINVAL, NBD_EINVAL],
  [Errno.ENOSPC, NBD_ENOSPC],
  [Errno.EFBIG, NBD_ENOSPC],
  [Errno.EOVERFLOW, NBD_EOVERFLOW],
  [Errno.EOPNOTSUPP, NBD_ENOTSUP],
  [Errno.ENOSYS, NBD_ENOTSUP],
  [Errno.ESHUTDOWN, NBD_ESHUTDOWN],
  [Errno.ECANCELED, NBD_ESHUTDOWN],
]);

/** NBD_E* for the status of a request; what the protocol cannot say is EIO. */
export function nbdErrorOf(status: number): number {
  return nbdErrors.get(status) ?? NBD_EIO;
}

const statuses = new Map<number, number>([
  [0, 0],
  [NBD_EPERM, Errno.EPERM],
  [NBD_EIO, Errno.EIO],
  [NBD_ENOMEM, Errno.ENOMEM],
  [NBD_EINVAL, Errno.EINVAL],
  [NBD_ENOSPC, Errno.ENOSPC],
  [NBD_EOVERFLOW, Errno.EOVERFLOW],
  [NBD_ENOTSUP, Errno.EOPNOTSUPP],
  [NBD_ESHUTDOWN, Errno.ESHUTDOWN],
]);

/** Status of a request for a server's error; the protocol says to take an unknown one for EINVAL. */
export function statusOfNbdError(error: number): number {
  return statuses.get(error) ?? Errno.EINVAL;
}
