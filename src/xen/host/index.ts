/** The domain of a real Xen that this process runs in; docs/xen-host.md has what it needs. */
export { type HostOptions, openHost, openHostStore } from "./domain.ts";
