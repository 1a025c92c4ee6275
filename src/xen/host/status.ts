/** What the errno of a grant device means as a status of grant_table.h. gntdev keeps the hypervisor's own answer to
 * itself: a grant that is refused is EINVAL, whatever was wrong with it. */
import { constants } from "node:os";
import { GrantStatus } from "../domain.ts";

const { EACCES, EAGAIN, EFAULT, EMFILE, ENFILE, ENOMEM, ENOSPC, EPERM } = constants.errno;

const statuses: ReadonlyMap<number, Exclude<GrantStatus, 0>> = new Map([
  [EACCES, GrantStatus.permissionDenied],
  [EAGAIN, GrantStatus.tryAgain],
  [EFAULT, GrantStatus.badVirtualAddress],
  [EMFILE, GrantStatus.noSpace],
  [ENFILE, GrantStatus.noSpace],
  [ENOMEM, GrantStatus.noSpace],
  [ENOSPC, GrantStatus.noSpace],
  [EPERM, GrantStatus.permissionDenied],
]);

export function statusOf(errno: number): Exclude<GrantStatus, 0> {
  return statuses.get(errno) ?? GrantStatus.generalError;
}
