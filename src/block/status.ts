/** The lossy step from errno to the three statuses of a blkif response, and back: the one table for it. */
import { Errno } from "../store/errors.ts";
import { BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY } from "../wire/blkif.ts";

export function blkifStatus(errno: number): number {
  if (errno === 0) return BLKIF_RSP_OKAY;
  return errno === Errno.EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}

/** Any non-zero status is an error: NetBSD's backend once sent errno values here. */
export function errnoOfStatus(status: number): number {
  if (status === BLKIF_RSP_OKAY) return 0;
  return status === BLKIF_RSP_EOPNOTSUPP ? Errno.EOPNOTSUPP : Errno.EIO;
}
