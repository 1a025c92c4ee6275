import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parentPath } from "../../../src/xen/xenstore/paths.ts";
import { PRIVATE } from "../../../src/xen/xenstore/permissions.ts";
import { Transaction } from "../../../src/xen/xenstore/transaction.ts";
import { Tree } from "../../../src/xen/xenstore/tree.ts";

/** Somebody watches everything. */
const heard = { hears: (): boolean => true };
const boundless = { domid: 0, touchedNodes: 1e9, ownedNodes: 1e9 };
const text = (value: string): Uint8Array => Buffer.from(value);
const value = (tree: Pick<Tree, "get">, path: string): string | undefined => {
  const node = tree.get(path);
  return node === undefined ? undefined : Buffer.from(node.value).toString();
};

function treeOf(...paths: string[]): Tree {
  const tree = Tree.empty();
  for (const path of paths) tree.create(path, PRIVATE, text("old"));
  return tree;
}

test("a transaction sees the tree as it began, and its own changes; the tree sees them at the end", () => {
  const tree = treeOf("/a", "/b");
  const transaction = new Transaction(tree, boundless);
  tree.setValue("/b", text("new"));
  transaction.setValue("/a", text("mine"));
  transaction.create("/c", PRIVATE);
  assert.equal(value(transaction, "/a"), "mine");
  assert.equal(value(tree, "/a"), "old");
  assert.equal(tree.get("/c"), undefined);
  assert.ok(Array.isArray(transaction.commit(tree, heard)));
  assert.equal(value(tree, "/a"), "mine");
  assert.equal(value(tree, "/b"), "new");
  assert.equal(value(tree, "/c"), "");
});

test("a node that it read and somebody changed makes it EAGAIN, and changes nothing", () => {
  const tree = treeOf("/a", "/b");
  const transaction = new Transaction(tree, boundless);
  transaction.get("/a");
  transaction.setValue("/b", text("mine"));
  tree.setValue("/a", text("old"));
  assert.equal(transaction.commit(tree, heard), "EAGAIN");
  assert.equal(value(tree, "/b"), "old");
});

test("a missing node that it looked for and somebody made makes it EAGAIN", () => {
  const tree = treeOf();
  const transaction = new Transaction(tree, boundless);
  assert.equal(transaction.get("/a"), undefined);
  tree.create("/a", PRIVATE);
  assert.equal(transaction.commit(tree, heard), "EAGAIN");
});

test("two that make different nodes in one directory both commit", () => {
  const tree = treeOf("/d");
  const one = new Transaction(tree, boundless);
  const two = new Transaction(tree, boundless);
  one.create("/d/1", PRIVATE);
  two.create("/d/2", PRIVATE);
  assert.ok(Array.isArray(one.commit(tree, heard)));
  assert.ok(Array.isArray(two.commit(tree, heard)));
  assert.deepEqual([...(tree.get("/d")?.children.keys() ?? [])], ["1", "2"]);
});

test("a directory that it listed or removed must not have got children meanwhile", () => {
  for (const act of ["listed", "remove"] as const) {
    const tree = treeOf("/d", "/d/1");
    const transaction = new Transaction(tree, boundless);
    transaction[act]("/d");
    tree.create("/d/2", PRIVATE);
    assert.equal(transaction.commit(tree, heard), "EAGAIN", act);
  }
});

test("what is removed and made again loses its children, and is last in its directory", () => {
  const tree = treeOf("/a", "/a/x", "/b");
  const transaction = new Transaction(tree, boundless);
  transaction.remove("/a");
  transaction.create("/a", PRIVATE, text("again"));
  assert.ok(Array.isArray(transaction.commit(tree, heard)));
  assert.equal(tree.get("/a/x"), undefined);
  assert.equal(value(tree, "/a"), "again");
  assert.deepEqual([...(tree.get("/")?.children.keys() ?? [])], ["b", "a"]);
});

test("a commit is what the same changes are without a transaction, however they mix", () => {
  const paths = fc.constantFrom("/a", "/b", "/a/x", "/a/y", "/a/x/p", "/b/q");
  const step = fc.record({ write: fc.boolean(), path: paths });
  fc.assert(
    fc.property(
      fc.array(step, { size: "max", maxLength: 30 }),
      fc.array(step, { size: "max", maxLength: 30 }),
      (a, b) => {
        const tree = Tree.empty();
        const plain = Tree.empty();
        for (const steps of [a, b]) {
          const transaction = new Transaction(tree, boundless);
          for (const [number, { write, path }] of steps.entries()) {
            for (const target of [transaction, plain]) {
              const node = target.get(path);
              if (!write) {
                if (node !== undefined) target.remove(path);
              } else if (node !== undefined) target.setValue(path, text(`${number}`));
              else if (target.get(parentPath(path)) !== undefined) {
                target.create(path, PRIVATE, text(`${number}`));
              }
            }
          }
          assert.ok(Array.isArray(transaction.commit(tree, heard)));
        }
        const dump = (of: Tree): string[] =>
          of.below("/").map(({ path }) => `${path}=${value(of, path)}`);
        assert.deepEqual(dump(tree), dump(plain));
        assert.equal(tree.owned(0), plain.owned(0));
      },
    ),
  );
});
