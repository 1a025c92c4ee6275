import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Children } from "../../../src/xen/xenstore/children.ts";

test("children and their copies, however often they change, read like maps of their own", () => {
  const step = fc.record({
    whose: fc.nat(3),
    kind: fc.constantFrom("set", "set", "delete", "copy"),
    name: fc.nat(5).map(String),
  });
  fc.assert(
    fc.property(fc.array(step, { size: "max", maxLength: 200 }), (steps) => {
      const pairs = [{ children: new Children<number>(), model: new Map<string, number>() }];
      for (const [number, { whose, kind, name }] of steps.entries()) {
        const { children, model } = pairs[whose % pairs.length]!;
        if (kind === "copy") {
          if (pairs.length < 4) pairs.push({ children: children.copy(), model: new Map(model) });
        } else if (kind === "set") {
          children.set(name, number);
          model.set(name, number);
        } else {
          children.delete(name);
          model.delete(name);
        }
        for (const { children, model } of pairs) {
          assert.deepEqual([...children], [...model]);
          assert.deepEqual([...children.keys()], [...model.keys()]);
          assert.equal(children.get(name), model.get(name));
          assert.equal(children.has(name), model.has(name));
        }
      }
    }),
  );
});

test("ten thousand children that come and go one after the other keep their order", () => {
  const children = new Children<number>();
  children.set("first", -1);
  for (let number = 0; number < 10_000; number++) {
    children.set(`${number}`, number);
    if (number > 0) children.delete(`${number - 1}`);
  }
  assert.deepEqual(
    [...children],
    [
      ["first", -1],
      ["9999", 9999],
    ],
  );
});
