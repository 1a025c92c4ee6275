/**
 * Requests about domains: that they come and go, whom they serve, what they may use (docs/misc/xenstore.txt, "Domain
 * management and xenstored communications").
 */
import { XENSTORE_SERVER_FEATURES, type XsdError } from "../../wire/xenstore.ts";
import { DOMID_SELF } from "../domain.ts";
import { KnownDomain } from "./domains.ts";
import { findQuota, quotas } from "./limits.ts";
import { domainPath } from "./paths.ts";
import { isPrivileged } from "./permissions.ts";
import { type Answer, domidOf, numberOf, OK, type Request, textAnswer } from "./request.ts";

/** DOMID, GFN and PORT of its ring, which is mapped by its reserved grant, so that the GFN does not matter. Where it is known, its
 * clients begin anew, without watches and transactions. */
export function introduce({ session, strings }: Request): Answer {
  const domid = domidOf(strings[0]);
  const port = numberOf(strings[2]) ?? 0;
  const { state } = session;
  if (domid === undefined || !state.domains.exists(domid) || port === 0) return "EINVAL";
  if (domid !== 0 && state.domains.isIntroduced(domid)) {
    for (const other of state.sessions) if (other.subject.domid === domid) other.reset();
  }
  state.introduce(domid, port);
  return OK;
}

function introducedDomain({ session, only }: Request): number | XsdError {
  const domid = domidOf(only);
  if (domid === undefined || domid === 0) return "EINVAL";
  return session.state.domains.isIntroduced(domid) ? domid : "ENOENT";
}

export function release(request: Request): Answer {
  const domid = introducedDomain(request);
  if (typeof domid === "string") return domid;
  request.session.state.release(domid);
  return OK;
}

export function resume(request: Request): Answer {
  const domid = introducedDomain(request);
  if (typeof domid === "string") return domid;
  request.session.state.resume(domid);
  return OK;
}

export function setTarget({ session, strings }: Request): Answer {
  const domid = domidOf(strings[0]);
  const target = domidOf(strings[1]);
  if (domid === undefined || target === undefined) return "EINVAL";
  const { domains, journal } = session.state;
  if (!domains.isIntroduced(domid) || !domains.isIntroduced(target)) return "ENOENT";
  const domain = domains.get(domid);
  domain.target = target;
  journal?.domain(domain.kept());
  return OK;
}

export function getDomainPath({ only }: Request): Answer {
  const domid = domidOf(only);
  return domid === undefined ? "EINVAL" : textAnswer(domainPath(domid));
}

export function isDomainIntroduced({ session, only }: Request): Answer {
  const domid = domidOf(only);
  if (domid === undefined) return "EINVAL";
  const known = domid === DOMID_SELF || session.state.domains.isIntroduced(domid);
  return textAnswer(known ? "T" : "F");
}

/** The domain that a request of domain 0 names. */
function namedDomain({ session }: Request, text: string | undefined): KnownDomain | XsdError {
  const domid = domidOf(text);
  if (domid === undefined) return "EINVAL";
  const { domains } = session.state;
  return domains.exists(domid) ? domains.get(domid) : "ENOENT";
}

/** Of the domain named, for domain 0; of the one that asks, where none is. */
export function getFeature(request: Request): Answer {
  const { session, strings } = request;
  if (strings.length === 0) return textAnswer(session.subject.features);
  if (!isPrivileged(session.subject)) return "EACCES";
  if (strings.length > 1) return "EINVAL";
  const domain = namedDomain(request, strings[0]);
  return typeof domain === "string" ? domain : textAnswer(domain.features);
}

/** DOMID and bits: only until the domain is introduced, for then it has seen what it has. */
export function setFeature(request: Request): Answer {
  const { strings } = request;
  const features = numberOf(strings[1]);
  if (strings.length !== 2 || features === undefined) return "EINVAL";
  const domain = namedDomain(request, strings[0]);
  if (typeof domain === "string") return domain;
  if (domain.introduced) return "EBUSY";
  if ((features & ~XENSTORE_SERVER_FEATURES) !== 0) return "EINVAL";
  domain.features = features;
  request.session.state.journal?.domain(domain.kept());
  return OK;
}

/** Nothing: the names of all. NAME: its value for all domains. DOMID and NAME: its value for that one. */
export function getQuota(request: Request): Answer {
  const { strings, session } = request;
  if (strings.length > 2) return "EINVAL";
  const name = strings.at(-1);
  if (name === undefined) return textAnswer(quotas.map((quota) => quota.name).join(" "));
  const holder = strings.length === 1 ? session.state.domains : namedDomain(request, strings[0]);
  if (typeof holder === "string") return holder;
  const quota = findQuota(name);
  if (quota === undefined) return "EINVAL";
  const value = holder.limit(quota.limit);
  return textAnswer(Number.isFinite(value) ? value : 0);
}

/** NAME and VALUE for all domains that have none of their own; DOMID, NAME and VALUE for one. 0 is no limit. */
export function setQuota(request: Request): Answer {
  const { strings, session } = request;
  const value = numberOf(strings.at(-1));
  if (strings.length < 2 || strings.length > 3 || value === undefined) return "EINVAL";
  const holder = strings.length === 2 ? session.state.domains : namedDomain(request, strings[0]);
  if (typeof holder === "string") return holder;
  const quota = findQuota(strings.at(-2) as string);
  if (quota === undefined) return "EINVAL";
  const limit = value === 0 ? Number.POSITIVE_INFINITY : value;
  holder.setLimit(quota.limit, limit);
  const { journal } = session.state;
  if (holder instanceof KnownDomain) journal?.domain(holder.kept());
  else journal?.limit(quota.limit, limit);
  return OK;
}
