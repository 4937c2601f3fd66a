// Tokens: where they go, when the application is asked, what its failures do, and refresh in place.

import assert from "node:assert/strict";
import { test } from "node:test";

import { FinalError } from "../index.js";
import { Clock } from "./support/clock.js";
import { client, fixRandom, token } from "./support/sockets.js";

const MINUTE = 60_000;

/** A token function that notes how it was called; `answers` are taken in turn, the last one again and again. */
function source(...answers) {
  const asked = [];
  const ask = async (request) => {
    asked.push(request);
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    return typeof answer === "function" ? answer() : answer;
  };
  return Object.assign(ask, { asked });
}

const fail = (error = new Error("503")) => () => {
  throw error;
};

const tokenOf = (socket) => socket.url.searchParams.get("token");

test("the token goes into the query, or into the subprotocols", async (t) => {
  const url = "wss://acme.test/ws/chat/?room=a%20b#part";
  const query = client(t, { token: source("a.b.c") }, url);
  assert.equal((await query.socket()).url.href, "wss://acme.test/ws/chat/?room=a+b&token=a.b.c");
  assert.deepEqual((await query.socket()).protocols, []);
  const named = client(t, { token: source("a.b.c"), queryParameter: "access", protocols: ["chat"] }, url);
  assert.equal((await named.socket()).url.searchParams.get("access"), "a.b.c");
  assert.deepEqual((await named.socket()).protocols, ["chat"]);
  const subprotocol = client(t, { token: source("a.b.c"), tokenIn: "subprotocol", protocols: ["chat"] }, url);
  assert.deepEqual((await subprotocol.socket()).protocols, ["bearer", "a.b.c", "chat"]);
  assert.equal((await subprotocol.socket()).url.search, "?room=a%20b");
  for (const options of [{}, { token: source(null) }]) {
    const none = client(t, options, url);
    assert.equal((await none.socket()).url.search, "?room=a%20b");
  }
});

test("an http address becomes a ws address, and a page's relative one its own", async (t) => {
  const clear = client(t, {}, "http://acme.test/ws/");
  assert.equal((await clear.socket()).url.href, "ws://acme.test/ws/");
  globalThis.location = { href: "https://app.acme.test/page/?x=1" };
  t.after(() => delete globalThis.location);
  const relative = client(t, {}, "/ws/chat/");
  assert.equal((await relative.socket()).url.href, "wss://app.acme.test/ws/chat/");
});

test("a token endpoint that is down for a minute is survived", async (t) => {
  const clock = new Clock(t);
  const upAt = clock.now + MINUTE;
  let calls = 0;
  const ask = async () => {
    calls += 1;
    if (clock.now < upAt) throw new Error("503");
    return token(clock, 300);
  };
  const { of, sockets, open } = client(t, { clock, token: ask });
  while (!sockets.length) await clock.pass(1000);
  assert.ok(clock.now >= upAt && clock.now <= upAt + 31_000);
  await open();
  assert.equal(of("open").length, 1);
  assert.deepEqual(of("closed"), []);
  assert.ok(calls > 2 && calls < 40, `${calls} calls in a minute`);
  for (const { code, reason, error, next } of of("reconnecting")) {
    assert.deepEqual([code, reason, error.message, next], [0, "token", "503", "backoff"]);
  }
});

test("a token function that never answers is given up and asked again, and its late answer is of no use", async (t) => {
  const answers = [];
  const ask = ({ signal }) => new Promise((done) => answers.push({ done, signal }));
  const { clock, sockets, socket } = client(t, { token: ask, timeout: 1000, firstDelay: 0 });
  await clock.pass(1001);
  assert.equal(answers.length, 2);
  assert.deepEqual(answers.map(({ signal }) => signal.aborted), [true, false]);
  answers[0].done("too.l.ate");
  await clock.pass(0);
  assert.equal(sockets.length, 0);
  answers[1].done("in.ti.me");
  assert.equal(tokenOf(await socket()), "in.ti.me");
});

test("a token function that obeys its signal fails for nobody", async (t) => {
  const obedient = ({ signal }) => new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
  const { client: made, clock, of, told } = client(t, { token: obedient, timeout: 1000 });
  await clock.pass(1000);
  assert.deepEqual(of("reconnecting").map(({ reason }) => reason), ["timeout"]);
  await clock.pass(clock.next);
  made.close();
  await clock.pass(3600_000);
  assert.equal(told.length, 2, "the end is the end");
});

test("what is no token is a failure that names no token", async (t) => {
  for (const [answer, named] of [[undefined, "undefined"], ["", "an empty text"], [{ access: "s.e.cret" }, "object"], [7, "number"]]) {
    const { clock, of } = client(t, { token: source(answer) });
    await clock.pass(0);
    const [{ error }] = of("reconnecting");
    assert.ok(error instanceof TypeError && error.message.includes(named), String(error));
    assert.doesNotMatch(error.message, /cret|7/);
  }
});

test("only what the application calls final is final", async (t) => {
  for (const error of [new FinalError("logged out"), Object.assign(new Error("logged out"), { final: true })]) {
    const { clock, of, sockets } = client(t, { token: source(fail(), fail(error)) });
    await clock.pass(MINUTE);
    const [closed] = of("closed");
    assert.deepEqual([closed.code, closed.reason, closed.login, closed.error], [0, "final", true, error]);
    assert.deepEqual([sockets.length, clock.pending], [0, 0]);
  }
});

test("a token is used again while a fifth of its life is left, so that a rollout costs the token endpoint nothing", async (t) => {
  const clock = new Clock(t);
  const ask = source(() => token(clock, 300));
  const { open, sockets } = client(t, { clock, token: ask });
  for (let drain = 0; drain < 3; drain += 1) {
    const socket = await open();
    await clock.pass(MINUTE);
    socket.end(1012, "draining retry_after_ms=100");
    await clock.pass(100);
  }
  assert.equal(ask.asked.length, 1);
  assert.equal(new Set(sockets.map(tokenOf)).size, 1);
  const socket = await open();
  await clock.pass(MINUTE);
  socket.end(1012, "draining retry_after_ms=100");
  await clock.pass(100);
  assert.deepEqual(ask.asked.map(({ renew }) => renew), [false, true]);
});

test("a token without an expiry, or that is no JWT, is asked for each time", async (t) => {
  for (const text of ["opaque", "a.!!!.c", `h.${btoa("{}")}.s`, `h.${btoa('{"exp":99999999999}')}.s`]) {
    const ask = source(text);
    const { clock, open } = client(t, { token: ask, refresh: true });
    (await open()).end(1012, "draining retry_after_ms=1");
    await clock.pass(1);
    await open();
    const again = text.includes(btoa('{"exp":99999999999}')) ? 1 : 2;
    assert.equal(ask.asked.length, again, text);
    await clock.pass(10 * MINUTE);
  }
});

test("a handshake that fails makes an older token doubtful, and a fresh one after a minute", async (t) => {
  const clock = new Clock(t);
  const ask = source(() => token(clock, 3600));
  fixRandom(t, 0.5);
  const { open, socket, next } = client(t, { clock, token: ask });
  const first = await open();
  await clock.pass(5 * MINUTE);
  first.end();
  await next();
  assert.equal(ask.asked.length, 1, "used again");
  // Refused, and nobody says why: 401 or a replica that is not there.
  (await socket()).end();
  await next();
  assert.equal(ask.asked.length, 2, "another token is tried");
  const begun = clock.now;
  while (clock.now - begun < 50_000) {
    (await socket()).end();
    await next();
  }
  assert.ok(ask.asked.length <= 3, "an outage does not load the token endpoint");
});

test("4500 for a token of an earlier handshake is tried once with another, for a new one it is final", async (t) => {
  const clock = new Clock(t);
  const ask = source(() => token(clock, 300));
  const { open, of, socket, next } = client(t, { clock, token: ask });
  (await open()).end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  const refused = await socket();
  refused.accept();
  refused.end(4500, "token_not_valid");
  assert.deepEqual(of("closed"), []);
  await next();
  const again = await socket();
  assert.notEqual(tokenOf(again), tokenOf(refused));
  again.accept();
  again.end(4500, "token_not_valid");
  assert.equal(of("closed")[0].code, 4500);
  assert.equal(of("open").length, 1, "sockets that the gateway opens only to refuse them are no openings");
});

test("4500 on an open socket is final, whatever its token", async (t) => {
  const clock = new Clock(t);
  const { open, of } = client(t, { clock, token: source(() => token(clock, 300)) });
  (await open()).end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  (await open()).end(4500, "token_not_valid");
  assert.equal(of("closed")[0].code, 4500);
});

// ---------------------------------------------------------------- refresh in place

/** A client with refresh whose tokens live for five minutes. */
async function refreshing(t, ...answers) {
  const clock = new Clock(t);
  fixRandom(t, 0.5);
  const ask = source(...(answers.length ? answers.map((answer) => answer ?? (() => token(clock, 300))) : [() => token(clock, 300)]));
  const made = client(t, { clock, token: ask, refresh: true });
  const socket = await made.open();
  return { ...made, ask, opened: socket, first: tokenOf(socket) };
}

const frames = (socket) => socket.sent.map((text) => JSON.parse(text));

test("a token is refreshed in place before it expires, again and again", async (t) => {
  const { clock, opened, of, sockets, ask } = await refreshing(t);
  for (let round = 1; round <= 5; round += 1) {
    await clock.pass(clock.next);
    const sent = frames(opened);
    assert.equal(sent.length, round);
    assert.equal(sent.at(-1).type, "lockgate.refresh");
    assert.deepEqual(Object.keys(sent.at(-1)), ["type", "token"]);
    opened.frame({ type: "lockgate.refreshed", expires_at: Math.floor(clock.now / 1000) + 300 });
    const left = clock.next / 1000;
    assert.ok(left >= 210 && left <= 255, `${left} s`);
  }
  assert.equal(new Set(frames(opened).map(({ token }) => token)).size, 5);
  assert.deepEqual(ask.asked.map(({ renew }) => renew), [false, true, true, true, true, true]);
  assert.deepEqual([sockets.length, of("event"), of("reconnecting")], [1, [], []]);
});

test("the moment of a refresh is spread, and before the last seventh of the token's life", async (t) => {
  for (const [value, expected] of [[0, 210], [0.999999, 255]]) {
    const clock = new Clock(t);
    fixRandom(t, value);
    const { open } = client(t, { clock, token: source(() => token(clock, 300)), refresh: true });
    await open();
    assert.ok(Math.abs(clock.next / 1000 - expected) < 1, `${clock.next}`);
  }
});

test("the refreshed token is that of the next handshake", async (t) => {
  const { clock, opened, next, socket } = await refreshing(t);
  await clock.pass(clock.next);
  opened.frame({ type: "lockgate.refreshed", expires_at: 0 });
  opened.end(1012, "draining retry_after_ms=1");
  await next();
  assert.equal(tokenOf(await socket()), frames(opened)[0].token);
});

test("a refresh whose token function fails is tried again until the socket closes", async (t) => {
  const { clock, opened, of, next, open, ask } = await refreshing(t, undefined, fail(), fail(), undefined);
  await clock.pass(clock.next);
  assert.deepEqual(frames(opened), []);
  await clock.pass(10_000);
  assert.equal(frames(opened).length, 1);
  assert.equal(ask.asked.length, 4);
  assert.deepEqual(of("reconnecting"), []);
  // The answer does not come in time: the gateway closes, and another handshake has a new token.
  opened.end(4001, "token_expired");
  await next();
  await open();
  assert.equal(of("open").length, 2);
});

test("a token whose refresh is not answered is that of the next handshake", async (t) => {
  for (const [code, reason] of [[1012, "draining retry_after_ms=1"], [4001, "token_expired"], [1006, ""]]) {
    await t.test(String(code), async (t) => {
      const { clock, opened, next, socket, ask } = await refreshing(t);
      await clock.pass(clock.next);
      opened.end(code, reason);
      await next();
      assert.equal(tokenOf(await socket()), frames(opened)[0].token);
      assert.equal(ask.asked.length, 2);
      (await socket()).end(4001, "token_expired");
      await next();
      await socket();
      assert.equal(ask.asked.length, 3, "it is new once");
    });
  }
});

test("a final error while a token is refreshed closes the open socket", async (t) => {
  const { clock, opened, of } = await refreshing(t, undefined, fail(new FinalError("logged out")));
  await clock.pass(clock.next);
  assert.notEqual(opened.closedBy, undefined);
  assert.equal(of("closed")[0].reason, "final");
  assert.equal(clock.pending, 0);
});

test("a function that gives the old token again is asked once a second at most", async (t) => {
  fixRandom(t, 0);
  const clock = new Clock(t);
  const same = token(clock, 300);
  const ask = source(same);
  const { open } = client(t, { clock, token: ask, refresh: true });
  const opened = await open();
  await clock.pass(299_000);
  assert.deepEqual(opened.sent, []);
  assert.ok(ask.asked.length <= 91, `${ask.asked.length} calls`);
});

test("a token that is nearly over is not refreshed at once, and none is nothing to send", async (t) => {
  fixRandom(t, 0);
  const clock = new Clock(t);
  const { open } = client(t, { clock, token: source(() => token(clock, 1), null), refresh: true });
  const opened = await open();
  // `open` has taken a tenth of the second.
  assert.equal(clock.next, 900);
  await clock.pass(30_000);
  assert.deepEqual(opened.sent, []);
});

test("a function that does not answer while a token is refreshed is asked again", async (t) => {
  const hanging = () => new Promise(() => {});
  const { clock, opened, ask } = await refreshing(t, undefined, hanging, undefined);
  await clock.pass(250_000 + 22_000);
  assert.equal(ask.asked.length, 3);
  assert.equal(frames(opened).length, 1);
});

test("what a token function says too late does not reach the next socket", async (t) => {
  for (const end of ["done", "fail"]) {
    await t.test(end, async (t) => {
      const clock = new Clock(t);
      const answers = [];
      const first = token(clock, 300);
      let calls = 0;
      const ask = () => ((calls += 1) === 2 ? new Promise((done, fail) => answers.push({ done, fail })) : first);
      const { open, next } = client(t, { clock, token: ask, refresh: true });
      const opened = await open();
      await clock.pass(clock.next);
      opened.end(1012, "draining retry_after_ms=1");
      await next();
      const again = await open();
      const planned = clock.next;
      answers[0][end](token(clock, 300));
      await clock.pass(0);
      assert.equal(clock.next, planned);
      assert.deepEqual(again.sent, []);
    });
  }
});

test("a gateway that does not answer gets no second token on this socket", async (t) => {
  const { clock, opened } = await refreshing(t);
  await clock.pass(3600_000);
  assert.equal(frames(opened).length, 1);
  assert.equal(clock.pending, 0);
});

test("an error in place of the answer is tried again later", async (t) => {
  const { clock, opened, of } = await refreshing(t);
  await clock.pass(clock.next);
  opened.frame({ type: "lockgate.error", code: "message_not_valid" });
  assert.deepEqual(of("event"), [{ type: "lockgate.error", code: "message_not_valid" }], "that one is of another frame");
  opened.frame({ type: "lockgate.error", code: "unavailable", of: "lockgate.refresh", retry_after_ms: 5000 });
  // Half of the first bound, on top of the wait.
  assert.equal(clock.next, 6000);
  await clock.pass(6000);
  assert.equal(frames(opened).length, 2);
  opened.frame({ type: "lockgate.error", code: "token_not_valid", of: "lockgate.refresh", check: "exp" });
  await clock.pass(clock.next);
  assert.equal(new Set(frames(opened).map(({ token }) => token)).size, 3, "another token each time");
  opened.frame({ type: "lockgate.refreshed", expires_at: 0 });
  assert.equal(of("event").length, 1);
});

test("frames of a refresh that the application makes by itself are the application's", async (t) => {
  const { clock, opened, of } = await refreshing(t);
  await clock.pass(clock.next);
  opened.frame({ type: "lockgate.refreshed", expires_at: 0 });
  opened.frame({ type: "lockgate.refreshed", expires_at: 7 });
  opened.frame({ type: "lockgate.error", code: "token_not_valid", of: "lockgate.refresh" });
  assert.deepEqual(of("event").map(({ type }) => type), ["lockgate.refreshed", "lockgate.error"]);
});

test("a loss while a token is on its way to the client begins as any other", async (t) => {
  const answers = [];
  const clock = new Clock(t);
  const first = token(clock, 300);
  let calls = 0;
  const { open, of, sockets } = client(t, {
    clock,
    refresh: true,
    token: () => ((calls += 1) === 1 ? first : new Promise((done) => answers.push(done))),
  });
  const opened = await open();
  await clock.pass(clock.next);
  assert.equal(answers.length, 1);
  opened.end(1006);
  answers[0](token(clock, 300));
  await clock.pass(2000);
  assert.deepEqual(opened.sent, []);
  assert.equal(of("reconnecting").length, 1);
  assert.ok(sockets.length <= 2);
});

test("a wrong clock of the machine makes no storm of refreshes", async (t) => {
  for (const [hours, name] of [[5, "ahead"], [-5, "behind"]]) {
    await t.test(name, async (t) => {
      const clock = new Clock(t);
      const issued = { now: clock.now - hours * 3600_000 };
      const ask = source(() => {
        issued.now += 1000;
        return token(issued, 300);
      });
      const { open } = client(t, { clock, token: ask, refresh: true });
      const opened = await open();
      for (let minute = 0; minute < 60; minute += 1 / 6) {
        await clock.pass(MINUTE / 6);
        opened.frame({ type: "lockgate.refreshed", expires_at: 0 });
      }
      const refreshes = opened.sent.length;
      assert.ok(refreshes >= 11 && refreshes <= 18, `${refreshes} refreshes in an hour of five-minute tokens`);
    });
  }
});

test("tokens that live for months set no timer that fires at once", async (t) => {
  const clock = new Clock(t);
  const { open } = client(t, { clock, token: source(() => token(clock, 365 * 86_400)), refresh: true });
  const opened = await open();
  await clock.pass(24 * 86_400_000);
  assert.deepEqual(opened.sent, []);
});

test("without `refresh` no token is ever sent in a frame", async (t) => {
  const clock = new Clock(t);
  const { open } = client(t, { clock, token: source(() => token(clock, 300)) });
  const opened = await open();
  await clock.pass(3600_000);
  assert.deepEqual(opened.sent, []);
});
