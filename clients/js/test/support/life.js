// A client of a real gateway, with all that it told.

import WebSocket from "ws";

import { LockgateClient } from "../../index.js";
import { eventually } from "./gateway.js";

export class Life {
  told = [];

  /** Waits are short here, so that the tests are. */
  constructor(test, url, options = {}) {
    this.client = new LockgateClient(url, { WebSocket, firstDelay: 100, maxDelay: 500, ...options });
    for (const name of ["open", "event", "gap", "reconnecting", "closed"]) {
      this.client.on(name, (value) => this.told.push([name, value]));
    }
    test.after(() => this.client.close());
  }

  of(name) {
    return this.told.filter(([told]) => told === name).map(([, value]) => value);
  }

  /** Waits until so many of a name were told, and returns the last of them. */
  async until(name, count = 1) {
    await eventually(() => `${count} of ${name}; told: ${JSON.stringify(this.told).slice(-2000)}`, () => this.of(name).length >= count);
    return this.of(name)[count - 1];
  }
}
