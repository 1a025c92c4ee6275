/** Where the system's xenstore listens, as xs_daemon_socket of libxenstore finds it: XENSTORED_PATH, else `socket` in
 * XENSTORED_RUNDIR, else in /run/xenstored. */
export function xenStoreSocketPath(environment: Readonly<NodeJS.ProcessEnv>): string {
  const { XENSTORED_PATH, XENSTORED_RUNDIR = "/run/xenstored" } = environment;
  return XENSTORED_PATH ?? `${XENSTORED_RUNDIR}/socket`;
}
