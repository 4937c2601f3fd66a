// The client against a real gateway: tokens, kill -9, drains, revocation, expiry and every other end that it brings about.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { Gateway, Program, eventually, freePorts, sign } from "../support/gateway.js";
import { Life } from "../support/life.js";

const chat = (gateway) => `${gateway.url}ws/chat/lobby/`;

test("two users talk, with tokens in the query and in the subprotocols", async (t) => {
  const gateway = await Gateway.start(t);
  const alice = new Life(t, chat(gateway), { token: () => sign("1") });
  const bob = new Life(t, chat(gateway), { token: () => sign("2"), tokenIn: "subprotocol" });
  await Promise.all([alice.until("open"), bob.until("open")]);
  alice.client.send(JSON.stringify({ message: "hello" }));
  for (const life of [alice, bob]) assert.deepEqual(await life.until("event"), { message: "hello", username: "alice" });
  await gateway.send("chat_lobby", { type: "chat.message", message: "from a back end" });
  for (const life of [alice, bob]) assert.deepEqual(await life.until("event", 2), { message: "from a back end" });
});

test("a killed gateway is waited for, with the same token, and what was missed is said", async (t) => {
  const gateway = await Gateway.start(t);
  let asked = 0;
  const life = new Life(t, chat(gateway), { token: () => sign("1", 300 + (asked += 1)) });
  await life.until("open");
  await gateway.program.kill("SIGKILL");
  assert.equal((await life.until("reconnecting")).code, 1006);
  life.client.send(JSON.stringify({ message: "written meanwhile" }));
  await gateway.run();
  assert.deepEqual(await life.until("open", 2), { reconnected: true });
  await life.until("gap");
  assert.deepEqual(await life.until("event"), { message: "written meanwhile", username: "alice" });
  assert.deepEqual(life.of("closed"), []);
  assert.equal(asked, 1);
});

test("a drain is obeyed: its wait, and the same token", async (t) => {
  const gateway = await Gateway.start(t);
  const life = new Life(t, chat(gateway), { token: () => sign("1") });
  await life.until("open");
  const ended = gateway.program.kill("SIGTERM");
  const { code, reason, retryAfter, delay } = await life.until("reconnecting");
  assert.deepEqual([code, reason, delay], [1012, "draining", retryAfter]);
  assert.equal((await ended).code, 0);
  await gateway.run();
  await life.until("open", 2);
});

test("a client without a token lives on an anonymous route: events, resume, and a place when one is free", async (t) => {
  const more = `
[[tenants.acme.groups]]
name = "chat_<slug:room>"
history = { size = 100, ttl = "10m" }
[tenants.acme.limits]
anonymous_connections = 1
[[tenants.acme.routes]]
path = "ws/open/<slug:room>/"
groups = ["chat_{room}"]
anonymous = true
resume = true
consumer = { kind = "broadcast", type = "chat.message", fields = ["message"] }`;
  const gateway = await Gateway.start(t, { more, tenant: 'refusal = "close"' });
  const open = `${gateway.url}ws/open/lobby/`;
  const guest = new Life(t, open);
  await guest.until("open");
  guest.client.send(JSON.stringify({ message: "hello" }));
  await guest.until("event");
  const alice = new Life(t, open, { token: () => sign("1") });
  await alice.until("open");
  const { sockets } = await gateway.api("GET", "tenants/acme/groups/chat_lobby");
  assert.deepEqual(sockets.map((socket) => socket.user_id).sort(), ["1", null]);
  const { channel } = sockets.find((socket) => socket.user_id === null);
  await gateway.api("POST", `tenants/acme/connections/${channel}/disconnect`, { code: 1012, reason: "elsewhere" });
  await guest.until("reconnecting");
  await gateway.send("chat_lobby", { type: "chat.message", message: "meanwhile" });
  assert.deepEqual(await guest.until("open", 2), { reconnected: true });
  await gateway.send("chat_lobby", { type: "chat.message", message: "after" });
  await guest.until("event", 3);
  assert.deepEqual(guest.of("event").map(({ message }) => message), ["hello", "meanwhile", "after"]);
  assert.deepEqual([guest.of("gap"), guest.of("closed")], [[], []]);
  // The place of strangers is taken, and a user finds one all the same.
  const second = new Life(t, open);
  const { code, reason } = await second.until("reconnecting", 2);
  assert.deepEqual([code, reason], [4015, "too_many_connections"]);
  guest.client.close();
  await second.until("open");
  const forged = new Life(t, open, { token: () => sign("1", 300, "another-key-with-thirty-two-bytes-or-more") });
  assert.equal((await forged.until("closed")).code, 4500);
});

test("a revoked user is out for good, and told why", async (t) => {
  const gateway = await Gateway.start(t);
  let asked = 0;
  const life = new Life(t, chat(gateway), { token: () => sign("1", 300 + (asked += 1)) });
  const other = new Life(t, chat(gateway), { token: () => sign("2") });
  await Promise.all([life.until("open"), other.until("open")]);
  await gateway.api("POST", "tenants/acme/revocations", { user_id: "1" });
  const { code, reason, login, meaning } = await life.until("closed");
  assert.deepEqual([code, reason, login, meaning], [4501, "token_revoked", true, "The token was revoked."]);
  await gateway.send("chat_lobby", { type: "chat.message", message: "to those who stayed" });
  await other.until("event");
  assert.deepEqual([life.of("event"), asked, life.client.state], [[], 1, "closed"]);
});

test("a token that expires is followed by the next one", async (t) => {
  const gateway = await Gateway.start(t);
  const renewed = [];
  const life = new Life(t, chat(gateway), {
    token: ({ renew }) => {
      renewed.push(renew);
      return sign("1", renew ? 300 : 3);
    },
  });
  await life.until("open");
  const { code, reason, delay } = await life.until("reconnecting");
  assert.deepEqual([code, reason, delay], [4001, "token_expired", 0]);
  await life.until("open", 2);
  assert.deepEqual(renewed, [false, true]);
});

test("a token endpoint that is down is survived", async (t) => {
  const gateway = await Gateway.start(t);
  const [port] = await freePorts(1);
  const token = async ({ signal }) => {
    const answer = await fetch(`http://127.0.0.1:${port}/`, { signal });
    if (!answer.ok) throw new Error(`the token endpoint answers ${answer.status}`);
    return answer.text();
  };
  const life = new Life(t, chat(gateway), { token });
  // First there is no server, then one that fails, then one that works.
  await life.until("reconnecting", 3);
  let failures = 3;
  const server = createServer((request, answer) => {
    if ((failures -= 1) >= 0) answer.writeHead(503).end();
    else answer.end(sign("1"));
  }).listen(port, "127.0.0.1");
  t.after(() => server.close());
  await life.until("open");
  const messages = life.of("reconnecting").map(({ error }) => error.message);
  assert.ok(messages.filter((text) => text.endsWith("answers 503")).length === 3, String(messages));
});

test("refusals that a browser can read obey the table", async (t) => {
  const gateway = await Gateway.start(t, { tenant: 'refusal = "close"' });
  const wrongKey = "another-key-with-thirty-two-bytes-or-more";
  for (const [name, token, code, reason, login] of [
    ["inactive", () => sign("3"), 4502, "user_inactive", true],
    ["unknown", () => sign("99"), 4509, "user_not_found", true],
    ["forged", () => sign("1", 300, wrongKey), 4500, "token_not_valid", true],
    ["none", () => null, 4512, "token_missing", false],
  ]) {
    await t.test(name, async (t) => {
      const life = new Life(t, chat(gateway), { token });
      const closed = await life.until("closed");
      assert.deepEqual([closed.code, closed.reason, closed.login], [code, reason, login]);
    });
  }
  await t.test("expired at the connect, then not", async (t) => {
    const life = new Life(t, chat(gateway), { token: ({ renew }) => sign("1", renew ? 300 : -100) });
    assert.equal((await life.until("reconnecting")).code, 4001);
    await eventually("an open client", () => life.client.state === "open");
  });
});

test("refusals that a browser cannot read are tried with other tokens", async (t) => {
  const gateway = await Gateway.start(t);
  const clock = Date.now;
  t.after(() => (Date.now = clock));
  const life = new Life(t, chat(gateway), { token: ({ renew }) => sign("1", renew ? 300 : -100) });
  assert.equal((await life.until("reconnecting")).code, 1006);
  // A token is doubtful after a minute.
  Date.now = () => clock() + 61_000;
  await life.until("open");
  assert.deepEqual(life.of("closed"), []);
});

test("a suspended tenant is waited for long", async (t) => {
  const gateway = await Gateway.start(t, { tenant: 'refusal = "close"' });
  const life = new Life(t, chat(gateway), { token: () => sign("1"), firstDelay: 1, maxDelay: 10 });
  await life.until("open");
  await gateway.api("POST", "tenants/acme/suspend");
  const { code, reason, next, retryAfter, delay } = await life.until("reconnecting");
  assert.deepEqual([code, reason, next], [4016, "tenant_suspended", "long_backoff"]);
  assert.ok(delay >= retryAfter && delay <= retryAfter + 10, `${delay} ms`);
  await gateway.api("POST", "tenants/acme/resume");
  await life.until("open", 2);
});

test("two clients of one user do not fight for one place", async (t) => {
  const more = '[tenants.acme.limits]\nconnections_per_user = 1\non_excess = "replace"';
  const gateway = await Gateway.start(t, { more });
  const first = new Life(t, chat(gateway), { token: () => sign("1") });
  await first.until("open");
  const second = new Life(t, chat(gateway), { token: () => sign("1") });
  await second.until("open");
  const { code, meaning } = await first.until("closed");
  assert.deepEqual([code, meaning], [4506, "A newer socket of the user took the place."]);
  await gateway.send("chat_lobby", { type: "chat.message", message: "still here" });
  await second.until("event");
});

test("a client that sends too much is let in again, one that sends too large a frame is not", async (t) => {
  const more = '[tenants.acme.limits]\nmessages_per_second = 1\nmessage_size = "1KiB"';
  const gateway = await Gateway.start(t, { more });
  const life = new Life(t, `${gateway.url}ws/echo/`, { token: () => sign("1") });
  await life.until("open");
  for (let n = 0; n < 5; n += 1) life.client.send(`{"n":${n}}`);
  const { code, retryAfter, delay } = await life.until("reconnecting");
  assert.deepEqual([code, retryAfter], [4013, 1000]);
  assert.ok(delay >= 1000);
  await life.until("open", 2);
  life.client.send("x".repeat(2000));
  assert.equal((await life.until("closed")).code, 1009);
});

test("an operator's disconnect is final, and another code is as the table says", async (t) => {
  const gateway = await Gateway.start(t);
  const life = new Life(t, chat(gateway), { token: () => sign("1") });
  await life.until("open");
  await gateway.api("POST", "tenants/acme/users/1/disconnect", { code: 4099, reason: "rooms moved" });
  const { code, reason } = await life.until("reconnecting");
  assert.deepEqual([code, reason], [4099, "rooms moved"]);
  await life.until("open", 2);
  await gateway.api("POST", "tenants/acme/users/1/disconnect", {});
  assert.equal((await life.until("closed")).code, 4508);
});

test("a process ends by itself once its client is closed", async (t) => {
  const gateway = await Gateway.start(t);
  const index = new URL("../../index.js", import.meta.url);
  const script = (how) => `
    ${how}
    import { FinalError, LockgateClient } from ${JSON.stringify(index.href)};
    const token = () => process.env.TOKEN;
    const client = new LockgateClient(process.env.URL, { WebSocket, token, refresh: true });
    client.on("event", () => client.close());
    client.on("open", () => client.send('{"message":"bye"}'));
    const final = new LockgateClient(process.env.URL, { WebSocket, token: () => { throw new FinalError("logged out"); } });
    const closed = new LockgateClient("ws://127.0.0.1:9/", { WebSocket, token });
    closed.on("reconnecting", () => closed.close());
    process.on("exit", () => console.log([client, final, closed].map(({ state }) => state).join()));
  `;
  const env = { ...process.env, URL: chat(gateway), TOKEN: sign("1") };
  // Node 22 has a class of its own; Node 20 has it behind a flag.
  const flags = globalThis.WebSocket ? [] : ["--experimental-websocket", "--no-warnings"];
  for (const [name, how, more] of [
    ["ws", `import WebSocket from ${JSON.stringify(import.meta.resolve("ws"))};`, []],
    ["Node's own class", "const { WebSocket } = globalThis;", flags],
  ]) {
    await t.test(name, async (t) => {
      const program = new Program(t, process.execPath, [...more, "--input-type=module", "--eval", script(how)], { env });
      await eventually("the end of the process", () => program.isOver);
      assert.deepEqual([program.output.trim(), (await program.ended).code], ["closed,closed,closed", 0]);
    });
  }
});
