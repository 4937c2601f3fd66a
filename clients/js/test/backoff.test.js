// Waits: full jitter, doubling bounds, and a machine without a network.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Clock, seeded } from "./support/clock.js";
import { client, fixRandom } from "./support/sockets.js";

/** The waits of so many handshakes in a row that all fail. */
async function failures(t, count, options) {
  const made = client(t, options);
  for (let n = 0; n < count; n += 1) {
    (await made.socket()).end();
    await made.next();
  }
  return made.of("reconnecting").map(({ delay }) => delay);
}

test("each wait is anywhere below a bound that doubles up to the longest", async (t) => {
  for (let seed = 1; seed <= 20; seed += 1) {
    await t.test(`seed ${seed}`, async (t) => {
      const random = seeded(seed);
      fixRandom(t, random);
      const [firstDelay, maxDelay] = [1 + seeded(seed * 7)() * 5000, 5000 + seeded(seed * 11)() * 100_000];
      const delays = await failures(t, 60, { firstDelay, maxDelay });
      const again = seeded(seed);
      const expected = delays.map((_, attempt) => again() * Math.min(maxDelay, firstDelay * 2 ** attempt));
      assert.deepEqual(delays, expected);
    });
  }
});

test("waits fill their whole range evenly, so that a crowd does not come back at one moment", async (t) => {
  fixRandom(t, seeded(4));
  const delays = (await failures(t, 1010, { firstDelay: 1000, maxDelay: 30_000 })).slice(10);
  for (let tenth = 0; tenth < 10; tenth += 1) {
    const inside = delays.filter((delay) => delay >= tenth * 3000 && delay < (tenth + 1) * 3000).length;
    // 100 are expected; five standard deviations are 48.
    assert.ok(inside > 52 && inside < 148, `${inside} of 1000 in tenth ${tenth}`);
  }
});

test("hours of failures make no wait that is no number", async (t) => {
  fixRandom(t, 0.999);
  const delays = await failures(t, 1200, {});
  assert.ok(delays.every((delay) => delay >= 0 && delay <= 30_000), String(delays.at(-1)));
});

test("a socket that was open for ten seconds begins again with short waits, a shorter one does not", async (t) => {
  fixRandom(t, 0.999);
  const { clock, of, socket, open, next } = client(t);
  for (let n = 0; n < 5; n += 1) {
    (await socket()).end();
    await next();
  }
  const flapping = await open();
  await clock.pass(9800);
  flapping.end();
  await next();
  const stable = await open();
  await clock.pass(10_000);
  stable.end();
  const delays = of("reconnecting").map(({ delay }) => Math.round(delay / 1000));
  assert.deepEqual(delays, [2, 4, 8, 16, 30, 30, 2]);
});

test("a handshake that does not end is given up", async (t) => {
  const { clock, sockets, of, socket } = client(t, { timeout: 5000, firstDelay: 0 });
  const hanging = await socket();
  await clock.pass(4999);
  assert.equal(sockets.length, 1);
  await clock.pass(2);
  assert.equal(of("reconnecting")[0].reason, "timeout");
  assert.equal(sockets.length, 2);
  assert.notEqual(hanging.closedBy, undefined);
  // Its late answers are those of the past.
  hanging.accept();
  hanging.frame({ old: 1 });
  hanging.end(4501, "token_revoked");
  assert.deepEqual([of("open"), of("event"), of("closed")], [[], [], []]);
});

test("a token and a handshake have their time each", async (t) => {
  const clock = new Clock(t);
  const token = () => new Promise((done) => setTimeout(() => done("a.b.c"), 4000));
  const { of, socket } = client(t, { clock, token, timeout: 5000 });
  await clock.pass(8000);
  (await socket()).accept();
  assert.deepEqual([of("open").length, of("reconnecting")], [1, []]);
});

test("an error that no close follows ends an attempt too", async (t) => {
  const { clock, of, socket, open } = client(t, { firstDelay: 0 });
  const refused = await socket();
  refused.onerror({});
  await clock.pass(100);
  assert.deepEqual(of("reconnecting").map(({ code }) => code), [1006]);
  assert.notEqual(await socket(), refused);
  const opened = await open();
  refused.onerror({});
  await clock.pass(1000);
  assert.equal(opened.closedBy, undefined, "the errors of earlier sockets are over");
});

/** A browser's window: `online` and `offline`, and `navigator.onLine`. */
function browser(t, onLine = true) {
  const target = new EventTarget();
  const names = ["addEventListener", "removeEventListener"];
  for (const name of names) globalThis[name] = target[name].bind(target);
  const navigator = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { onLine }, configurable: true });
  t.after(() => {
    for (const name of names) delete globalThis[name];
    if (navigator) Object.defineProperty(globalThis, "navigator", navigator);
    else delete globalThis.navigator;
  });
  return (name) => target.dispatchEvent(new Event(name));
}

test("without a network attempts are seldom, and its return is one", async (t) => {
  fixRandom(t, 0.1);
  const tell = browser(t);
  const { clock, sockets, open } = client(t);
  const socket = await open();
  await clock.pass(20_000);
  tell("offline");
  socket.end();
  assert.equal(clock.next, 30_000);
  await clock.pass(12_000);
  assert.equal(sockets.length, 1);
  tell("online");
  await clock.pass(0);
  assert.equal(sockets.length, 2);
  tell("online");
  await clock.pass(0);
  assert.equal(sockets.length, 2, "one return is one attempt");
});

test("after the network's return waits are short again", async (t) => {
  fixRandom(t, 0.5);
  const tell = browser(t);
  const { clock, of, socket, next } = client(t);
  for (let n = 0; n < 6; n += 1) {
    (await socket()).end();
    await next();
  }
  tell("offline");
  tell("online");
  await clock.pass(0);
  (await socket()).end();
  (await next()).end();
  // The return itself was the first attempt.
  assert.deepEqual(of("reconnecting").slice(-3).map(({ delay }) => delay), [0, 2000, 4000]);
});

test("a browser that wrongly says that there is no network does not keep the client away", async (t) => {
  browser(t, false);
  const { of, next, socket, open } = client(t);
  (await socket()).end();
  await next();
  await open();
  assert.equal(of("open").length, 1);
});

test("a socket that was open when the network went is replaced once it is back", async (t) => {
  const tell = browser(t);
  const { clock, sockets, of, open } = client(t);
  const dead = await open();
  tell("offline");
  await clock.pass(60_000);
  assert.equal(sockets.length, 1, "a socket that works is kept");
  tell("online");
  await clock.pass(0);
  assert.notEqual(dead.closedBy, undefined);
  assert.deepEqual(of("reconnecting").map(({ code, reason, delay }) => [code, reason, delay]), [[1006, "offline", 0]]);
  (await open()).frame({ n: 1 });
  assert.deepEqual(of("event"), [{ n: 1 }]);
});

test("the network's return does not break a wait that the gateway asked for", async (t) => {
  const tell = browser(t);
  const { clock, sockets, open } = client(t);
  (await open()).end(4013, "rate_limited retry_after_ms=60000");
  tell("offline");
  tell("online");
  await clock.pass(59_999);
  assert.equal(sockets.length, 1);
  await clock.pass(1);
  assert.equal(sockets.length, 2);
});

test("a client that ended listens to no network", async (t) => {
  const tell = browser(t);
  const { client: made, clock, sockets, open } = client(t);
  await open();
  made.close();
  tell("offline");
  tell("online");
  await clock.pass(3600_000);
  assert.equal(sockets.length, 1);
  assert.equal(clock.pending, 0);
});

test("whatever happens in whatever order, there is one socket, one timer, and one end", async (t) => {
  for (let seed = 1; seed <= 100; seed += 1) await t.test(`seed ${seed}`, (t) => play(t, seed));
});

/** One life of a client by chance, with what must always hold looked at after each step. */
async function play(t, seed) {
  const random = seeded(seed);
  const pick = (list) => list[Math.floor(random() * list.length)];
  fixRandom(t, random);
  const tell = browser(t);
  const clock = new Clock(t);
  const lifetime = pick([3, 60, 300]);
  const token = async () => {
    if (random() < 0.3) throw new Error("503");
    const iat = clock.now / 1000;
    return `h.${btoa(JSON.stringify({ iat, exp: iat + lifetime }))}.${random()}`;
  };
  const { client: made, sockets, told, of } = client(t, { clock, token, refresh: random() < 0.5 });
  const codes = [1006, 1006, 1011, 1012, 4001, 4009, 4013, 4014, 4016, 4500, 4501];
  let sent = 0;
  const steps = {
    accept: (socket) => socket?.readyState === 0 && socket.accept(),
    end: (socket) => socket && socket.readyState < 2 && socket.end(pick(codes), pick(["", "x retry_after_ms=700"])),
    frame: (socket) => socket?.readyState === 1 && socket.frame(pick([{ n: 1 }, "text", { type: "lockgate.refreshed" }, { type: "lockgate.gap" }])),
    late: () => pick([...sockets, { end() {} }]).end(pick(codes)),
    send: () => made.send(String(sent)) && (sent += 1),
    pass: () => clock.pass(random() ** 4 * 400_000),
    offline: () => tell("offline"),
    online: () => tell("online"),
  };
  const likely = ["accept", "accept", "end", "frame", "late", "send", "pass", "pass", "pass", "offline", "online"];
  for (let step = 0; step < 120 && made.state !== "closed"; step += 1) {
    await steps[pick(likely)](sockets.at(-1));
    await clock.pass(0);
    const live = sockets.filter((socket) => socket.readyState < 2 && socket.onmessage);
    assert.ok(live.length <= 1, `${live.length} sockets`);
    assert.ok(clock.pending <= 1, `${clock.pending} timers`);
    if (made.state === "waiting" || made.state === "connecting") assert.equal(clock.pending, 1, `stuck while ${made.state}`);
    if (made.state === "open") assert.equal(live.length, 1);
  }
  made.close();
  const after = told.length;
  for (const socket of sockets) socket.end(1006);
  tell("online");
  await clock.pass(24 * 3600_000);
  assert.equal(clock.pending, 0);
  assert.equal(told.length, after);
  assert.equal(of("closed").length, 1);
  assert.equal(told.at(-1)[0], "closed");
  const frames = sockets.flatMap((socket) => socket.sent).filter((text) => !text.startsWith("{")).map(Number);
  assert.deepEqual(frames, frames.map((_, at) => at), "frames leave once and in their order");
}
