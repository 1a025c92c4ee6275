import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { canonicalPath, parentPath } from "../../../src/xen/xenstore/paths.ts";
import { type Permissions, PRIVATE } from "../../../src/xen/xenstore/permissions.ts";
import { Tree } from "../../../src/xen/xenstore/tree.ts";

const text = (value: string): Uint8Array => Buffer.from(value);

/** Every node as "PATH=VALUE", parents first. */
function dump(tree: Tree): string[] {
  return tree
    .below("/")
    .map(({ path, node }) => `${path}=${Buffer.from(node.value).toString()}`)
    .reverse();
}

test("a new tree has the root and the two special nodes, for domain 0 alone", () => {
  const tree = Tree.empty();
  for (const path of ["/", "@introduceDomain", "@releaseDomain"]) {
    assert.deepEqual(tree.get(path)?.permissions, PRIVATE);
  }
  assert.equal(tree.owned(0), 3);
});

test("children keep the order in which they were made", () => {
  const tree = Tree.empty();
  for (const name of ["b", "a", "c"]) tree.create(`/${name}`, PRIVATE);
  tree.remove("/b");
  tree.create("/b", PRIVATE);
  assert.deepEqual([...(tree.get("/")?.children.keys() ?? [])], ["a", "c", "b"]);
  assert.equal(tree.get("/")?.childrenBytes, 6);
});

test("a snapshot and its tree do not see each other's changes", () => {
  const tree = Tree.empty();
  tree.create("/a", PRIVATE, text("1"));
  tree.create("/a/b", PRIVATE, text("2"));
  const before = tree.snapshot();
  const picture = tree.snapshot();
  tree.setValue("/a/b", text("3"));
  picture.remove("/a/b");
  picture.create("/c", PRIVATE);
  assert.deepEqual(dump(tree), ["/=", "/a=1", "/a/b=3"]);
  assert.deepEqual(dump(picture), ["/=", "/c=", "/a=1"]);
  assert.deepEqual(dump(before), ["/=", "/a=1", "/a/b=2"]);
});

test("removing gives back what was below, children first, and counts them out", () => {
  const tree = Tree.empty();
  const mine: Permissions = [{ domid: 5, access: "none" }];
  for (const path of ["/a", "/a/b", "/a/b/c", "/a/d"]) tree.create(path, mine);
  assert.equal(tree.owned(5), 4);
  assert.deepEqual(
    tree.remove("/a").map(({ path }) => path),
    ["/a/b/c", "/a/b", "/a/d", "/a"],
  );
  assert.equal(tree.owned(5), 0);
});

test("the deepest path there can be is walked without recursion", () => {
  const tree = Tree.empty();
  const path = `${"/x".repeat(1024)}`;
  assert.equal(canonicalPath(path, 0), path);
  for (let depth = 1; depth <= 1024; depth++) tree.create("/x".repeat(depth), PRIVATE);
  assert.equal(tree.below("/").length, 1025);
  assert.equal(tree.remove("/x").length, 1024);
});

test("any mix of changes and snapshots reads like plain maps", () => {
  const paths = ["/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/p", "/a/x/q"];
  const step = fc.record({
    tree: fc.nat(3),
    kind: fc.constantFrom("write", "remove", "snapshot"),
    path: fc.constantFrom(...paths),
  });
  fc.assert(
    fc.property(fc.array(step, { size: "max", maxLength: 80 }), (steps) => {
      const pairs = [{ tree: Tree.empty(), model: new Map<string, string>(), before: -3 }];
      for (const [number, { tree: which, kind, path }] of steps.entries()) {
        const pair = pairs[which % pairs.length]!;
        const { tree, model } = pair;
        if (kind === "snapshot") {
          const before = model.size;
          if (pairs.length < 4)
            pairs.push({ tree: tree.snapshot(), model: new Map(model), before });
        } else if (kind === "remove") {
          if (model.has(path)) tree.remove(path);
          for (const key of [...model.keys()]) {
            if (key === path || key.startsWith(`${path}/`)) model.delete(key);
          }
        } else if (model.has(path)) {
          tree.setValue(path, text(`${number}`));
          model.set(path, `${number}`);
        } else if (parentPath(path) === "/" || model.has(parentPath(path))) {
          tree.create(path, PRIVATE, text(`${number}`));
          model.set(path, `${number}`);
        }
        for (const { tree, model } of pairs) {
          for (const path of paths) {
            const value = tree.get(path)?.value;
            assert.equal(value && Buffer.from(value).toString(), model.get(path));
            assert.equal(tree.remembers(path), model.has(path));
          }
        }
      }
      for (const { tree, model, before } of pairs) {
        const expected = [...model].map(([path, value]) => `${path}=${value}`);
        assert.deepEqual(dump(tree).sort(), ["/=", ...expected].sort());
        assert.equal(tree.owned(0), model.size - before);
      }
    }),
  );
});

test("what was missing is found once it is made, with what lies beside and below it", () => {
  const tree = Tree.empty();
  const deep = `/a${"/b".repeat(500)}`;
  for (let path = deep; path !== "/"; path = parentPath(path)) {
    assert.equal(tree.get(path), undefined);
  }
  tree.create("/ab", PRIVATE);
  assert.equal(tree.get("/a/c"), undefined);
  assert.ok(tree.get("/ab"), "its name only begins as the missing one");
  tree.create("/a", PRIVATE);
  assert.ok(tree.get("/a"));
  assert.equal(tree.get("/a/b"), undefined);
  tree.create("/a/b", PRIVATE);
  assert.ok(tree.get("/a/b"));
  assert.equal(tree.get(deep), undefined);
  tree.remove("/a");
  assert.equal(tree.get("/a/b"), undefined);
  assert.equal(tree.get("/a"), undefined);
  tree.create("/a", PRIVATE);
  assert.ok(tree.get("/a"));
  assert.equal(tree.get("/a/b"), undefined);
});

test("paths are absolute or below the domain's own directory, and have no empty names", () => {
  assert.equal(canonicalPath("/a/b", 3), "/a/b");
  assert.equal(canonicalPath("data/x", 3), "/local/domain/3/data/x");
  assert.equal(canonicalPath("/", 3), "/");
  for (const wrong of ["", "/a/", "//", "/a//b", "a/", "/a b", "/a\n", "/\xe4", "@x"]) {
    assert.equal(canonicalPath(wrong, 0), undefined, JSON.stringify(wrong));
  }
  assert.equal(canonicalPath("@releaseDomain", 0, true), "@releaseDomain");
});

test("a path is as long below a domain's directory as relative to it", () => {
  const longest = "x".repeat(2048);
  assert.equal(canonicalPath(longest, 1), `/local/domain/1/${longest}`);
  assert.equal(canonicalPath(`${longest}x`, 1), undefined);
  assert.equal(canonicalPath(`/local/domain/1/${longest}x`, 0), undefined);
  assert.equal(canonicalPath(`/${longest}`, 0), undefined);
});
