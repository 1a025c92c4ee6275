/** Asking whatever findServer found: a running server, or the Xen host that we run on. */
import { type AskOptions, askServer, type RequestFields, XEN_HOST } from "./control.ts";

/** Notes go to standard error. Rejects with a UsageError where nobody is there to ask, and with what it says. */
export async function ask<T>(
  server: string,
  request: string,
  options: AskOptions = {},
): Promise<T> {
  if (server !== XEN_HOST) return await askServer<T>(server, request, options);
  const { fields = {}, signal = new AbortController().signal } = options;
  signal.throwIfAborted();
  const { askHost } = await import("./host-world.ts");
  const note = (text: string) => void process.stderr.write(`vbdkit: ${text}\n`);
  return (await askHost(request, fields as RequestFields, { signal, note })) as T;
}
