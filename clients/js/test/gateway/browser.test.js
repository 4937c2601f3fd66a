// A page in headless Chromium that uses the module, with a network that comes and goes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { Page } from "../support/browser.js";
import { Gateway, eventually, sign } from "../support/gateway.js";

const INDEX = fileURLToPath(new URL("../../index.js", import.meta.url));

const PAGE = (url) => `<!doctype html><title>test</title><script type="module">
import { LockgateClient } from "./client.js";
const token = async () => {
  const answer = await fetch("/token");
  if (!answer.ok) throw new Error(answer.status);
  return answer.text();
};
const client = new LockgateClient("${url}", { token, firstDelay: 100, maxDelay: 500 });
window.client = client;
window.told = [];
for (const name of ["open", "event", "gap", "reconnecting", "closed"]) client.on(name, (value) => told.push([name, value]));
window.count = (name) => told.filter(([told]) => told === name).length;
</script>`;

/** Serves the page, the module and tokens, until the test is over. */
async function site(t, url, module) {
  const token = { works: true, asked: 0 };
  const server = createServer((request, answer) => {
    const type = (name) => answer.setHeader("content-type", name);
    if (request.url === "/client.js") return type("text/javascript"), answer.end(module);
    if (request.url !== "/token") return type("text/html"), answer.end(PAGE(url));
    token.asked += 1;
    return token.works ? answer.end(sign("1")) : answer.writeHead(503).end();
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => (server.closeAllConnections(), server.close()));
  return { address: `http://127.0.0.1:${server.address().port}/`, token };
}

async function opened(t, module) {
  const gateway = await Gateway.start(t);
  const { address, token } = await site(t, `${gateway.url}ws/chat/lobby/`, module);
  const page = await Page.open(t, address);
  await page.until("window.client?.state === 'open'");
  return { gateway, page, token };
}

test("a page lives through a lost network, a killed gateway and a token endpoint that fails", async (t) => {
  const { gateway, page, token } = await opened(t, readFileSync(INDEX));
  const say = (message) => gateway.send("chat_lobby", { type: "chat.message", message });
  await say("one");
  assert.equal(await page.until("told.find(([name]) => name === 'event')?.[1].message"), "one");

  await page.network(false);
  await page.until("navigator.onLine === false");
  await page.network(true);
  await page.until("count('open') === 2 && client.state === 'open'");
  const losses = await page.evaluate("told.filter(([name]) => name === 'reconnecting').map(([, { reason, delay }]) => [reason, delay])");
  // Chromium may close the socket by itself when the network goes.
  assert.ok(losses.some(([reason]) => ["offline", ""].includes(reason)), JSON.stringify(losses));
  await say("two");
  await page.until("count('event') === 2");

  token.works = false;
  await gateway.program.kill("SIGKILL");
  await page.until("client.state !== 'open'");
  await page.evaluate("client.send('{\"message\":\"three\"}')");
  await gateway.run();
  token.works = true;
  await page.until("told.some(([name, event]) => name === 'event' && event.message === 'three')");

  await gateway.api("POST", "tenants/acme/revocations", { user_id: "1" });
  await page.until("count('closed') === 1");
  assert.equal(await page.evaluate("told.at(-1)[1].code"), 4501);
  const { asked } = token;
  await page.network(false);
  await page.network(true);
  await page.until("navigator.onLine");
  assert.deepEqual([await page.evaluate("told.at(-1)[0]"), token.asked], ["closed", asked]);
});

test("without a network nothing is tried in a hurry, and at its return at once", async (t) => {
  const { page, gateway } = await opened(t, readFileSync(INDEX));
  await page.evaluate("client.close()");
  await page.evaluate(`(async () => {
    const { LockgateClient } = await import("./client.js");
    window.second = new LockgateClient("${gateway.url}ws/echo/", { token: () => fetch("/token").then((answer) => answer.text()), maxDelay: 3600_000 });
    window.delays = [];
    second.on("reconnecting", ({ delay, code }) => delays.push([code, delay]));
  })()`);
  await page.until("second.state === 'open'");
  await page.network(false);
  await page.until("navigator.onLine === false");
  await gateway.program.kill("SIGKILL");
  await page.until("second.state === 'waiting'");
  assert.deepEqual(await page.evaluate("delays"), [[1006, 3600_000]]);
  await gateway.run();
  await page.network(true);
  await page.until("second.state === 'open'");
});

test("the minified module works in a page", async (t) => {
  const { outputFiles } = await build({ entryPoints: [INDEX], bundle: true, minify: true, format: "esm", target: "es2022", write: false });
  const { page, gateway } = await opened(t, outputFiles[0].text);
  await page.evaluate("client.send(JSON.stringify({ message: 'small' }))");
  assert.deepEqual(await page.until("told.find(([name]) => name === 'event')?.[1]"), { message: "small", username: "alice" });
  await page.evaluate("client.close()");
  await eventually("no socket", async () => (await gateway.api("GET", "tenants/acme/connections")).connections === 0);
});
