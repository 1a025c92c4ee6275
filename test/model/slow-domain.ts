/** A domain that waits before each of its operations on the xenstore, as on a machine that does much else: what it reads is
 * older when it acts on it, and changes that others make meanwhile are one event. */
import { setImmediate as turn } from "node:timers/promises";
import type { Domain, XenStore, XenStoreOperations } from "../../src/xen/domain.ts";

/** The same domain, but for its pauses: turns of the event loop before one operation after the other, over and over. */
export function slowDomain(domain: Domain, pauses: readonly number[]): Domain {
  const { id, grants, events, reactor } = domain;
  let operations = 0;
  const pause = async () => {
    for (let turns = pauses[operations++ % pauses.length]!; turns > 0; turns--) await turn();
  };
  const store = slow(domain.store, pause);
  const transaction: XenStore["transaction"] = (body) =>
    store.transaction((operations) => body(slow(operations, pause)));
  return {
    ...{ id, grants, events, reactor },
    store: new Proxy(store, {
      get: (target, name) => (name === "transaction" ? transaction : Reflect.get(target, name)),
    }),
    [Symbol.asyncDispose]: () => domain[Symbol.asyncDispose](),
  };
}

function slow<T extends XenStoreOperations>(operations: T, pause: () => Promise<void>): T {
  return new Proxy(operations, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name);
      if (typeof member !== "function") return member;
      return async (...words: unknown[]): Promise<unknown> => {
        await pause();
        return await member.apply(target, words);
      };
    },
  });
}
