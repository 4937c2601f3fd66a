/**
 * A client of Lockgate, the WebSocket gateway: one socket that comes back by itself, for browsers and Node 20 or later.
 */

/** The step that follows a close. */
export type NextStep =
  /** No further socket. */
  | "stop"
  /** Another token from the application, then at once; from the second time on as `backoff`. */
  | "new_token"
  /** At once; from the second time on as `backoff`. */
  | "at_once"
  /** A random wait below a bound that doubles from `firstDelay` to `maxDelay`, on top of `retryAfter`. */
  | "backoff"
  /** As `backoff`, ten times as long. */
  | "long_backoff";

/** A close code and its meaning. */
export interface Close {
  /** The code of the close frame; 1006 if there was none, 0 if the application gave no token. */
  code: number;
  /** The word of the gateway's table, such as `token_revoked`, or the application's text; without `retry_after_ms`. */
  reason: string;
  /** `retry_after_ms` of the reason: the least wait in milliseconds, cut to an hour. */
  retryAfter: number | undefined;
  next: NextStep;
  /** A sentence in English, for logs and people. */
  meaning: string;
  /** True if the user has to log in again (4500, 4501, 4502, 4509, 4510, a {@link FinalError}). */
  login: boolean;
  /** The error of the token function, where there was one. */
  error?: unknown;
}

/** A close that another attempt follows. */
export interface Reconnecting extends Close {
  /** How many attempts have failed since a socket was last open for ten seconds. */
  attempt: number;
  /** The wait before the next attempt, in milliseconds. */
  delay: number;
}

export interface TokenRequest {
  /** False for the first token. True if an earlier one expired or may not be valid: do not answer from a cache. */
  renew: boolean;
  /** Aborted when the answer is no longer needed. */
  signal: AbortSignal;
}

/**
 * Gives an access token, or null for none (a cookie, an anonymous route).
 *
 * It is called before the first socket, and again when the token that it gave is near its end or doubtful. If it throws,
 * it is called again with backoff, also hours later. Only a {@link FinalError} ends the client.
 */
export type TokenFunction = (request: TokenRequest) => string | null | Promise<string | null>;

export interface Options {
  /** Gives the token. Default: no token is sent. */
  token?: TokenFunction;
  /** The place of the token: the query of the address, or the subprotocols `["bearer", token]`. Default: `"query"`. */
  tokenIn?: "query" | "subprotocol";
  /** `token.query_parameter` of the tenant. Default: `"token"`. */
  queryParameter?: string;
  /**
   * Puts a new token into the open socket before the old one expires. Default: false.
   *
   * Set it only where the tenant has `token.refresh = true`. Elsewhere the frame with the token is a frame like any
   * other, and a `broadcast` route would publish it to the group.
   */
  refresh?: boolean;
  /** Further subprotocols to offer. Default: none. */
  protocols?: string[];
  /** Where to resume: {@link LockgateClient.positions} of an earlier client. Default: from now on. */
  positions?: string[];
  /** How many frames of `send` may wait while no socket is open. 0: none. Default: 64. */
  queue?: number;
  /** The bound of the first wait, in milliseconds. Default: 2,000. */
  firstDelay?: number;
  /** The bound of the longest wait, in milliseconds. Default: 30,000. */
  maxDelay?: number;
  /** How long a token and a handshake may each take, in milliseconds. Default: 20,000. */
  timeout?: number;
  /**
   * Makes an event of a text frame. If it throws, the event is the text.
   * Default: `JSON.parse` of objects and arrays; any other text stays a text.
   */
  parse?: (text: string) => unknown;
  /** Chooses another step than the table of close codes, for codes of your own. Default: `close.next`. */
  decide?: (close: Close) => NextStep | undefined;
  /** The class of sockets. Default: the global one; Node before 22 has none, there pass the package `ws`. */
  WebSocket?: new (url: string, protocols?: string[]) => unknown;
}

export interface Events<Event> {
  /**
   * The socket is open. `reconnected` is true if an earlier one was open, or if `positions` were given. Missed events
   * follow.
   */
  open: (about: { reconnected: boolean }) => void;
  /**
   * An event of a group or a frame for this socket: a parsed object, a text, or an ArrayBuffer.
   * The position is that of a recorded event, and is no longer part of it.
   */
  event: (event: Event, about: { position: string | undefined }) => void;
  /** Events may be missing: of one group, or of any if it has no name. Load the state from the server. */
  gap: (about: { group?: string }) => void;
  /** The socket is gone, or did not come to be, and another attempt follows. */
  reconnecting: (about: Reconnecting) => void;
  /** The end: by a final close code, a {@link FinalError}, or {@link LockgateClient.close}. */
  closed: (about: Close) => void;
}

/** Thrown by a token function: there will be no token, because no user is logged in. Any error with `final: true` does. */
export class FinalError extends Error {
  readonly final: true;
}

/** Tells what a close code and its reason ask of a client. */
export function readClose(code: number, reason?: string): Close;

/** One connection to a route. It begins to connect at once; handlers that are set in the same task miss nothing. */
export class LockgateClient<Event = any> {
  /**
   * @param url A `ws:`, `wss:`, `http:` or `https:` address; relative to the page in browsers.
   * @throws TypeError for an option that is unknown or not valid, and where there is no WebSocket.
   */
  constructor(url: string | URL, options?: Options);
  /** `waiting`: until the next attempt. `closed`: for good. */
  readonly state: "connecting" | "open" | "waiting" | "closed";
  /** The last position of each group with a history. Keep them to resume after the page was loaded again. */
  readonly positions: string[];
  /** Sets a handler. Returns a function that removes it. An error of a handler is reported as uncaught. */
  on<Name extends keyof Events<Event>>(name: Name, handler: Events<Event>[Name]): () => void;
  /**
   * Sends a frame, or keeps it until a socket is open; the order is kept. Returns false if it was not taken: the queue is
   * full, or the client is closed. True is no receipt: what a socket has taken is lost if that socket is.
   */
  send(data: string | ArrayBuffer | ArrayBufferView | Blob): boolean;
  /** Ends the client for good. `closed` is told before this returns. */
  close(code?: number, reason?: string): void;
}
