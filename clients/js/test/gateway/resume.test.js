// Resume with two real replicas on one Redis: every event once and in order, whatever happens to sockets.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Balancer } from "../support/balancer.js";
import { Gateway, eventually, sign } from "../support/gateway.js";
import { Life } from "../support/life.js";
import { Redis } from "../support/redis.js";

/** Two replicas of a tenant whose chat has a history, behind one address. */
async function fleet(t, history = '{ size = 5000, ttl = "10m" }') {
  const redis = await Redis.start(t);
  const more = `
[tenants.acme.layer]
prefix = "acme"
[[tenants.acme.groups]]
name = "chat_<slug:room>"
history = ${history}
[redis]
url = "${redis.url}"
[[tenants.acme.routes]]
path = "ws/plain/<slug:room>/"
groups = ["chat_{room}"]`;
  const settings = { chat: "resume = true", more };
  const replicas = [await Gateway.start(t, settings), await Gateway.start(t, settings)];
  const balancer = await Balancer.start(t, replicas.map(({ ports }) => ports[0]));
  return { replicas, balancer };
}

const numbers = (life) => life.of("event").map(({ n }) => n);
const all = (count) => Array.from({ length: count }, (_, n) => n + 1);
const sendTo = (replica, n) => replica.send("chat_lobby", { type: "chat.message", n });

/** Sends numbered events through one of the replicas, until it is told to stop. */
class Publisher {
  count = 0;
  #isOver = false;

  constructor(replica) {
    this.replica = replica;
    this.ended = this.#run();
  }

  async #run() {
    while (!this.#isOver) {
      await sendTo(this.replica, this.count + 1);
      this.count += 1;
      await new Promise((done) => setTimeout(done, 10));
    }
  }

  /** Goes to another replica; what was under way at the old one is answered when this returns. */
  async turn(replica) {
    this.replica = replica;
    const { count } = this;
    await eventually("events by the other replica", () => this.count > count + 1);
  }

  /** Returns how many events there were. */
  async stop() {
    this.#isOver = true;
    await this.ended;
    return this.count;
  }
}

test("every event arrives once and in order through kills, drains and cut links", async (t) => {
  const { replicas: [first, second], balancer } = await fleet(t);
  const url = `${balancer.url}ws/chat/lobby/`;
  const lives = all(10).map(() => new Life(t, url, { token: () => sign("1") }));
  const plain = new Life(t, `${balancer.url}ws/plain/lobby/`, { token: () => sign("2") });
  await Promise.all([...lives, plain].map((life) => life.until("open")));

  const publisher = new Publisher(second);
  const opened = (count) => Promise.all(lives.map((life) => life.until("open", count)));
  await publisher.turn(second);
  await first.program.kill("SIGKILL");
  await opened(2);
  await first.run();
  balancer.cut();
  await opened(3);
  balancer.turn();
  balancer.cut();
  await opened(4);
  await publisher.turn(first);
  await second.program.kill("SIGTERM");
  await opened(5);
  await second.run();
  await publisher.turn(second);
  const count = await publisher.stop();

  for (const life of lives) {
    await eventually(() => `event ${count}; the last is ${numbers(life).at(-1)}`, () => numbers(life).at(-1) === count);
    assert.deepEqual(numbers(life), all(count));
    assert.deepEqual([life.of("gap"), life.of("closed")], [[], []]);
  }
  // The same without resume: each return may miss something, and says so.
  assert.equal(plain.of("gap").length, plain.of("open").length - 1);
  t.diagnostic(`${count} events, ${lives[0].of("open").length} sockets each; without resume ${count - numbers(plain).length} were lost`);
});

test("what a client missed while no replica was there comes from the history", async (t) => {
  const { replicas: [first, second], balancer } = await fleet(t);
  const life = new Life(t, `${balancer.url}ws/chat/lobby/`, { token: () => sign("1") });
  await life.until("open");
  await sendTo(first, 1);
  await life.until("event");
  balancer.ports = [];
  balancer.cut();
  await life.until("reconnecting");
  for (const n of [2, 3, 4]) await sendTo(second, n);
  balancer.ports = [second.ports[0]];
  await life.until("event", 4);
  await sendTo(first, 5);
  await life.until("event", 5);
  assert.deepEqual([numbers(life), life.of("gap")], [all(5), []]);
  assert.deepEqual(Object.keys(life.of("event")[0]), ["n"], "the position is not part of the event");
});

test("what the history no longer holds is a gap, and the next events follow", async (t) => {
  const { replicas: [first], balancer } = await fleet(t, '{ size = 3, ttl = "10m" }');
  const life = new Life(t, `${balancer.url}ws/chat/lobby/`, { token: () => sign("1") });
  await life.until("open");
  await sendTo(first, 1);
  await life.until("event");
  balancer.ports = [];
  balancer.cut();
  await life.until("reconnecting");
  for (let n = 2; n <= 9; n += 1) await sendTo(first, n);
  balancer.ports = [first.ports[0]];
  assert.deepEqual(await life.until("gap"), { group: "chat_lobby" });
  await sendTo(first, 10);
  await eventually("the event after the gap", () => numbers(life).at(-1) === 10);
  assert.equal(life.of("gap").length, 1);
});

test("a page that was loaded again gets what it missed", async (t) => {
  const { replicas: [first], balancer } = await fleet(t);
  const url = `${balancer.url}ws/chat/lobby/`;
  const before = new Life(t, url, { token: () => sign("1") });
  await before.until("open");
  await sendTo(first, 1);
  await before.until("event");
  const { positions } = before.client;
  before.client.close();
  await sendTo(first, 2);
  const after = new Life(t, url, { token: () => sign("1"), positions });
  await sendTo(first, 3);
  await after.until("event", 2);
  assert.deepEqual([numbers(after), after.of("gap")], [[2, 3], []]);
  const forged = new Life(t, url, { token: () => sign("1"), positions: ["chat_lobby~forged~7", "chat_other~e~1", "x"] });
  await forged.until("gap", 2);
  await sendTo(first, 4);
  await forged.until("event");
  assert.equal(forged.of("closed").length, 0);
});
