// The code that the pages show: it parses, and names what there is.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { transform } from "esbuild";

import * as client from "../index.js";

for (const page of ["clients/js/README.md", "docs/moving-from-channels.md", "README.md"]) {
  test(`${page} shows JavaScript that is right`, async () => {
    const text = readFileSync(new URL(`../../../${page}`, import.meta.url), "utf8");
    const pages = [...text.matchAll(/<script type="module">\n(.*?)<\/script>/gs)];
    const blocks = [...text.matchAll(/^```js\n(.*?)^```/gms), ...pages].map(([, block]) => block);
    assert.ok(blocks.length > 0);
    for (const block of blocks) {
      await transform(block, { format: "esm", target: "es2022" });
      for (const [, names] of block.matchAll(/^ *import \{ (.*?) \} from ["'].*lockgate/gm)) {
        for (const name of names.split(", ")) assert.ok(name in client, name);
      }
      for (const [, name] of block.matchAll(/\.on\(["'](\w+)["']/g)) {
        assert.ok(["open", "event", "gap", "reconnecting", "closed"].includes(name), name);
      }
    }
  });
}

test("the table of options has every option and its default", () => {
  const page = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const section = page.split("\n## Options\n")[1].split("\n## ")[0];
  const rows = section.split("\n").filter((line) => line.startsWith("| `"));
  const documented = rows.flatMap((row) => [...row.split(" | ")[0].matchAll(/`(\w+)`/g)].map(([, name]) => name));
  const types = readFileSync(new URL("../index.d.ts", import.meta.url), "utf8");
  const [, body] = /^export interface Options \{\n(.*?)\n\}/ms.exec(types);
  assert.deepEqual(documented.sort(), [...body.matchAll(/^ {2}(\w+)\?:/gm)].map(([, name]) => name).sort());
});
