// The clients of clients/js in the account. One line of JSON comes in with the ground; the line `{"until": [OFFSET, …]}` lets
// them end once each has the last event of its group. The line `ready` goes out once each has a position, and at the end one line
// of JSON: what each client got.

import { createInterface } from "node:readline";

import WebSocket from "../../../clients/js/node_modules/ws/wrapper.mjs";
import { LockgateClient } from "../../../clients/js/index.js";

/** How long a client may take to get what it is due. */
const PATIENCE = 60_000;

const offsetOf = (position) => Number(position.slice(position.lastIndexOf("~") + 1));

class Life {
  opens = 0;
  gaps = [];
  seen = [];
  first = null;
  closed = null;

  constructor(ground, group, place) {
    this.group = group;
    const socketClass = class extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols, { headers: { Host: ground.host } });
      }
    };
    const url = `ws://${ground.doors[place % ground.doors.length]}/back/${group}/`;
    this.client = new LockgateClient(url, { WebSocket: socketClass, token: () => ground.token, firstDelay: 100, maxDelay: 500 });
    this.client.on("open", () => (this.opens += 1));
    this.client.on("gap", (gap) => this.gaps.push(gap));
    this.client.on("closed", ({ code }) => (this.closed = code));
    this.client.on("event", (event, { position }) => {
      const ours = position && event.group === group && event.tenant === ground.tenant;
      this.seen.push(ours && Number.isInteger(event.number) ? event.number : null);
      this.begin();
    });
    // The client keeps the frame with its first position for itself.
    this.watch = setInterval(() => this.begin(), 20);
  }

  /** The offset before the first event that it is due. An event that was lost before this look is due, and is missing. */
  begin() {
    if (this.first === null && this.client.positions.length) {
      this.first = this.reached - this.seen.length;
      clearInterval(this.watch);
    }
  }

  get reached() {
    return Math.max(-1, ...this.client.positions.map(offsetOf));
  }

  end() {
    const { group, gaps, seen, first, closed } = this;
    clearInterval(this.watch);
    this.client.close();
    return { group, sockets: this.opens, gaps, seen, first, closed };
  }
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ground = JSON.parse((await lines.next()).value);
const lives = Array.from({ length: ground.clients }, (_, place) => new Life(ground, place % ground.groups, place));
// A socket that is lost before its first position is a gap to the client, which knows nothing of what it missed.
while (lives.some((life) => life.first === null)) {
  await new Promise((done) => setTimeout(done, 20));
}
process.stdout.write("ready\n");
const { until } = JSON.parse((await lines.next()).value);
const end = Date.now() + PATIENCE;
while (Date.now() < end && lives.some((life) => life.reached < until[life.group])) {
  await new Promise((done) => setTimeout(done, 50));
}
// What would come twice has time to come.
await new Promise((done) => setTimeout(done, 1000));
// A pipe takes 64 KiB at a time, and an exit drops what it has not taken.
const logs = JSON.stringify(lives.map((life) => life.end()));
process.stdout.write(`${logs}\n`, () => process.exit(0));
