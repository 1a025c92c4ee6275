/** Names of guests as `vbdkit machine` and its fellows take them: narrower than the library, so that a shell and a list
 * have no trouble with them. */
import { UsageError } from "./errors.ts";

/** No domid is taken for a name, and a shell leaves a name alone. */
const NAME = /^(?!\d+$)[\w][\w.+-]{0,62}$/;

/** Throws a UsageError for a name that is none. */
export function checkGuestName(name: string): string {
  if (!NAME.test(name)) {
    const rule = "letters, digits and . _ + -, at most 63, and not a number";
    throw new UsageError(`"${name}" is no name for a domain: ${rule}`);
  }
  if (name === "Domain-0") throw new UsageError("Domain-0 is there always; name the guests");
  return name;
}
