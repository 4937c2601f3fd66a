/**
 * A client of Lockgate, the WebSocket gateway, for browsers and Node: one socket that comes back by itself.
 *
 * It asks the application for tokens, follows the gateway's close codes, and resumes where the last socket ended. It tells
 * the application what happens, and knows nothing of the meaning of events. The types stand in index.d.ts.
 */

const SECOND = 1000;
/** A socket that was open so long shows that the way is good. The next loss begins with a short wait again. */
const STABLE = 10 * SECOND;
/**
 * A tenant with `refusal = "close"` opens a socket to close it at once. A socket that comes back is announced after this
 * time or with its first frame, so that an outage does not look like many short openings, and nothing is sent into one.
 */
const SETTLE = 100;
/** A handshake that fails does not say why. A token is used again for so long, then the application is asked for another. */
const DOUBTFUL = 60 * SECOND;
/** A longer wait in a close reason is cut to this. */
const LONGEST_WAIT = 3600 * SECOND;
/** Timers that are set to more than 31 bits of milliseconds fire at once. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** The gateway takes request lines up to 16 KiB. Positions beyond this length stay out of the address and become gaps. */
const LONGEST_URL = 15_000;
/** The key by which the gateway adds its position to an event. */
const POSITION = "lockgate.position";

const DEFAULTS = {
  token: undefined,
  tokenIn: "query",
  queryParameter: "token",
  refresh: false,
  protocols: [],
  positions: [],
  queue: 64,
  firstDelay: 2 * SECOND,
  maxDelay: 30 * SECOND,
  timeout: 20 * SECOND,
  parse,
  decide: undefined,
  WebSocket: undefined,
};

const EVENTS = ["open", "event", "gap", "reconnecting", "closed"];

/** The default of `parse`: a route with `deliver = { field = "…" }` sends any text, and "12" stays a text. */
function parse(text) {
  const value = JSON.parse(text);
  return typeof value === "object" && value ? value : text;
}

/** The gateway's table of close codes: the next step, and the meaning. */
const CODES = {
  0: ["backoff", "The application gave no token."],
  1000: ["stop", "The socket ended as agreed."],
  1001: ["backoff", "The other side went away."],
  1002: ["stop", "The WebSocket protocol was broken."],
  1003: ["stop", "The route takes no such frame."],
  1006: ["backoff", "The connection was lost, or refused."],
  1007: ["stop", "A text message was not UTF-8."],
  1008: ["backoff", "A message was not complete in time."],
  1009: ["stop", "A message was too large."],
  1011: ["backoff", "The gateway or a consumer failed."],
  1012: ["backoff", "The replica drains, or the socket was old."],
  1013: ["backoff", "The other side asks to come back later."],
  4001: ["new_token", "The token expired."],
  4004: ["backoff", "Events may be missing."],
  4008: ["backoff", "The client read too slowly."],
  4009: ["at_once", "The client did not answer a ping."],
  4013: ["backoff", "The client sent too much."],
  4014: ["backoff", "The gateway cannot reach a dependency."],
  4015: ["long_backoff", "The tenant has too many sockets."],
  4016: ["long_backoff", "The tenant is suspended."],
  4017: ["long_backoff", "No tenant has this host."],
  4018: ["long_backoff", "No route has this path."],
  4500: ["stop", "The token is not valid."],
  4501: ["stop", "The token was revoked."],
  4502: ["stop", "The user is not active."],
  4504: ["stop", "The page's origin is not allowed."],
  4505: ["stop", "The route does not take this message."],
  4506: ["stop", "A newer socket of the user took the place."],
  4507: ["stop", "The user may not join."],
  4508: ["stop", "An operator closed the socket."],
  4509: ["stop", "The user is unknown."],
  4510: ["stop", "The password changed."],
  4512: ["stop", "The request had no token."],
  4513: ["stop", "The address makes no valid group name."],
  4514: ["stop", "The user has too many sockets."],
};

/** The codes after which the user has to log in again. */
const LOGIN = [4500, 4501, 4502, 4509, 4510];

export class FinalError extends Error {
  name = "FinalError";
  final = true;
}

export function readClose(code, text = "") {
  const [, reason, wait] = /^(.*?)(?: retry_after_ms=(\d+))?$/s.exec(text);
  // The codes of applications: 3500-3999 and 4500-4999 are final, as in the gateway's own ranges.
  const final = code >= 4500 || (code >= 3500 && code < 4000);
  const [next, meaning] = CODES[code] ?? [final ? "stop" : "backoff", "The application closed the socket."];
  const retryAfter = wait && Math.min(+wait, LONGEST_WAIT);
  return { code, reason, retryAfter, next, meaning, login: LOGIN.includes(code) };
}

/** Returns a wait with full jitter: any length up to a bound that doubles with each attempt. */
function jitter(attempt, first, max) {
  return Math.random() * Math.min(max, first * 2 ** attempt);
}

/** Calls the application's code. An error of it is reported as uncaught, and does not break the client. */
function guarded(call, ...values) {
  try {
    return call(...values);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/**
 * Returns when a token that was just received expires, in milliseconds of this machine's clock; NaN where it does not say.
 *
 * A clock outside of the token's own time is wrong, or the token is old and the gateway will say so. Such a token counts as
 * new, so that a wrong clock costs no storm of refreshes.
 */
function expiryOf(token, now) {
  try {
    const payload = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const { iat, exp } = JSON.parse(atob(payload));
    const left = now / SECOND < iat || now / SECOND >= exp ? exp - iat : exp - now / SECOND;
    return now + left * SECOND;
  } catch {
    return NaN;
  }
}

function checked(options) {
  const unknown = Object.keys(options).filter((name) => !(name in DEFAULTS));
  if (unknown.length) {
    throw new TypeError(`unknown option ${unknown}; there are: ${Object.keys(DEFAULTS).join(", ")}`);
  }
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const all = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...given };
  const must = (holds, text) => {
    if (!holds) throw new TypeError(text);
  };
  must(typeof all.WebSocket === "function", "no WebSocket here: pass one as the option WebSocket (Node before 22: the package ws)");
  for (const name of ["token", "parse", "decide"]) {
    must(all[name] === undefined || typeof all[name] === "function", `${name} is no function`);
  }
  for (const name of ["queue", "firstDelay", "maxDelay", "timeout"]) {
    must(all[name] >= 0 && all[name] <= LONGEST_TIMER, `${name} is not between 0 and ${LONGEST_TIMER}`);
  }
  must(["query", "subprotocol"].includes(all.tokenIn), 'tokenIn is neither "query" nor "subprotocol"');
  return all;
}

/** Returns the group of a position, which is `GROUP~EPOCH~OFFSET`; a group's name may have a `~` itself. */
function groupOf(position) {
  return position.slice(0, Math.max(0, position.lastIndexOf("~", position.lastIndexOf("~") - 1)));
}

export class LockgateClient {
  #url;
  #options;
  #handlers = Object.fromEntries(EVENTS.map((name) => [name, new Set()]));
  #state = "connecting";
  #socket;
  /** The present attempt with its socket; what belongs to an earlier one finds it aborted. */
  #turn = new AbortController();
  /** One timer is enough: a client waits, connects, or is open until the next refresh. */
  #timer;
  #attempts = 0;
  #notBefore = 0;
  #openedAt = 0;
  #offline = globalThis.navigator?.onLine === false;

  /** `{ text, askedAt, expires, usable }`: usable until then for another handshake. */
  #token;
  #askedOften = false;
  /** True if the present attempt has the token of an earlier one. */
  #reused = false;
  #handshaken = false;
  /** The refresh that waits for its answer: `{ token, again }`. */
  #refreshing;

  /** The last position of each group; null where the gateway could not resume. */
  #positions = new Map();
  /** True if this client, or the page that `positions` come from, was open before. */
  #continues;
  /** The groups whose position went with the present handshake, and those whose gap is told. */
  #resumed = new Set();
  #told = new Set();
  #allTold = false;
  #queue = [];

  constructor(url, options = {}) {
    this.#options = checked(options);
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#url.hash = "";
    for (const position of this.#options.positions) this.#positions.set(groupOf(position), position);
    this.#continues = this.#positions.size > 0;
    globalThis.addEventListener?.("offline", this.#goneOffline);
    globalThis.addEventListener?.("online", this.#backOnline);
    // Later, so that handlers are set and the token function may speak of this client.
    queueMicrotask(() => this.#state === "closed" || this.#connect());
  }

  get state() {
    return this.#state;
  }

  get positions() {
    return [...this.#positions.values()].filter(Boolean);
  }

  on(name, handler) {
    if (!EVENTS.includes(name)) throw new TypeError(`no event ${name}; there are: ${EVENTS.join(", ")}`);
    this.#handlers[name].add(handler);
    return () => this.#handlers[name].delete(handler);
  }

  send(data) {
    if (this.#state === "closed") return false;
    // A socket that is closing takes frames and drops them.
    if (this.#state === "open" && this.#socket.readyState === 1) {
      this.#socket.send(data);
      return true;
    }
    return this.#queue.length < this.#options.queue && this.#queue.push(data) > 0;
  }

  close(code = 1000, reason = "") {
    if (this.#state === "closed") return;
    this.#socket?.close(code, reason);
    this.#finish({ ...readClose(1000, reason || "normal"), code });
  }

  // ---------------------------------------------------------------- from an attempt to an open socket

  async #connect() {
    const { signal } = (this.#turn = new AbortController());
    this.#state = "connecting";
    this.#handshaken = false;
    const tooLate = () => this.#lost(readClose(1006, "timeout"));
    this.#after(this.#options.timeout, tooLate);
    try {
      this.#reused = Date.now() < this.#token?.usable;
      const token = this.#reused ? this.#token : await this.#askToken(signal);
      if (signal.aborted) return;
      this.#token = token;
      this.#after(this.#options.timeout, tooLate);
      this.#listen(new this.#options.WebSocket(...this.#address(token.text)));
    } catch (error) {
      if (signal.aborted) return;
      if (error?.final === true) this.#finishWithoutToken(error);
      else this.#retry({ ...readClose(0, "token"), error });
    }
  }

  async #askToken(signal) {
    const { token } = this.#options;
    const renew = this.#askedOften;
    this.#askedOften = true;
    const text = token ? await token({ renew, signal }) : null;
    if (text !== null && (typeof text !== "string" || !text)) {
      throw new TypeError(`the token function gave ${text === "" ? "an empty text" : typeof text}; expected: a token, or null for none`);
    }
    const askedAt = Date.now();
    const expires = expiryOf(text, askedAt);
    return { text, askedAt, expires, usable: expires - (expires - askedAt) / 5 };
  }

  /** Returns address and subprotocols of a handshake with this token and all positions. */
  #address(token) {
    const { tokenIn, queryParameter, protocols } = this.#options;
    const url = new URL(this.#url);
    const bearer = token !== null && tokenIn === "subprotocol" ? ["bearer", token] : [];
    if (token !== null && tokenIn === "query") url.searchParams.set(queryParameter, token);
    let { href } = url;
    this.#resumed.clear();
    for (const [group, position] of this.#positions) {
      const part = `${href.includes("?") ? "&" : "?"}since=${encodeURIComponent(position)}`;
      if (position && href.length + part.length <= LONGEST_URL) {
        href += part;
        this.#resumed.add(group);
      }
    }
    return [href, [...bearer, ...protocols]];
  }

  #listen(socket) {
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#handshaken = true;
      if (this.#attempts) this.#after(SETTLE, () => this.#opened());
      else this.#opened();
    };
    socket.onmessage = ({ data }) => {
      if (this.#state !== "open") this.#opened();
      if (this.#socket === socket) this.#receive(data);
    };
    socket.onclose = ({ code, reason }) => this.#lost(readClose(code, reason));
    // A close follows, but for Node's own class, which may only tell an error where a handshake fails.
    socket.onerror = () => this.#socket === socket && this.#after(SETTLE, () => this.#lost(readClose(1006)));
  }

  #opened() {
    clearTimeout(this.#timer);
    const reconnected = this.#continues;
    this.#continues = true;
    this.#state = "open";
    this.#openedAt = Date.now();
    this.#told.clear();
    for (const data of this.#queue.splice(0)) this.#socket.send(data);
    this.#planRefresh();
    // Without any position the gateway cannot say what was missed.
    this.#allTold = reconnected && !this.positions.length;
    const { signal } = this.#turn;
    this.#emit("open", { reconnected });
    if (this.#allTold && !signal.aborted) this.#emit("gap", {});
    this.#allTold ||= !reconnected;
  }

  // ---------------------------------------------------------------- frames

  #receive(data) {
    let event = data;
    if (typeof data === "string") {
      try {
        event = this.#options.parse(data);
      } catch {
        // No JSON: the event is the text.
      }
    }
    if (this.#isControl(event)) return;
    let position = event?.[POSITION];
    // Only groups that the gateway itself has named: elsewhere a member of the group could write the key.
    if (typeof position === "string" && this.#positions.has(groupOf(position))) {
      this.#positions.set(groupOf(position), position);
      delete event[POSITION];
    } else {
      position = undefined;
    }
    this.#emit("event", event, { position });
  }

  /** Obeys a frame of the gateway itself; false if the frame is the application's. */
  #isControl(event) {
    const refreshing = this.#refreshing;
    switch (event?.type) {
      case "lockgate.position":
        if (typeof event.position !== "string") return false;
        this.#reachPosition(event);
        return true;
      case "lockgate.gap":
        if (this.#resumed.delete(event.group)) this.#positions.set(event.group, null);
        this.#told.add(event.group);
        this.#emit("gap", { group: event.group });
        return true;
      case "lockgate.refreshed":
        if (!refreshing?.token) return false;
        this.#token = refreshing.token;
        this.#planRefresh();
        return true;
      case "lockgate.error":
        // The socket keeps the token that it has.
        if (!refreshing?.token || event.of !== "lockgate.refresh") return false;
        refreshing.again(event.retry_after_ms);
        return true;
    }
    return false;
  }

  #reachPosition({ position, recovered }) {
    const group = groupOf(position);
    this.#positions.set(group, position);
    // A group that could not be asked for, because the last socket ended before it told its position.
    const missed = recovered === false || (recovered === undefined && !this.#allTold && !this.#resumed.has(group));
    if (missed && !this.#told.has(group)) this.#emit("gap", { group });
    this.#told.add(group);
  }

  // ---------------------------------------------------------------- a token for the open socket

  #planRefresh() {
    this.#refreshing = undefined;
    const left = this.#token.expires - Date.now();
    // Spread, because many sockets may have come back at one moment.
    const delay = left * (0.7 + 0.15 * Math.random());
    if (this.#options.refresh && left > 0) this.#after(Math.max(SECOND, delay), () => this.#refresh(0));
  }

  async #refresh(tries) {
    const { signal } = this.#turn;
    const { firstDelay, maxDelay, timeout } = this.#options;
    const refreshing = (this.#refreshing = {
      again: (wait = 0) => {
        this.#refreshing = undefined;
        const delay = Math.min(wait, LONGEST_WAIT) + jitter(tries, firstDelay, maxDelay);
        this.#after(Math.max(SECOND, delay), () => this.#refresh(tries + 1));
      },
    });
    const isOver = () => signal.aborted || this.#refreshing !== refreshing;
    this.#after(timeout, () => refreshing.again());
    try {
      refreshing.token = await this.#askToken(signal);
      if (isOver()) return;
      const { text } = refreshing.token;
      if (text === null || text === this.#token.text) return refreshing.again();
      this.#socket.send(JSON.stringify({ type: "lockgate.refresh", token: text }));
      // A gateway that does not answer does not refresh (`token.refresh` is off); no further token is sent to it.
      this.#after(timeout, () => (this.#refreshing = undefined));
    } catch (error) {
      if (isOver()) return;
      if (error?.final === true) this.#finishWithoutToken(error);
      else refreshing.again();
    }
  }

  // ---------------------------------------------------------------- from a close to the next attempt, or the end

  #lost(close) {
    const wasOpen = this.#state === "open";
    if (wasOpen && Date.now() - this.#openedAt >= STABLE) this.#attempts = 0;
    const token = this.#token;
    if (token && !this.#handshaken) token.usable = Math.min(token.usable, token.askedAt + DOUBTFUL);
    // The key may have changed since the application gave this token.
    if (close.code === 4500 && this.#reused && !wasOpen) close.next = "new_token";
    const next = (this.#options.decide && guarded(this.#options.decide, close)) ?? close.next;
    // The token of a refresh that has no answer is newer than the socket's own.
    if (this.#refreshing?.token) this.#token = this.#refreshing.token;
    else if (next === "new_token") this.#token = undefined;
    this.#refreshing = undefined;
    if (next === "stop") this.#finish({ ...close, next });
    else this.#retry({ ...close, next });
  }

  #retry(close, now = false) {
    this.#drop();
    this.#state = "waiting";
    const attempt = this.#attempts++;
    const delay = now ? 0 : this.#delay(close, attempt);
    this.#notBefore = Date.now() + (close.retryAfter ?? 0);
    this.#after(delay, () => this.#connect());
    this.#emit("reconnecting", { ...close, attempt, delay });
  }

  #delay({ code, next, retryAfter = 0 }, attempt) {
    const { firstDelay, maxDelay } = this.#options;
    const long = next === "long_backoff" ? 10 : 1;
    // The waits of a drain are spread by the gateway, and leaving at once helps only the first time.
    const exact = attempt === 0 && (next === "at_once" || next === "new_token" || (code === 1012 && retryAfter > 0));
    const delay = retryAfter + (exact ? 0 : jitter(attempt, firstDelay * long, maxDelay * long));
    return this.#offline ? Math.max(delay, maxDelay) : delay;
  }

  /** A browser that says so may be wrong, and loopback needs no network. So attempts go on, but seldom. */
  #goneOffline = () => {
    this.#offline = true;
  };

  /** Whatever was open or on its way when the network went belongs to a network that is no more. */
  #backOnline = () => {
    if (!this.#offline) return;
    this.#offline = false;
    this.#attempts = 0;
    if (this.#state !== "waiting") this.#retry(readClose(1006, "offline"), true);
    else this.#after(Math.max(0, this.#notBefore - Date.now()), () => this.#connect());
  };

  #finishWithoutToken(error) {
    this.#finish({ ...readClose(0, "final"), next: "stop", login: true, error });
  }

  #finish(close) {
    this.#drop();
    this.#state = "closed";
    globalThis.removeEventListener?.("offline", this.#goneOffline);
    globalThis.removeEventListener?.("online", this.#backOnline);
    this.#emit("closed", close);
  }

  /** Ends the present attempt. What its socket still brings is not seen, and so resumed by the next one. */
  #drop() {
    this.#turn.abort();
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #after(delay, call) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(call, Math.min(delay, LONGEST_TIMER));
  }

  #emit(name, ...values) {
    for (const handler of [...this.#handlers[name]]) guarded(handler, ...values);
  }
}
