// What is sent and when, what an event looks like, handlers, and mistakes in options.

import assert from "node:assert/strict";
import { test } from "node:test";

import { LockgateClient } from "../index.js";
import { client, fixRandom } from "./support/sockets.js";

test("frames that are sent while no socket is open leave first and in order", async (t) => {
  const { client: made, clock, of, socket, open, sockets } = client(t);
  assert.equal(made.send("1"), true);
  const first = await open();
  made.send("2");
  first.end(1012, "draining retry_after_ms=10");
  made.send("3");
  await clock.pass(10);
  const second = await socket();
  made.send("4");
  second.accept();
  assert.equal(made.state, "connecting", "a socket that comes back may be a refusal for a moment");
  made.send("5");
  await clock.pass(100);
  made.send("6");
  assert.deepEqual(sockets.map(({ sent }) => sent), [["1", "2"], ["3", "4", "5", "6"]]);
  assert.equal(of("open").length, 2);
});

test("a first frame of the gateway announces the socket", async (t) => {
  const { client: made, clock, told, socket, open } = client(t);
  (await open()).end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  const again = await socket();
  again.accept();
  again.frame({ n: 1 });
  assert.equal(made.state, "open");
  assert.deepEqual(told.slice(-3).map(([name]) => name), ["open", "gap", "event"]);
});

test("nothing is lost in a socket that is opened only to be refused", async (t) => {
  const { client: made, clock, of, socket, next, open } = client(t);
  (await open()).end(1011, "internal_error");
  made.send("kept");
  await next();
  const refused = await socket();
  refused.accept();
  refused.end(4014, "unavailable retry_after_ms=1000");
  assert.deepEqual(refused.sent, []);
  assert.equal(of("open").length, 1);
  await next();
  const good = await open();
  assert.deepEqual(good.sent, ["kept"]);
  assert.ok(clock.pending <= 1);
});

test("the queue has an end, and says so", async (t) => {
  const { client: made, open } = client(t, { queue: 3 });
  assert.deepEqual([1, 2, 3, 4].map((n) => made.send(String(n))), [true, true, true, false]);
  const socket = await open();
  assert.deepEqual(socket.sent, ["1", "2", "3"]);
  assert.equal(made.send("5"), true);
  const refusing = client(t, { queue: 0 });
  assert.equal(refusing.client.send("1"), false);
});

test("a socket that is closing takes no frame", async (t) => {
  const { client: made, clock, open } = client(t);
  const socket = await open();
  socket.readyState = 2;
  assert.equal(made.send("kept"), true);
  assert.deepEqual(socket.sent, []);
  socket.end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  assert.deepEqual((await open()).sent, ["kept"]);
});

test("close is for good, from every state", async (t) => {
  const states = {
    connecting: async () => {},
    dialling: async ({ socket }) => socket(),
    open: async ({ open }) => open(),
    waiting: async ({ open }) => (await open()).end(),
  };
  for (const [name, reach] of Object.entries(states)) {
    await t.test(name, async (t) => {
      const life = client(t, { token: async () => "a.b.c" });
      await reach(life);
      life.client.send("never");
      life.client.close(4321, "bye");
      assert.deepEqual(life.of("closed").map(({ code, reason }) => [code, reason]), [[4321, "bye"]]);
      life.client.close();
      assert.equal(life.client.send("late"), false);
      await life.clock.pass(3600_000);
      assert.equal(life.clock.pending, 0);
      assert.equal(life.of("closed").length, 1);
      assert.ok(life.sockets.length <= 1);
      for (const socket of life.sockets) assert.ok(socket.readyState >= 2);
      if (name === "open") assert.deepEqual(life.sockets[0].closedBy, { code: 4321, reason: "bye" });
    });
  }
});

test("an application that closes when it hears of the opening hears no more", async (t) => {
  const { client: made, clock, socket, open, of } = client(t);
  (await open()).end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  made.on("open", () => made.close());
  const again = await socket();
  again.accept();
  again.frame({ n: 1 });
  assert.deepEqual([of("event"), of("gap").length, of("closed").length], [[], 0, 1]);
});

test("a client that is closed in the task that made it asks for no token", async (t) => {
  let calls = 0;
  const { client: made, clock } = client(t, { token: async () => String((calls += 1)) });
  made.close();
  await clock.pass(1000);
  assert.equal(calls, 0);
});

test("a handler may close the client", async (t) => {
  for (const name of ["open", "event", "gap", "reconnecting"]) {
    await t.test(name, async (t) => {
      const { client: made, clock, open, told } = client(t);
      let armed = name !== "open";
      made.on(name, () => armed && made.close());
      armed = true;
      const socket = await open();
      socket.frame({ type: "lockgate.gap" });
      socket.frame({ n: 1 });
      socket.end();
      await clock.pass(3600_000);
      assert.equal(told.at(-1)[0], "closed");
      assert.equal(clock.pending, 0);
    });
  }
});

test("an event is the object, the text or the bytes that the gateway sent", async (t) => {
  const { open, of } = client(t);
  const socket = await open();
  assert.equal(socket.binaryType, "arraybuffer");
  const bytes = new Uint8Array([1, 2, 3]).buffer;
  const sent = ['{"a":1}', "[1,2]", "hello", "12", '"quoted"', "true", "null", "", "{not json", '{"type":"lockgate.join","group":"g"}', bytes];
  for (const data of sent) socket.frame(data);
  const expected = [{ a: 1 }, [1, 2], "hello", "12", '"quoted"', "true", "null", "", "{not json", { type: "lockgate.join", group: "g" }, bytes];
  assert.deepEqual(of("event"), expected);
});

test("the application may read frames in its own way", async (t) => {
  const { open, of } = client(t, { parse: (text) => (text === "bad" ? JSON.parse(text) : BigInt(text)) });
  const socket = await open();
  for (const data of ["9007199254740993", "bad"]) socket.frame(data);
  assert.deepEqual(of("event"), [9007199254740993n, "bad"]);
});

test("a handler's error is reported as uncaught and breaks nothing", async (t) => {
  const uncaught = [];
  const handlers = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => uncaught.push(error.message));
  t.after(() => {
    process.removeAllListeners("uncaughtException");
    for (const handler of handlers) process.on("uncaughtException", handler);
  });
  const { client: made, clock, open, of } = client(t, {
    decide: () => {
      throw new Error("decide");
    },
  });
  const off = made.on("event", ({ n }) => {
    throw new Error(`event ${n}`);
  });
  const socket = await open();
  socket.frame({ n: 1 });
  off();
  socket.frame({ n: 2 });
  socket.end(1006);
  await clock.pass(0);
  assert.deepEqual(uncaught, ["event 1", "decide"]);
  assert.deepEqual(of("event"), [{ n: 1 }, { n: 2 }]);
  assert.equal(of("reconnecting").length, 1);
});

test("a socket class that throws is tried again", async (t) => {
  fixRandom(t, 0.5);
  let fails = 2;
  const { clock, of, sockets } = client(t, {});
  assert.ok(sockets);
  class Failing {
    constructor() {
      if ((fails -= 1) >= 0) throw new Error("no ports left");
      this.close = () => {};
    }
  }
  const other = client(t, { clock, WebSocket: Failing });
  await clock.pass(20_000);
  const errors = other.of("reconnecting").map(({ error }) => error?.message);
  assert.deepEqual(errors.slice(0, 2), ["no ports left", "no ports left"]);
  assert.deepEqual(of("closed"), []);
});

test("mistakes are told at once, by name", (t) => {
  class WebSocket {}
  const make = (options, url = "ws://acme.test/") => () => new LockgateClient(url, { WebSocket, ...options });
  for (const [options, text] of [
    [{ tokens: () => "x" }, /unknown option tokens; there are: token, tokenIn/],
    [{ token: "a.b.c" }, /token is no function/],
    [{ parse: 1 }, /parse is no function/],
    [{ decide: {} }, /decide is no function/],
    [{ tokenIn: "header" }, /tokenIn is neither "query" nor "subprotocol"/],
    [{ firstDelay: -1 }, /firstDelay is not between/],
    [{ maxDelay: NaN }, /maxDelay is not between/],
    [{ timeout: Infinity }, /timeout is not between/],
    [{ queue: "many" }, /queue is not between/],
  ]) {
    assert.throws(make(options), (error) => error instanceof TypeError && text.test(error.message), JSON.stringify(options));
  }
  assert.throws(make({}, "/relative"), TypeError);
  const given = globalThis.WebSocket;
  globalThis.WebSocket = undefined;
  t.after(() => (globalThis.WebSocket = given));
  assert.throws(() => new LockgateClient("ws://acme.test/"), /pass one as the option WebSocket/);
  const { client: made } = client(t);
  assert.throws(() => made.on("message", () => {}), /no event message; there are: open, event, gap, reconnecting, closed/);
});
