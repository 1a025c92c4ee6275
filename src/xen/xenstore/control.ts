/**
 * XS_CONTROL: what xenstore-control asks (docs/misc/xenstore.txt, CONTROL; the commands and the form of their answers
 * are those of the C daemon of Xen 4.17).
 *
 * Invariant: nothing that a client names is opened or run; what is not here is EINVAL.
 */
import { findQuota, quotas } from "./limits.ts";
import { INTRODUCE_DOMAIN, RELEASE_DOMAIN } from "./paths.ts";
import { ownerOf } from "./permissions.ts";
import { type Answer, domidOf, numberOf, OK, type Request, textAnswer } from "./request.ts";
import type { Session } from "./session.ts";
import { nodeBytes, type Tree } from "./tree.ts";

type Command = (session: Session, words: readonly string[]) => Answer;

const commands: Readonly<Record<string, { words: string; answer: Command }>> = {
  check: { words: "", answer: check },
  log: { words: "on|off", answer: log },
  "live-update": { words: "(not here)", answer: liveUpdate },
  print: { words: "<string>", answer: print },
  quota: { words: "[set <name> <val>|<domid>]", answer: quota },
  help: { words: "", answer: help },
};

export function control({ session, strings }: Request): Answer {
  const [name = "", ...words] = strings;
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  return command === undefined ? "EINVAL" : command.answer(session, words);
}

function help(_: Session, words: readonly string[]): Answer {
  if (words.length > 0) return "EINVAL";
  const lines = Object.entries(commands).map(([name, command]) => `${name}\t${command.words}\n`);
  return textAnswer(lines.join(""));
}

function check({ state }: Session, words: readonly string[]): Answer {
  return words.length > 0 ? "EINVAL" : textAnswer(checkTree(state.tree));
}

/** Whether what the tree keeps beside its nodes agrees with them. */
function checkTree(tree: Tree): string {
  const owned = new Map<number, { nodes: number; bytes: number }>();
  for (const path of ["/", INTRODUCE_DOMAIN, RELEASE_DOMAIN]) {
    for (const placed of tree.below(path)) {
      const domid = ownerOf(placed.node.permissions);
      const { nodes, bytes } = owned.get(domid) ?? { nodes: 0, bytes: 0 };
      owned.set(domid, {
        nodes: nodes + 1,
        bytes: bytes + placed.path.length + nodeBytes(placed.node),
      });
    }
  }
  const wrong = [...owned].filter(
    ([domid, { nodes, bytes }]) => tree.owned(domid) !== nodes || tree.ownedBytes(domid) !== bytes,
  );
  return wrong.length === 0 ? "OK" : `nodes of domains ${wrong.map(([domid]) => domid)} miscounted`;
}

function log({ state }: Session, words: readonly string[]): Answer {
  const [word] = words;
  if (words.length !== 1 || (word !== "on" && word !== "off")) return "EINVAL";
  state.trace.on = word === "on";
  return OK;
}

function print({ state }: Session, words: readonly string[]): Answer {
  if (words.length !== 1) return "EINVAL";
  state.trace.print(words[0] as string);
  return OK;
}

function liveUpdate(_: Session, words: readonly string[]): Answer {
  return words.length === 0
    ? "EINVAL"
    : textAnswer("This xenstored cannot update itself while it runs: restart it.");
}

function quota(session: Session, words: readonly string[]): Answer {
  const [word, name = ""] = words;
  const { domains } = session.state;
  if (word === "set") {
    const value = numberOf(words[2]);
    const found = findQuota(name);
    if (words.length !== 3 || !value || found === undefined) return "EINVAL";
    domains.setLimit(found.limit, value);
    session.state.journal?.limit(found.limit, value);
    return OK;
  }
  if (words.length > 1) return "EINVAL";
  if (word !== undefined) return quotaOf(session, word);
  const lines = quotas.map(({ name, limit, about }) => {
    const value = domains.limit(limit);
    return `${name.padEnd(17)}: ${String(Number.isFinite(value) ? value : 0).padStart(8)} ${about}\n`;
  });
  return textAnswer(`Quota settings:\n${lines.join("")}`);
}

/** What a domain has of what is limited. */
function quotaOf({ state }: Session, word: string): Answer {
  const domid = domidOf(word);
  if (domid === undefined) return "EINVAL";
  if (!state.domains.exists(domid)) return "ENOENT";
  const { watches, watchBytes, transactions } = state.domains.get(domid);
  const counts = {
    nodes: state.tree.owned(domid),
    watches,
    transactions,
    memory: state.tree.ownedBytes(domid) + watchBytes,
  };
  const lines = Object.entries(counts).map(
    ([name, count]) => `${name.padEnd(16)}: ${String(count).padStart(8)}\n`,
  );
  return textAnswer(`Domain ${domid}:\n${lines.join("")}`);
}
