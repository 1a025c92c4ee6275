/**
 * Any NBD server as a disk: nbdkit, qemu-nbd, another vbdkit; and through them every format and engine they know.
 * Answers to nbd_connect_uri(3) and the NBD protocol; the client itself is nbd/client.ts.
 */
import { MAX_CONNECTIONS, openNbdStore } from "../../nbd/client.ts";
import { parseNbdUri } from "../../nbd/uri.ts";
import type { StoreDriver } from "../block-store.ts";

export interface NbdDriverOptions {
  readonly uri: string;
  readonly export: string | undefined;
  readonly connections: number;
}

export const nbdDriver: StoreDriver<NbdDriverOptions> = {
  name: "nbd",
  summary: "an export of any NBD server",
  positional: "uri",
  parameters: {
    uri: {
      help: "Where the server is: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=/PATH.",
      value: "URI",
      parse(text) {
        parseNbdUri(text);
        return text;
      },
    },
    export: {
      help: "Name of the export, instead of the one in the URI.",
      value: "NAME",
      optional: true,
      parse: (text) => text,
    },
    connections: {
      help: `Connections to the server, 1 to ${MAX_CONNECTIONS}; one where it allows no more.`,
      value: "COUNT",
      default: 1,
      parse(text) {
        const count = Number(text);
        if (!/^\d+$/.test(text) || count < 1 || count > MAX_CONNECTIONS) {
          throw new Error(`not a number from 1 to ${MAX_CONNECTIONS}`);
        }
        return count;
      },
    },
  },
  open(options, context) {
    return openNbdStore({
      reactor: context.reactor,
      uri: options.uri,
      ...(options.export === undefined ? {} : { exportName: options.export }),
      connections: options.connections,
      readOnly: context.readOnly,
      signal: context.signal,
    });
  },
};
