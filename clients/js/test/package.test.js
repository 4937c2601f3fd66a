// What is published: the files, the size, the types, the entry points.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { LIMIT, size } from "../scripts/size.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");
const described = JSON.parse(read("package.json"));
const run = (command, ...values) => promisify(execFile)(command, values, { cwd: root });

/** Returns the paths of the files that are published. */
async function packedFiles() {
  const { stdout } = await run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--offline");
  const answer = JSON.parse(stdout);
  // A list of packages, or since npm 11 an object by their names.
  const [packed] = Array.isArray(answer) ? answer : Object.values(answer);
  return packed.files.map(({ path }) => path).sort();
}

/** Returns the anchors of a page's headings, as GitHub and npm make them. */
function anchors(page) {
  const headings = [...read(page).matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading.toLowerCase());
  return headings.map((heading) => heading.replace(/[^\w\- ]/g, "").replaceAll(" ", "-"));
}

test("the package has the module, its types and its papers, and nothing else", async () => {
  const files = await packedFiles();
  assert.deepEqual(files, ["CHANGELOG.md", "LICENSE", "README.md", "index.d.ts", "index.js", "package.json"]);
});

test("the links of its papers lead to what is packed", async () => {
  const files = await packedFiles();
  for (const page of files.filter((path) => path.endsWith(".md"))) {
    const links = [...read(page).matchAll(/\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)/gm)].map(([, inline, below]) => inline ?? below);
    for (const link of links.filter((to) => !/^[a-z]+:/.test(to))) {
      const [path, anchor] = link.split("#");
      const to = path.replace(/^\.\//, "") || page;
      assert.ok(files.includes(to), `${page}: ${link} is not packed`);
      if (anchor !== undefined) assert.ok(anchors(to).includes(anchor), `${page}: ${link} has no heading`);
    }
  }
});

test("nothing is installed with it, and nothing runs", () => {
  for (const kind of ["dependencies", "peerDependencies", "optionalDependencies", "bundleDependencies"]) {
    assert.equal(described[kind], undefined);
  }
  const scripts = Object.keys(described.scripts);
  assert.deepEqual(scripts.filter((name) => /^(pre|post)?(install|prepare|publish|pack)/.test(name)), []);
  assert.doesNotMatch(read("index.js"), /^import |\bimport\(|\brequire\(/m);
});

test("its licence and its version are those of the gateway", () => {
  assert.equal(read("LICENSE"), read("../../LICENSE"));
  const cargo = read("../../Cargo.toml");
  assert.equal(described.version, /^version = "(.*)"/m.exec(cargo)[1]);
  assert.equal(described.license, /^license = "(.*)"/m.exec(cargo)[1]);
  assert.match(read("CHANGELOG.md"), new RegExp(`^# ${described.version.replaceAll(".", "\\.")}\\b`, "m"));
});

test(`it has at most ${LIMIT} bytes for a page`, async (t) => {
  const { minified, gzipped } = await size();
  t.diagnostic(`${minified} bytes minified, ${gzipped} gzipped`);
  assert.ok(gzipped <= LIMIT, `${gzipped} bytes`);
  const [, told] = /(\d\.\d) KB\s+minified and gzipped/.exec(read("README.md"));
  assert.equal(told, (gzipped / 1000).toFixed(1), "the README tells another size");
});

test("its name leads to the module, with the names that the types declare", async () => {
  const module = await import("@lockgate/client");
  assert.equal(module, await import("../index.js"));
  const declared = [...read("index.d.ts").matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(Object.keys(module), declared.sort());
});

test("the types have every option and every event, and no other", () => {
  const types = read("index.d.ts");
  const members = (name) => {
    const [, body] = new RegExp(`^export interface ${name}\\b.*?\\{\\n(.*?)\\n\\}`, "ms").exec(types);
    return [...body.matchAll(/^ {2}(\w+)\??:/gm)].map(([, member]) => member);
  };
  const [, options] = /^const DEFAULTS = \{\n(.*?)\n\};/ms.exec(read("index.js"));
  assert.deepEqual(members("Options").sort(), [...options.matchAll(/^ {2}(\w+)/gm)].map(([, name]) => name).sort());
  const [, events] = /^const EVENTS = \[(.*)\];/m.exec(read("index.js"));
  assert.deepEqual(members("Events").sort(), JSON.parse(`[${events}]`).sort());
});

test("TypeScript takes what is right, and nothing else", async () => {
  await run("npx", "--no-install", "tsc", "--project", "test/types").catch(({ stdout, message }) => assert.fail(stdout || message));
});
