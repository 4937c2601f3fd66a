// WebSockets without a network: the test plays the gateway.

import { LockgateClient } from "../../index.js";
import { Clock, settled } from "./clock.js";

/** Returns a class of sockets of one test, with all that were made in `all`. */
function socketClass() {
  return class FakeSocket {
    static all = [];

    readyState = 0;
    sent = [];
    /** The code and reason of the client's close. */
    closedBy = undefined;

    constructor(url, protocols) {
      this.url = new URL(url);
      this.protocols = protocols;
      FakeSocket.all.push(this);
    }

    send(data) {
      if (this.readyState !== 1) throw new Error("sent while not open");
      this.sent.push(data);
    }

    close(code, reason) {
      if (this.readyState >= 2) return;
      this.readyState = 2;
      this.closedBy = { code, reason };
    }

    /** The handshake succeeds. */
    accept() {
      this.readyState = 1;
      this.onopen?.({});
    }

    /** A frame of the gateway: text or bytes as they are, anything else as JSON. */
    frame(data) {
      const raw = typeof data === "string" || data instanceof ArrayBuffer;
      this.onmessage?.({ data: raw ? data : JSON.stringify(data) });
    }

    /** The socket ends; 1006 before `accept` is a refused handshake. */
    end(code = 1006, reason = "") {
      this.readyState = 3;
      if (code === 1006) this.onerror?.({});
      this.onclose?.({ code, reason });
    }
  };
}

/** A client on a standing clock; `told` has all that it said, `sockets` all that it opened. */
export function client(test, options = {}, url = "ws://acme.test/ws/chat/lobby/") {
  const clock = options.clock ?? new Clock(test);
  const WebSocket = socketClass();
  const { clock: _, ...rest } = options;
  const made = new LockgateClient(url, { WebSocket, ...rest });
  const told = [];
  for (const name of ["open", "event", "gap", "reconnecting", "closed"]) {
    made.on(name, (...values) => told.push([name, ...values]));
  }
  /** The newest socket, once everything is settled. */
  const socket = async () => {
    await settled();
    return WebSocket.all.at(-1);
  };
  /** The newest socket, open and announced. */
  const open = async () => {
    const opened = await socket();
    opened.accept();
    await clock.pass(100);
    return opened;
  };
  /** Fires the timer that is next, and gives the newest socket. */
  const next = async () => {
    await clock.pass(clock.next);
    return socket();
  };
  /** What was told under one name. */
  const of = (name) => told.filter(([told]) => told === name).map(([, value]) => value);
  return { client: made, clock, told, sockets: WebSocket.all, of, socket, open, next };
}

/** A token as simplejwt makes it, with a signature that only the gateway would check. */
export function token(clock, lifetime, claims = {}) {
  const iat = Math.floor(clock.now / 1000);
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${encode({ alg: "HS256" })}.${encode({ iat, exp: iat + lifetime, jti: String(Math.random()), name: "Žofie ☃", ...claims })}.x`;
}

const realRandom = Math.random;

/** Fixes what `Math.random` says until the test is over. */
export function fixRandom(test, value) {
  Math.random = typeof value === "function" ? value : () => value;
  test.after(() => (Math.random = realRandom));
}
