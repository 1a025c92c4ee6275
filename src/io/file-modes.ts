/** Arguments of fallocate(2) and posix_fadvise(2), from <linux/falloc.h> and <fcntl.h>. */
import { IoOperation } from "./engine.ts";

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;

export const POSIX_FADV_WILLNEED = 3;

/** The mode of an operation that is an fallocate. None of them changes the size of the file. */
export const FALLOCATE_MODE: Readonly<Record<number, number>> = {
  [IoOperation.punchHole]: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
  [IoOperation.zeroRange]: FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
  [IoOperation.allocate]: FALLOC_FL_KEEP_SIZE,
};
