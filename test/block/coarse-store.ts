/** Stores that cannot everything: of large blocks, or without an operation that they say they have. */
import type { Reactor } from "../../src/io/reactor.ts";
import {
  type BlockRequest,
  type BlockStore,
  type BlockStoreInfo,
  Operation,
} from "../../src/store/block-store.ts";
import { checkRequest } from "../../src/store/check-request.ts";
import { Errno } from "../../src/store/errors.ts";
import { ForwardingStore } from "../../src/store/forwarding-store.ts";
import { openStore } from "../../src/store/registry.ts";

/** Takes whole blocks alone, as a disk of 4 KiB sectors does. */
export class CoarseStore extends ForwardingStore {
  readonly #minimum: number;
  #info: BlockStoreInfo | undefined = undefined;

  constructor(next: BlockStore, minimum: number, reactor: Reactor) {
    super(next, reactor);
    this.#minimum = minimum;
  }

  override get info(): BlockStoreInfo {
    const { block, ...rest } = this.next.info;
    if (this.#info?.size !== rest.size) {
      this.#info = { ...rest, block: { ...block, minimum: this.#minimum } };
    }
    return this.#info;
  }

  override submit(request: BlockRequest): void {
    const refusal = checkRequest(this.info, request);
    if (refusal === 0) this.next.submit(request);
    else this.answer(request, refusal);
  }
}

/** Answers some operations with EOPNOTSUPP, and keeps the order in which it was asked. */
export class LackingStore extends ForwardingStore {
  readonly asked: string[] = [];
  readonly #lacks: readonly Operation[];

  constructor(next: BlockStore, lacks: readonly Operation[], reactor: Reactor) {
    super(next, reactor);
    this.#lacks = lacks;
  }

  override submit(request: BlockRequest): void {
    const { operation, offset } = request;
    const name = Object.keys(Operation)[operation]!;
    this.asked.push(operation === Operation.flush ? name : `${name} ${offset}`);
    if (this.#lacks.includes(operation)) this.answer(request, Errno.EOPNOTSUPP);
    else this.next.submit(request);
  }
}

export function memoryStore(reactor: Reactor, size = "1M", delay?: string): Promise<BlockStore> {
  const filters = delay === undefined ? [] : [{ name: "delay", parameters: { delay } }];
  return openStore({ driver: "memory", parameters: { size }, filters }, { reactor });
}
