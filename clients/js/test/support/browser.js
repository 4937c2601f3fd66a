// Headless Chromium with one page, driven over its DevTools protocol.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import WebSocket from "ws";

import { Program, eventually } from "./gateway.js";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0",
];

/** The browser could not do what it was asked. */
class Unanswered extends Error {}

export class Page {
  #devtools;
  #answers = new Map();
  #lastId = 0;

  /** Starts a browser and opens `url`. */
  static async open(test, url) {
    const profile = mkdtempSync(join(tmpdir(), "lockgate-js-browser-"));
    const program = new Program(test, "chromium", [...FLAGS, `--user-data-dir=${profile}`, url], { detached: true });
    // After the processes, which still write into it.
    test.after(async () => {
      await program.kill();
      rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    });
    const port = await eventually("the port of DevTools", () => {
      if (program.isOver) throw new Error(`chromium ended:\n${program.output}`);
      return /DevTools listening on ws:\/\/127\.0\.0\.1:(\d+)/.exec(program.output)?.[1];
    });
    const target = await eventually("the page", async () => {
      const list = await fetch(`http://127.0.0.1:${port}/json/list`).then((answer) => answer.json(), () => []);
      return list.find(({ type, url: at }) => type === "page" && at === url);
    });
    const page = new Page();
    await page.#attach(target.webSocketDebuggerUrl);
    return page;
  }

  async #attach(url) {
    this.#devtools = new WebSocket(url);
    this.#devtools.on("message", (text) => {
      const { id, result, error } = JSON.parse(text);
      this.#answers.get(id)?.(error ? { error } : result);
      this.#answers.delete(id);
    });
    await new Promise((done, fail) => this.#devtools.on("open", done).on("error", fail));
    await this.call("Network.enable");
  }

  async call(method, params = {}) {
    const id = (this.#lastId += 1);
    const answer = new Promise((done) => this.#answers.set(id, done));
    this.#devtools.send(JSON.stringify({ id, method, params }));
    const result = await answer;
    if (result.error) throw new Unanswered(`${method}: ${result.error.message}`);
    return result;
  }

  /** Returns the value of an expression, awaited if it is a promise. */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until an expression gives something true, and returns it. */
  until(expression) {
    return eventually(expression, async () => {
      try {
        return await this.evaluate(expression);
      } catch (error) {
        // The page was on its way to another document.
        if (error instanceof Unanswered) return undefined;
        throw error;
      }
    });
  }

  /** Takes the network away, as far as the page sees, or gives it back. */
  network(online) {
    const speed = { latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
    return this.call("Network.emulateNetworkConditions", { offline: !online, ...speed });
  }
}
