/** One user of the demo: a socket that comes back by the rules, and a log of what it sends and receives. */

import { LockgateClient } from "./lockgate.js";

/** The lines that a log keeps. */
const LINES = 200;

const MARKUP = `
  <header>
    <h2></h2><span class="where"></span><span class="state" role="status"></span><button type="button" class="toggle"></button>
  </header>
  <p class="notice" hidden></p>
  <ol class="log" role="log" tabindex="0"></ol>
  <form><input autocomplete="off"><button class="press">Send</button></form>`;

const seconds = (milliseconds) => (milliseconds / 1000).toFixed(1);

export class Pane {
  #client;
  #countdown;
  #closings = new Set();

  constructor(parent, { user, where, url, login }) {
    Object.assign(this, { user, url, login, token: null });
    const section = document.createElement("section");
    section.className = "pane";
    section.id = user;
    section.innerHTML = MARKUP;
    const part = (selector) => section.querySelector(selector);
    this.parts = { state: part(".state"), notice: part(".notice"), log: part(".log"), toggle: part(".toggle") };
    this.parts.input = part("input");
    this.parts.send = part("form button");
    part("h2").textContent = user;
    part("h2").id = `${user}-title`;
    section.setAttribute("aria-labelledby", `${user}-title`);
    part(".where").textContent = where;
    this.parts.log.setAttribute("aria-label", `Frames of ${user}`);
    this.parts.input.setAttribute("aria-label", `Message of ${user}`);
    this.parts.send.setAttribute("aria-label", `Send as ${user}`);
    this.parts.input.placeholder = `Say something as ${user}`;
    part("form").onsubmit = (submit) => this.#submit(submit);
    this.parts.toggle.onclick = () => this.#toggle();
    parent.append(section);
    this.connect();
  }

  /** Opens a new socket, which resumes where the old one ended; the old one is given up. */
  connect() {
    const positions = this.#client?.positions ?? [];
    this.#client?.close(1000, "again");
    this.#show("connecting", "Close");
    const token = async ({ signal }) => (this.token = await this.login(this.user, signal));
    const client = (this.#client = new LockgateClient(this.url, { token, refresh: true, positions }));
    const mine = (handler) => (value) => this.#client === client && handler(value);
    client.on("open", mine(() => this.#opened()));
    client.on("event", mine((event) => this.#note("received", `← ${typeof event === "string" ? event : JSON.stringify(event)}`)));
    client.on("gap", mine(() => this.#note("life", "a gap: the history does not have all that was missed")));
    client.on("reconnecting", mine((close) => this.#waits(close)));
    client.on("closed", mine((close) => this.#ended(close)));
  }

  /** Resolves with the code of the next close. */
  closing() {
    return new Promise((resolve) => this.#closings.add(resolve));
  }

  #opened() {
    this.#show("open", "Close");
    this.#note("life", "open");
  }

  #waits({ code, reason, meaning, delay, retryAfter }) {
    this.#closed(code);
    this.#show("waiting", "Connect now");
    const told = reason ? `${code} ${reason}` : `${code}`;
    this.#note("life", `${told}. ${meaning} Next attempt in ${seconds(delay)} s.`);
    const why = retryAfter
      ? `The gateway asked for ${retryAfter} ms (retry_after_ms), and the client adds a random part, so that not all come back at once.`
      : code === 1006
        ? "A browser is not told why a handshake is refused: the terminal of lockgate dev says it."
        : "";
    this.#count(Date.now() + delay, `${told}. ${meaning} ${why}`);
  }

  #ended({ code, reason, meaning, login }) {
    this.#closed(code);
    this.#show("closed", login ? "Sign in again" : "Connect");
    const told = `${code} ${reason || "without a reason"}`;
    this.#note("life", `closed: ${told}. ${meaning}`);
    const next = login ? "A new token is needed." : code === 1000 ? "" : "By the rules a client does not come back after this code.";
    this.#notice("closed", `Closed: ${told}. ${meaning} ${next}`);
  }

  #closed(code) {
    for (const resolve of this.#closings) resolve(code);
    this.#closings.clear();
  }

  #toggle() {
    if (this.#client.state === "closed" || this.#client.state === "waiting") this.connect();
    else this.#client.close(1000, "bye");
  }

  #submit(submit) {
    submit.preventDefault();
    const { input } = this.parts;
    const frame = JSON.stringify({ message: input.value });
    if (!input.value || !this.#client.send(frame)) return;
    this.#note("sent", `→ ${frame}`);
    input.value = "";
  }

  #show(state, action) {
    clearInterval(this.#countdown);
    this.parts.notice.hidden = true;
    this.parts.state.textContent = state;
    this.parts.state.className = `state ${state}`;
    this.parts.toggle.textContent = action;
    this.parts.toggle.setAttribute("aria-label", `${action}: ${this.user}`);
    this.parts.send.disabled = state === "closed";
  }

  #notice(kind, text) {
    const { notice } = this.parts;
    notice.className = `notice ${kind}`;
    notice.textContent = text;
    notice.hidden = false;
    this.#scroll();
  }

  /** Counts the seconds down. The log has told the wait already, so that a screen reader is spared the seconds. */
  #count(until, text) {
    this.#notice("waiting", `${text} `);
    const left = document.createElement("b");
    left.setAttribute("aria-hidden", "true");
    this.parts.notice.append(left);
    const tell = () => {
      left.textContent = `Comes back in ${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s.`;
    };
    tell();
    this.#countdown = setInterval(tell, 250);
  }

  #note(kind, text) {
    const { log } = this.parts;
    const line = document.createElement("li");
    line.className = kind;
    line.textContent = text;
    log.append(line);
    if (log.childElementCount > LINES) log.firstElementChild.remove();
    this.#scroll();
  }

  #scroll() {
    this.parts.log.scrollTop = this.parts.log.scrollHeight;
  }
}
