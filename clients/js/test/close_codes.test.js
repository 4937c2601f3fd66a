// Every close code does what docs/refusals.md says, and the table of the gateway has no code that the client does not know.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { readClose } from "../index.js";
import { client, fixRandom } from "./support/sockets.js";

const read = (path) => readFileSync(new URL(`../../../${path}`, import.meta.url), "utf8");

/** The rows of the page: codes, words, and what the client should do. */
function rows() {
  const section = read("docs/refusals.md").split("\n## Close codes\n")[1];
  const lines = section.split("\n").filter((line) => /^\| \d/.test(line));
  return lines.map((line) => {
    const [codes, words, what] = line.slice(1, -1).split(" | ").map((cell) => cell.trim());
    return { codes: codes.split(", ").map(Number), words: [...words.matchAll(/`(\w+)`/g)].map(([, word]) => word), what };
  });
}

/** The step that the words of the page ask for. */
function asked(what) {
  if (/^(nothing|not reconnect|log in again)/.test(what)) return "stop";
  if (/^get a new access token, reconnect/.test(what)) return "new_token";
  if (/^reconnect with long backoff/.test(what)) return "long_backoff";
  if (/^reconnect with backoff|^reconnect after `retry_after_ms`/.test(what)) return "backoff";
  // "reconnect": with the wait of the reason, where it has one.
  if (/^reconnect/.test(what)) return "reconnect";
  throw new Error(`the page says something new: ${what}`);
}

const codes = rows().flatMap(({ codes, what }) => codes.map((code) => ({ code, what })));

test("the page has all codes", () => {
  assert.ok(codes.length > 30, String(codes.length));
});

test("the gateway's own table has no code that the client does not know", () => {
  const table = read("src/close_code.rs").split("\nclose_reasons! {\n")[1].split("\n}\n")[0];
  const reasons = [...table.matchAll(/^ {4}\w+ = (\d+) "(\w+)"/gm)];
  assert.ok(reasons.length > 30, String(reasons.length));
  const documented = new Set(codes.map(({ code }) => code));
  for (const [, code, word] of reasons) {
    assert.ok(documented.has(+code), `${code} ${word} is not on the page`);
    assert.doesNotMatch(readClose(+code, word).meaning, /application/, `${code} ${word} has no meaning of its own`);
  }
});

for (const { code, what } of codes) {
  test(`${code}: ${what}`, async (t) => {
    const step = asked(what);
    fixRandom(t, 0.5);
    const { sockets, clock, of, open } = client(t, { token: async () => "a.b.c" });
    const socket = await open();
    socket.end(code, "word");
    if (step === "stop") {
      await clock.pass(48 * 3600_000);
      assert.equal(sockets.length, 1);
      assert.equal(clock.pending, 0);
      assert.deepEqual(of("reconnecting"), []);
      const [closed, ...more] = of("closed");
      assert.deepEqual([closed.code, closed.reason, more], [code, "word", []]);
      assert.equal(closed.login, /log in again|get another token/.test(what));
      assert.match(closed.meaning, /^[A-Z].*\.$/);
      return;
    }
    const delay = { new_token: [0], long_backoff: [10_000], backoff: [1000], reconnect: [0, 1000] }[step];
    assert.ok(delay.includes(clock.next), `${clock.next}`);
    assert.equal(of("reconnecting")[0].delay, clock.next);
    await clock.pass(clock.next);
    assert.equal(sockets.length, 2);
    assert.deepEqual(of("closed"), []);
  });
}

test("the wait of a reason is kept, and is not part of the word", async (t) => {
  fixRandom(t, 0.5);
  for (const [code, reason, delay] of [
    // A drain has spread its waits.
    [1012, "draining retry_after_ms=4321", 4321],
    [1012, "max_age retry_after_ms=1", 1],
    [1012, "draining", 1000],
    // Others tell everybody the same: without jitter all would come back at one moment.
    [4013, "rate_limited retry_after_ms=1000", 2000],
    [4014, "unavailable retry_after_ms=1000", 2000],
    [4016, "tenant_suspended retry_after_ms=1000", 11_000],
    [4008, "too_slow retry_after_ms=1000", 2000],
    [4009, "pong_timeout", 0],
    [4001, "token_expired", 0],
    [4014, "unavailable retry_after_ms=0", 1000],
    // An hour is the longest, and no timer of more than 31 bits is set, which would fire at once.
    [1012, "draining retry_after_ms=99999999999999999999", 3600_000],
    [4014, "retry_after_ms=soon", 1000],
    [4014, "unavailable retry_after_ms=-5", 1000],
    [4014, "unavailable retry_after_ms=700 or so", 1000],
  ]) {
    await t.test(`${code} ${reason}`, async (t) => {
      const { clock, of, open } = client(t);
      const socket = await open();
      socket.end(code, reason);
      assert.equal(clock.next, delay);
      assert.equal(of("reconnecting")[0].reason, reason.replace(/ retry_after_ms=\d+$/, ""));
    });
  }
});

test("leaving at once helps the first time only", async (t) => {
  fixRandom(t, 0.5);
  const { clock, open } = client(t);
  const delays = [];
  for (let n = 0; n < 4; n += 1) {
    (await open()).end(4009, "pong_timeout");
    delays.push(clock.next);
    await clock.pass(clock.next);
  }
  assert.deepEqual(delays, [0, 2000, 4000, 8000]);
});

test("a new token is asked for before the next socket after 4001, and not after a drain", async (t) => {
  const asked = [];
  const { clock, sockets, open } = client(t, {
    token: async ({ renew }) => {
      asked.push(renew);
      const body = Buffer.from(JSON.stringify({ iat: clock.now / 1000, exp: clock.now / 1000 + 300 })).toString("base64url");
      return `h.${body}.${asked.length}`;
    },
  });
  (await open()).end(1012, "draining retry_after_ms=5");
  await clock.pass(5);
  (await open()).end(4001, "token_expired");
  // The second loss since a socket was stable: it has a wait.
  await clock.pass(clock.next);
  assert.deepEqual(asked, [false, true]);
  const tokens = sockets.map(({ url }) => url.searchParams.get("token").at(-1));
  assert.deepEqual(tokens, ["1", "1", "2"]);
});

test("codes of applications go by their range, and as the application says", async (t) => {
  for (const [code, next] of [
    [3000, "backoff"], [3499, "backoff"], [3500, "stop"], [3999, "stop"], [4099, "backoff"], [4499, "backoff"],
    [4599, "stop"], [4999, "stop"], [1013, "backoff"], [1005, "backoff"], [1015, "backoff"],
  ]) {
    assert.equal(readClose(code).next, next, String(code));
  }
  const decide = ({ code, reason }) => ({ 4403: "stop", 4501: reason === "mine" ? "backoff" : undefined })[code];
  for (const [code, reason, isFinal] of [[4403, "", true], [4501, "mine", false], [4501, "token_revoked", true], [4404, "", false]]) {
    await t.test(`${code} ${reason}`, async (t) => {
      const { of, open } = client(t, { decide });
      (await open()).end(code, reason);
      assert.equal(of("closed").length, isFinal ? 1 : 0);
      assert.equal(of("reconnecting").length, isFinal ? 0 : 1);
    });
  }
});

test("a refusal at the connect obeys the same table", async (t) => {
  for (const [code, name] of [[4501, "closed"], [4014, "reconnecting"], [1006, "reconnecting"]]) {
    await t.test(String(code), async (t) => {
      const { of, socket } = client(t);
      const refused = await socket();
      if (code !== 1006) refused.accept();
      refused.end(code, "word");
      assert.equal(of(name).length, 1);
    });
  }
});
