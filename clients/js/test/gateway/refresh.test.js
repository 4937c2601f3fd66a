// Tokens that are refreshed in the open socket of a real gateway.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Gateway, eventually, measured, sign } from "../support/gateway.js";
import { Life } from "../support/life.js";

const LIFETIME = 4;

/** A gateway with refresh, and a client of user 1 whose tokens live for some seconds. The leeway is for busy machines. */
async function refreshing(t, token, leeway = "60s") {
  const gateway = await Gateway.start(t, { token: `refresh = true\nleeway = "${leeway}"` });
  const asked = [];
  const ask = (request) => {
    asked.push(request.renew);
    return token ? token(asked.length) : sign("1", LIFETIME);
  };
  const life = new Life(t, `${gateway.url}ws/chat/lobby/`, { token: ask, refresh: true });
  await life.until("open");
  return { gateway, life, asked };
}

test("one socket outlives its tokens, and its group sees none of them", async (t) => {
  const { gateway, life, asked } = await refreshing(t);
  const other = new Life(t, `${gateway.url}ws/chat/lobby/`, { token: () => sign("2") });
  await other.until("open");
  await eventually("two refreshes", async () => (await measured(gateway.ports[1], "lockgate_token_refreshes_total")) >= 2);
  life.client.send(JSON.stringify({ message: "still here" }));
  assert.deepEqual(await other.until("event"), { message: "still here", username: "alice" });
  assert.deepEqual([life.of("reconnecting"), life.of("event").length, other.of("event").length], [[], 1, 1]);
  assert.ok(asked.length >= 3);
});

test("a revocation finds a refreshed socket", async (t) => {
  const { gateway, life } = await refreshing(t);
  await eventually("a refresh", async () => (await measured(gateway.ports[1], "lockgate_token_refreshes_total")) >= 1);
  await gateway.api("POST", "tenants/acme/revocations", { user_id: "1" });
  assert.equal((await life.until("closed")).code, 4501);
});

test("a refused refresh is tried again, and leaves the socket open", async (t) => {
  const wrongKey = "another-key-with-thirty-two-bytes-or-more";
  const { gateway, life } = await refreshing(t, (n) => (n === 2 ? sign("1", 300, wrongKey) : sign("1", n === 1 ? 8 : 300)));
  await eventually("two refreshes", async () => (await measured(gateway.ports[1], "lockgate_token_refreshes_total")) >= 2);
  life.client.send(JSON.stringify({ message: "still here" }));
  await life.until("event");
  assert.deepEqual([life.of("reconnecting"), life.of("closed")], [[], []]);
});

test("another user's token ends the client", async (t) => {
  const { life } = await refreshing(t, (n) => sign(String(n), n === 1 ? LIFETIME : 300));
  const { code, login } = await life.until("closed");
  assert.deepEqual([code, login], [4500, true]);
});

test("a token endpoint that fails until the token is over costs a reconnect, and no more", async (t) => {
  let fails = true;
  const { life } = await refreshing(t, (n) => {
    if (n > 1 && fails) throw new Error("503");
    return sign("1", n === 1 ? LIFETIME : 300);
  }, "0s");
  assert.equal((await life.until("reconnecting")).code, 4001);
  fails = false;
  await life.until("open", 2);
  assert.deepEqual(life.of("closed"), []);
});
