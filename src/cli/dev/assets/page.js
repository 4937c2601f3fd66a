/** The page of `lockgate dev`: two users, what to try next, live metrics, and the configuration. */

import { charts } from "./charts.js";
import { Pane } from "./pane.js";
import { tries } from "./tries.js";

const facts = JSON.parse(document.querySelector("#facts").textContent);
const one = (selector) => document.querySelector(selector);

const portOf = (replica) => replica.slice(replica.lastIndexOf(":") + 1);

/** Returns the address of a room on a replica, under the host name that the page has. */
function address(replica, room) {
  return `ws://${location.hostname}:${portOf(replica)}/${room}`;
}

/** Asks the demo for a new token, as a page asks the back end that its user is logged in at. */
async function login(user, signal) {
  const answer = await fetch(`/dev/tokens/${user}`, { signal });
  if (!answer.ok) throw new Error(`no token: ${answer.status}`);
  return (await answer.json()).token;
}

/** Calls the management API. The way to it leads through the page's own server, because a browser asks no other. */
async function call(method, path, body) {
  const began = performance.now();
  const headers = { Authorization: `Bearer ${facts.api_key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const text = await answer.text();
  return { ok: answer.ok, status: answer.status, text, took: performance.now() - began };
}

const panes = facts.users.map((user, index) => {
  const replica = facts.replicas[index % facts.replicas.length];
  const where = facts.replicas.length > 1 ? `on port ${portOf(replica)}` : "";
  return new Pane(one("#panes"), { user, where, url: address(replica, facts.room), login });
});

if (facts.replicas.length > 1) {
  one("#replicas").textContent =
    "They sit on different replicas, each on a port of its own. What one takes reaches the other through memory that they share " +
    "in this process, where a deployment has Redis.";
}
one("#config-file").textContent = facts.config_file;
one("#config pre").textContent = facts.config;

tries(one("#tries > ol"), { facts, panes, call, login, address });
charts(one("#metrics .charts"), one("#metrics-state"));
