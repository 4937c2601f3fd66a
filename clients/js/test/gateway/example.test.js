// examples/browser as a new user starts it, on ports of its own: the site, the gateway, the page, and what breaks them.

import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Page } from "../support/browser.js";
import { BINARY, Program, REPOSITORY, eventually, freePorts, measured } from "../support/gateway.js";
import { Life } from "../support/life.js";
import { Redis } from "../support/redis.js";

/** The files of the example in a folder of their own, with other ports than those that they name. */
function copied(t, ports) {
  const root = mkdtempSync(join(tmpdir(), "lockgate-js-example-"));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  cpSync(join(REPOSITORY, "examples/browser"), join(root, "examples/browser"), { recursive: true });
  cpSync(join(REPOSITORY, "clients/js/index.js"), join(root, "clients/js/index.js"));
  const folder = join(root, "examples/browser");
  for (const name of ["index.html", "lockgate.toml"]) {
    const text = readFileSync(join(folder, name), "utf8");
    const moved = text.replace(/:(8001|8080|9000|6379)\b/g, (_, port) => `:${ports[port]}`);
    assert.notEqual(moved, text);
    writeFileSync(join(folder, name), moved);
  }
  return folder;
}

class Example {
  static async start(t) {
    const example = new Example();
    const redis = await Redis.start(t);
    const [sockets, site, admin] = await freePorts(3);
    Object.assign(example, { test: t, redis, ports: { 8001: sockets, 8080: site, 9000: admin, 6379: redis.port } });
    example.folder = copied(t, example.ports);
    await example.startSite();
    await example.startGateway();
    return example;
  }

  get address() {
    return `http://127.0.0.1:${this.ports[8080]}/`;
  }

  async startSite() {
    this.site = new Program(this.test, "python3", ["server.py", "--port", String(this.ports[8080])], { cwd: this.folder });
    await eventually(`the site: ${this.site.output}`, () => this.site.output.includes("?user=alice"));
  }

  async startGateway() {
    this.gateway = new Program(this.test, BINARY, ["serve", "--config", "lockgate.toml"], { cwd: this.folder });
    await eventually("a ready gateway", async () => {
      if (this.gateway.isOver) throw new Error(`the gateway ended:\n${this.gateway.output}`);
      const answer = await fetch(`http://127.0.0.1:${this.ports[9000]}/readyz`).catch(() => undefined);
      return answer?.status === 200;
    });
  }

  /** A client that is no page. */
  user(name) {
    const token = async () => {
      const answer = await fetch(`${this.address}token?user=${name}`);
      return (await answer.json()).access;
    };
    return new Life(this.test, `ws://127.0.0.1:${this.ports[8001]}/ws/chat/lobby/`, { token });
  }
}

const LINES = "[...document.querySelectorAll('li')].map((line) => line.textContent)";
const shows = (line) => `${LINES}.includes(${JSON.stringify(line)})`;
const say = (text) => `(() => {
  document.querySelector('input').value = ${JSON.stringify(text)};
  document.querySelector('form').requestSubmit();
})()`;

test("the example talks, and lives through kill -9, a site that is down, and a revocation that ends it", async (t) => {
  const example = await Example.start(t);
  const bob = example.user("bob");
  const page = await Page.open(t, `${example.address}?user=alice`);
  await page.until("document.querySelector('#state')?.textContent === 'connected as alice'");
  await bob.until("open");
  bob.client.send(JSON.stringify({ text: "one" }));
  await page.until(shows("bob: one"));

  await example.gateway.kill("SIGKILL");
  await page.until("document.querySelector('#state')?.textContent.includes('Next attempt')");
  await page.evaluate(say("two"));
  await example.site.kill();
  await example.startGateway();
  await page.until(shows("alice: two"));
  await eventually("two at bob", () => bob.of("event").some(({ text, name }) => text === "two" && name === "alice"));

  await example.startSite();
  const now = String(Math.floor(Date.now() / 1000));
  example.redis.call("set", "lockgate:chat:deny:user:1", now);
  example.redis.call("publish", "lockgate:chat:control", JSON.stringify({ v: 1, op: "revoke", user_id: "1", issued_before: Number(now) }));
  await page.until("document.querySelector('#state')?.textContent.startsWith('The token was revoked.')");
  bob.client.send(JSON.stringify({ text: "three" }));
  await eventually("three at bob", () => bob.of("event").some(({ text }) => text === "three"));
  assert.deepEqual(bob.of("closed"), []);
});

test("a page for nobody says so", async (t) => {
  const example = await Example.start(t);
  const page = await Page.open(t, `${example.address}?user=mallory`);
  await page.until("document.querySelector('#state')?.textContent.includes('Open the page as ?user=alice')");
});

test("a page that was loaded again shows what it had and what it missed, once", async (t) => {
  const example = await Example.start(t);
  const bob = example.user("bob");
  const address = `${example.address}?user=alice`;
  const page = await Page.open(t, address);
  await page.until("document.querySelector('#state')?.textContent === 'connected as alice'");
  await bob.until("open");
  const write = (text) => bob.client.send(JSON.stringify({ text }));
  write("one");
  await page.until(shows("bob: one"));
  await page.call("Page.navigate", { url: "about:blank" });
  await page.until("location.href === 'about:blank'");
  // The page before may still be at work in a process of its own: it keeps what it has shown, and then it leaves.
  await eventually("bob alone", async () => (await measured(example.ports[9000], "lockgate_connections")) === 1);
  write("two");
  await eventually("two at bob", () => bob.of("event").length === 2);
  await page.call("Page.navigate", { url: address });
  await page.until("document.querySelector('#state')?.textContent === 'connected as alice'");
  write("three");
  await page.until(shows("bob: three"));
  assert.deepEqual(await page.evaluate(LINES), ["bob: one", "bob: two", "bob: three"]);
});
