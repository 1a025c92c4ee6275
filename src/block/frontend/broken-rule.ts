/** The rules of a disk that the backend would enforce too, so that who breaks one learns it here, by its name. */
import { type BlockRequest, type BlockStoreInfo, Operation } from "../../store/block-store.ts";
import { Errno } from "../../store/errors.ts";
import { MAX_REQUEST_BYTES } from "./connection.ts";

/** Errno of the rule that a request breaks, or 0. `info` is undefined where there has never been a disk. */
export function brokenRule(request: BlockRequest, info: BlockStoreInfo | undefined): number {
  if (request.operation === Operation.flush) return 0;
  if (info === undefined) return Errno.EIO;
  const { offset, length } = request;
  const sector = info.block.minimum;
  const isRange = offset >= 0 && length >= 0 && offset % sector === 0 && length % sector === 0;
  if (!isRange || (request.segments !== undefined && length > MAX_REQUEST_BYTES)) {
    return Errno.EINVAL;
  }
  if (offset + length > info.size) {
    return request.operation === Operation.read ? Errno.EINVAL : Errno.ENOSPC;
  }
  const reads = request.operation === Operation.read || request.operation === Operation.cache;
  return info.readOnly && !reads ? Errno.EROFS : 0;
}
