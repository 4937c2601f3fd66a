// Positions, resumption and gaps.

import assert from "node:assert/strict";
import { test } from "node:test";

import { client } from "./support/sockets.js";

const at = (group, offset, epoch = "e1") => `${group}~${epoch}~${offset}`;
const positionOf = (position, recovered) => ({ type: "lockgate.position", position, ...(recovered === undefined ? {} : { recovered }) });
const event = (n, group = "chat") => ({ n, "lockgate.position": at(group, n) });
const since = (socket) => socket.url.searchParams.getAll("since");

/** A client whose socket has told the positions of these groups. */
async function positioned(t, groups = ["chat"], options = {}) {
  const made = client(t, options);
  const socket = await made.open();
  for (const group of groups) socket.frame(positionOf(at(group, 0)));
  return { ...made, opened: socket };
}

async function reopened({ clock, open }, socket) {
  // So long that the next wait is the first again.
  await clock.pass(10_000);
  socket.end(1012, "draining retry_after_ms=1");
  await clock.pass(1);
  return open();
}

test("the position is told beside the event, and is not part of it", async (t) => {
  const { opened, told, client: made } = await positioned(t);
  opened.frame(event(1));
  assert.deepEqual(told.at(-1), ["event", { n: 1 }, { position: at("chat", 1) }]);
  assert.deepEqual(made.positions, [at("chat", 1)]);
});

test("a client that comes back names the last position of each group once", async (t) => {
  const life = await positioned(t, ["chat", "a~b", "user_7"]);
  life.opened.frame(event(1));
  life.opened.frame(event(2));
  life.opened.frame(event(5, "a~b"));
  const again = await reopened(life, life.opened);
  assert.deepEqual(since(again), [at("chat", 2), at("a~b", 5), at("user_7", 0)]);
});

test("what was missed and recovered is no gap", async (t) => {
  const life = await positioned(t);
  life.opened.frame(event(1));
  const again = await reopened(life, life.opened);
  again.frame(event(2));
  again.frame(event(3));
  again.frame(positionOf(at("chat", 3), true));
  again.frame(event(4));
  assert.deepEqual(life.of("event").map(({ n }) => n), [1, 2, 3, 4]);
  assert.deepEqual(life.of("gap"), []);
  assert.deepEqual(life.of("open"), [{ reconnected: false }, { reconnected: true }]);
});

test("an event of a socket that was given up is not seen, and so comes again", async (t) => {
  const life = await positioned(t);
  const again = await reopened(life, life.opened);
  life.opened.frame(event(1));
  assert.deepEqual(life.of("event"), []);
  assert.deepEqual(since(again), [at("chat", 0)]);
});

test("a gap is told once, by its group", async (t) => {
  const life = await positioned(t, ["chat", "news"]);
  const again = await reopened(life, life.opened);
  again.frame({ type: "lockgate.gap", group: "chat" });
  again.frame(positionOf(at("chat", 9, "e2"), false));
  again.frame(positionOf(at("news", 0), true));
  assert.deepEqual(life.of("gap"), [{ group: "chat" }]);
  const third = await reopened(life, again);
  assert.deepEqual(since(third), [at("chat", 9, "e2"), at("news", 0)]);
});

test("a position that is not recovered is a gap, also without the word", async (t) => {
  const life = await positioned(t);
  const again = await reopened(life, life.opened);
  again.frame(positionOf(at("chat", 4), false));
  assert.deepEqual(life.of("gap"), [{ group: "chat" }]);
});

test("a group that the route no longer joins is asked for once", async (t) => {
  const life = await positioned(t, ["chat", "old"]);
  const again = await reopened(life, life.opened);
  again.frame({ type: "lockgate.gap", group: "old" });
  again.frame(positionOf(at("chat", 0), true));
  const third = await reopened(life, again);
  assert.deepEqual(since(third), [at("chat", 0)]);
});

test("a gap on an open socket keeps the position", async (t) => {
  const life = await positioned(t);
  life.opened.frame(event(1));
  life.opened.frame({ type: "lockgate.gap", group: "chat" });
  life.opened.frame({ type: "lockgate.gap" });
  assert.deepEqual(life.of("gap"), [{ group: "chat" }, { group: undefined }]);
  life.opened.frame(event(5));
  assert.deepEqual(life.told.at(-1), ["event", { n: 5 }, { position: at("chat", 5) }]);
  life.opened.frame({ type: "lockgate.gap", group: "chat" });
  assert.deepEqual(since(await reopened(life, life.opened)), [at("chat", 5)]);
});

test("on a route without positions every return is a gap", async (t) => {
  const life = client(t);
  const socket = await life.open();
  socket.frame({ n: 1 });
  const again = await reopened(life, socket);
  assert.deepEqual(life.told.slice(-2), [["open", { reconnected: true }], ["gap", {}]]);
  await reopened(life, again);
  assert.equal(life.of("gap").length, 2);
});

test("a route that lost its histories is a route without positions", async (t) => {
  const life = await positioned(t);
  const again = await reopened(life, life.opened);
  again.frame({ type: "lockgate.gap", group: "chat" });
  await reopened(life, again);
  assert.deepEqual(life.of("gap"), [{ group: "chat" }, {}]);
});

test("a socket that was lost before it told a group's position leaves a gap of this group", async (t) => {
  const life = await positioned(t, ["chat"]);
  const again = await reopened(life, life.opened);
  again.frame(positionOf(at("chat", 0), true));
  again.frame(positionOf(at("news", 3)));
  again.frame(positionOf(at("news", 4)));
  assert.deepEqual(life.of("gap"), [{ group: "news" }]);
});

test("a socket that was lost before it told any position leaves one gap", async (t) => {
  const life = client(t);
  const again = await reopened(life, await life.open());
  again.frame(positionOf(at("chat", 3)));
  again.frame(positionOf(at("news", 3)));
  assert.deepEqual(life.of("gap"), [{}]);
});

test("a position between events, as it follows a frame that cannot hold one, is no gap", async (t) => {
  const life = await positioned(t);
  const again = await reopened(life, life.opened);
  again.frame("a text");
  again.frame(positionOf(at("chat", 1)));
  again.frame(positionOf(at("chat", 1), true));
  assert.deepEqual([life.of("gap"), life.of("event")], [[], ["a text"]]);
  assert.deepEqual(life.client.positions, [at("chat", 1)]);
});

test("a position that a member of the group wrote into an event is not believed", async (t) => {
  const life = client(t);
  const socket = await life.open();
  for (const forged of ["chat~e~9", "~~", "", "x", 7, null, { a: 1 }]) {
    socket.frame({ n: 1, "lockgate.position": forged });
    assert.deepEqual(life.told.at(-1), ["event", { n: 1, "lockgate.position": forged }, { position: undefined }]);
  }
  const again = await reopened(life, socket);
  assert.deepEqual(since(again), []);
  assert.deepEqual(life.of("gap"), [{}], "and hides no gap");
});

test("frames of the gateway's names with other contents break nothing", async (t) => {
  const { opened, of, client: made } = await positioned(t);
  for (const frame of [{ type: "lockgate.position" }, { type: "lockgate.position", position: 7 }, [], null, "null", "7", "{", { type: 7 }]) {
    opened.frame(frame);
  }
  assert.equal(of("event").length, 8);
  assert.equal(made.state, "open");
});

test("a page that was loaded again resumes from the positions that it kept", async (t) => {
  const life = client(t, { positions: [at("chat", 4), at("news", 2)] });
  const socket = await life.open();
  assert.deepEqual(since(socket), [at("chat", 4), at("news", 2)]);
  assert.deepEqual(life.of("open"), [{ reconnected: true }]);
  socket.frame(event(5));
  socket.frame(positionOf(at("chat", 5), true));
  socket.frame({ type: "lockgate.gap", group: "news" });
  socket.frame(positionOf(at("news", 9), false));
  assert.deepEqual(life.of("gap"), [{ group: "news" }]);
  assert.deepEqual(life.client.positions, [at("chat", 5), at("news", 9)]);
});

test("more positions than an address can hold become gaps, and no address is too long", async (t) => {
  const groups = Array.from({ length: 300 }, (_, n) => `${String(n).padStart(3, "0")}${"x".repeat(95)}`);
  const life = await positioned(t, groups, { token: async () => `h.${"p".repeat(4000)}.s` });
  const again = await reopened(life, life.opened);
  assert.ok(again.url.href.length <= 15_000, `${again.url.href.length}`);
  const asked = since(again);
  assert.ok(asked.length > 80, `${asked.length}`);
  for (const group of groups) again.frame(positionOf(at(group, 0), asked.includes(at(group, 0)) ? true : undefined));
  assert.deepEqual(life.of("gap").map(({ group }) => group), groups.slice(asked.length));
});

test("a position that had room once and then has none is a gap", async (t) => {
  const groups = Array.from({ length: 100 }, (_, n) => `${n}${"x".repeat(95)}`);
  const lengths = [0, 0, 8000];
  const life = await positioned(t, groups, { token: async () => `h.${"p".repeat(lengths.shift())}.s` });
  const second = await reopened(life, life.opened);
  assert.equal(since(second).length, 100);
  for (const group of groups) second.frame(positionOf(at(group, 0), true));
  const third = await reopened(life, second);
  const asked = since(third);
  assert.ok(asked.length < 100);
  for (const group of groups) third.frame(positionOf(at(group, 0), asked.includes(at(group, 0)) ? true : undefined));
  assert.deepEqual(life.of("gap").map(({ group }) => group), groups.slice(asked.length));
});

test("a reserved character of a group's name survives the address", async (t) => {
  const name = "a b&since=+%7E/ž";
  const life = await positioned(t, [name]);
  const again = await reopened(life, life.opened);
  assert.deepEqual(since(again), [at(name, 0)]);
});
