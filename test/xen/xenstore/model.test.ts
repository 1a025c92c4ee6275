/** Three domains do whatever comes to mind; a model that is a plain map of paths says what they are to be answered. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  XS_CONTROL,
  XS_DIRECTORY,
  XS_GET_PERMS,
  XS_MKDIR,
  XS_READ,
  XS_RM,
  XS_SET_PERMS,
  XS_WRITE,
} from "../../../src/wire/xenstore.ts";
import { XenStoreDaemon } from "../../../src/xen/xenstore/daemon.ts";
import { RawClient } from "./raw-client.ts";

const RIGHTS: Readonly<Record<string, string>> = { n: "", r: "r", w: "w", b: "rw" };

class Model {
  readonly nodes = new Map<string, { value: string; permissions: string[] }>();

  constructor() {
    for (const path of ["/", "/tool", "/tool/xenstored"]) {
      this.nodes.set(path, { value: "", permissions: ["n0"] });
    }
  }

  parent(path: string): string {
    return path.slice(0, path.lastIndexOf("/")) || "/";
  }

  rights(domid: number, permissions: string[]): string {
    if (domid === 0 || Number(permissions[0]!.slice(1)) === domid) return "rwo";
    const entry = permissions.slice(1).find((word) => Number(word.slice(1)) === domid);
    return RIGHTS[(entry ?? permissions[0]!).charAt(0)]!;
  }

  /** The error that stands in the way of `need`, if one does. */
  obstacle(domid: number, path: string, need: string): string | undefined {
    const node = this.nodes.get(path);
    if (node !== undefined && [...need].every((right) => this.has(domid, path, right))) return;
    let above = this.parent(path);
    while (!this.nodes.has(above)) above = this.parent(above);
    const mayKnow = [...need].some((right) => this.has(domid, above, right));
    return node === undefined && mayKnow ? "ENOENT" : "EACCES";
  }

  has(domid: number, path: string, right: string): boolean {
    return this.rights(domid, this.nodes.get(path)!.permissions).includes(right);
  }

  make(domid: number, path: string, value: string): void {
    const parent = this.parent(path);
    if (!this.nodes.has(parent)) this.make(domid, parent, "");
    const [first, ...others] = this.nodes.get(parent)!.permissions as [string, ...string[]];
    const owner = domid === 0 ? first : first.charAt(0) + domid;
    this.nodes.set(path, { value, permissions: [owner, ...others] });
  }

  answer(domid: number, type: number, path: string, words: readonly string[]): string {
    const needs =
      type === XS_SET_PERMS ? "wo" : [XS_WRITE, XS_MKDIR, XS_RM].includes(type) ? "w" : "r";
    const obstacle = this.obstacle(domid, path, needs);
    if (type === XS_RM && obstacle === "ENOENT")
      return this.nodes.has(this.parent(path)) ? "OK" : obstacle;
    if ((type === XS_WRITE || type === XS_MKDIR) && obstacle === "ENOENT") {
      this.make(domid, path, words[0] ?? "");
      return "OK";
    }
    if (obstacle !== undefined) return obstacle;
    const node = this.nodes.get(path)!;
    if (type === XS_READ) return node.value;
    if (type === XS_GET_PERMS) return node.permissions.join(",");
    if (type === XS_DIRECTORY) {
      return [...this.nodes.keys()]
        .filter((other) => other !== "/" && this.parent(other) === path)
        .map((child) => child.slice(child.lastIndexOf("/") + 1))
        .join(",");
    }
    if (type === XS_WRITE) node.value = words[0]!;
    if (type === XS_SET_PERMS) {
      const kept = Number(words[0]!.slice(1)) === Number(node.permissions[0]!.slice(1));
      if (domid !== 0 && !kept) return "EPERM";
      node.permissions = [...words];
    }
    if (type === XS_RM) {
      for (const other of [...this.nodes.keys()]) {
        if (other === path || other.startsWith(`${path}/`)) this.nodes.delete(other);
      }
    }
    return "OK";
  }
}

const path = fc.constantFrom("/a", "/b", "/a/x", "/a/y", "/a/x/p", "/b/q/r/s", "/b/q");
const permission = fc.constantFrom(
  "n0",
  "r0",
  "b0",
  "n1",
  "r1",
  "w1",
  "b1",
  "n2",
  "r2",
  "w2",
  "b2",
);
const step = fc.tuple(
  fc.nat(2),
  fc.oneof(
    fc.tuple(fc.constant(XS_WRITE), path, fc.tuple(fc.constantFrom("1", "2"))),
    fc.tuple(
      fc.constantFrom(XS_MKDIR, XS_RM, XS_READ, XS_DIRECTORY, XS_GET_PERMS),
      path,
      fc.constant([]),
    ),
    fc.tuple(fc.constant(XS_SET_PERMS), path, fc.array(permission, { minLength: 1, maxLength: 3 })),
  ),
);

test("whatever domains of different rights do, the answers are those of the model", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { size: "max", maxLength: 80 }), async (steps) => {
      await using daemon = new XenStoreDaemon();
      const clients = [0, 1, 2].map((domid) => new RawClient(daemon.connect(domid)));
      const model = new Model();
      for (const [domid, [type, where, words]] of steps) {
        const data = type === XS_WRITE;
        const payload = data ? `${where}\0${words[0]}` : [where, ...words, ""].join("\0");
        const expected = model.answer(domid, type, where, words);
        const answer = await clients[domid]!.raw(type, payload);
        assert.equal(answer, expected, `domain ${domid}: ${type} ${where} ${words}`);
      }
      assert.equal(await clients[0]!.ask(XS_CONTROL, ["check"]), "OK");
    }),
    { numRuns: 200 },
  );
});
