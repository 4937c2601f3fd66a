// The code that the pages show: it parses, and names what there is.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { transform } from "esbuild";

import * as client from "../index.js";

for (const page of ["clients/js/README.md", "docs/moving-from-channels.md", "docs/resume.md", "README.md"]) {
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

test("the code of docs/resume.md keeps the gateway's positions, and no event of the application breaks it", () => {
  const page = readFileSync(new URL("../../../docs/resume.md", import.meta.url), "utf8");
  const [, code] = /^```js\n(.*?)^```/ms.exec(page);
  const [socket, reloaded] = [{}, []];
  const run = new Function("socket", "reload", `${code}\nreturn { positions, since }`);
  const { positions, since } = run(socket, (group) => reloaded.push(group));
  for (const data of [
    '{"n":0,"lockgate.position":"a~b~e~0"}',
    '{"type":"lockgate.position","position":"a~b~e~0"}',
    '{"n":1,"lockgate.position":"a~b~e~1"}',
    '{"position":5}',
    '{"position":"a~b~e~9"}',
    '{"lockgate.position":"other~e~3"}',
    '{"lockgate.position":7}',
    "no JSON",
    "null",
    "[]",
    '{"type":"lockgate.gap","group":"a~b"}',
  ]) {
    socket.onmessage({ data });
  }
  assert.deepEqual([...positions], [["a~b", "a~b~e~1"]]);
  assert.equal(since(), "&since=a~b~e~1");
  assert.deepEqual(reloaded, ["a~b"]);
});

test("the table of options has every option and its default", () => {
  const page = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const section = page.split("\n## Options\n")[1].split("\n## ")[0];
  const rows = section.split("\n").filter((line) => line.startsWith("| `"));
  const documented = rows.flatMap((row) => [...row.split(" | ")[0].matchAll(/`(\w+)`/g)].map(([, name]) => name));
  const types = readFileSync(new URL("../index.d.ts", import.meta.url), "utf8");
  const [, body] = /^export interface Options \{\n(.*?)\n\}/ms.exec(types);
  assert.deepEqual(documented.sort(), [...body.matchAll(/^ {2}(\w+)\?:/gm)].map(([, name]) => name).sort());
});
