/**
 * Carries a guest from one machine to another: two sockets in a folder of our own (0700), at which each of them calls, and
 * the bytes between them.
 *
 * Invariant: a side that ends, ends the other, also one that has not called yet: nobody waits for one that is gone.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { listenOnUnixSocket } from "../io/unix-socket.ts";

export class Relay implements AsyncDisposable {
  readonly #folder: string;
  readonly #servers: Server[] = [];
  readonly #sockets: Socket[] = [];
  #ended = false;

  static async open(): Promise<Relay> {
    const relay = new Relay(await mkdtemp(join(tmpdir(), "vbdkit-migrate-")));
    try {
      for (const path of [relay.sender, relay.receiver]) await relay.#listen(path);
      return relay;
    } catch (error) {
      await relay[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Where whoever sends calls. */
  get sender(): string {
    return join(this.#folder, "sender.sock");
  }

  get receiver(): string {
    return join(this.#folder, "receiver.sock");
  }

  async #listen(path: string): Promise<void> {
    const server = createServer((socket) => {
      server.close();
      this.#sockets.push(socket);
      socket.on("error", () => {});
      socket.on("close", () => this.end());
      if (this.#ended) socket.destroy();
      const [one, other] = this.#sockets;
      if (one === undefined || other === undefined) return;
      // What ends or breaks is seen by the close of the sockets.
      void pipeline(one, other, { end: false }).catch(() => {});
      void pipeline(other, one, { end: false }).catch(() => {});
    });
    this.#servers.push(server);
    await listenOnUnixSocket(server, path, 0o600);
  }

  /** Neither side waits any longer. */
  end(): void {
    this.#ended = true;
    for (const socket of this.#sockets) socket.destroySoon();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.end();
    for (const server of this.#servers) server.close();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
