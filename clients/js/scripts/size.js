// Prints how large the module is for a page, minified and compressed, and fails above the limit. `npm run size`.

import { gzipSync } from "node:zlib";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

/** 5 KB. What a page gains by the client has to be worth its download. */
export const LIMIT = 5000;

/** Returns the bytes of the minified module, plain and by gzip. */
export async function size() {
  const entry = fileURLToPath(new URL("../index.js", import.meta.url));
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    write: false,
  });
  const [{ contents }] = outputFiles;
  return { minified: contents.length, gzipped: gzipSync(contents, { level: 9 }).length };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { minified, gzipped } = await size();
  console.log(`index.js: ${minified} bytes minified, ${gzipped} gzipped; the limit is ${LIMIT}`);
  process.exitCode = gzipped > LIMIT ? 1 : 0;
}
