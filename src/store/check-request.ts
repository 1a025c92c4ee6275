/** What every store refuses alike, by the numbers of its own info. */
import { type BlockRequest, type BlockStoreInfo, Operation } from "./block-store.ts";
import { Errno } from "./errors.ts";

/** 0, or why the store must refuse the request: EOPNOTSUPP for an operation that is none of ours, EROFS for a change of a
 * read-only disk, EINVAL for what is not in whole blocks, is longer than a request may be, or reads past the end; ENOSPC
 * for writing past it. */
export function checkRequest(info: BlockStoreInfo, request: BlockRequest): number {
  const { operation, offset, length } = request;
  if (operation === Operation.flush) return 0;
  const changes =
    operation === Operation.write ||
    operation === Operation.discard ||
    operation === Operation.writeZeroes;
  const carriesData = operation === Operation.read || operation === Operation.write;
  if (!changes && !carriesData && operation !== Operation.cache) return Errno.EOPNOTSUPP;
  if (changes && info.readOnly) return Errno.EROFS;
  const { minimum, maximum } = info.block;
  // The negations also catch NaN.
  if (!(offset >= 0 && length >= 0) || !Number.isSafeInteger(offset + length)) return Errno.EINVAL;
  if (offset % minimum !== 0 || length % minimum !== 0) return Errno.EINVAL;
  if (carriesData && length > maximum) return Errno.EINVAL;
  if (offset + length > info.size) return changes ? Errno.ENOSPC : Errno.EINVAL;
  return 0;
}
