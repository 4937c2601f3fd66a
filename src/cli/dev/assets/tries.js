/** What to try next: each step says what it shows, and does it by the call that an application would make. */

const TENANT = "/v1/tenants/demo";
const LOBBY = "chat_lobby";
/** A crowd of so many sockets, sent so many events in a second, for so long. */
const CROWD = { sockets: 20, calls: 10, events: 5, seconds: 15 };

/** Returns a text as one word of a shell. */
const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

const event = (message) => ({ type: "chat.message", message });

export function tries(list, demo) {
  for (const step of [terminal, revoke, suspend, django, crowd]) {
    const item = document.createElement("li");
    step(new Step(item), demo);
    list.append(item);
  }
}

/** One step: a title, a text, commands to copy, buttons, and the result of the last one. */
class Step {
  constructor(item) {
    this.item = item;
    this.output = document.createElement("output");
  }

  title(text, note) {
    this.#add("h3").textContent = text;
    this.#add("p").textContent = note;
  }

  /** Adds a text to copy, which `folded` puts under a summary. */
  command(name, text, folded) {
    const row = document.createElement("div");
    row.className = "command";
    if (folded) {
      const details = this.#add("details");
      details.append(document.createElement("summary"), row);
      details.firstChild.textContent = folded;
    } else {
      this.item.append(row);
    }
    const shown = document.createElement("pre");
    shown.textContent = text;
    const copy = document.createElement("button");
    copy.type = "button";
    copy.textContent = "Copy";
    copy.setAttribute("aria-label", `Copy ${name}`);
    copy.onclick = () => this.#copy(text, shown);
    row.append(shown, copy);
  }

  /** Adds a row of buttons, the first one being the one to press. Each call resolves with the text to show. */
  buttons(...entries) {
    const row = this.#add("div");
    row.className = "row";
    const buttons = entries.map(([name, press], index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      if (index === 0) button.className = "press";
      button.onclick = () => this.#run(press);
      row.append(button);
      return button;
    });
    this.item.append(this.output);
    return buttons;
  }

  show(text, failed = false) {
    this.output.className = failed ? "failed" : "";
    this.output.textContent = text;
  }

  async #run(press) {
    try {
      this.show(await press());
    } catch (error) {
      const away = error instanceof TypeError;
      this.show(away ? "No answer. Does lockgate dev still run? If it was started again, reload the page." : error.message, true);
    }
  }

  async #copy(text, shown) {
    try {
      await navigator.clipboard.writeText(text);
      this.show("Copied.");
    } catch {
      // Not permitted: the text is selected instead.
      getSelection().selectAllChildren(shown);
      this.show("Press Ctrl-C or ⌘C to copy the selected text.");
    }
  }

  #add(name) {
    const element = document.createElement(name);
    this.item.append(element);
    return element;
  }
}

/** Makes a call that has to succeed. */
async function must(demo, method, path, body) {
  const answer = await demo.call(method, path, body);
  const told = `${method} ${path}\n${answer.status} ${answer.text.trim()}`;
  if (answer.ok) return told;
  throw new Error(answer.status === 401 ? `${told}\nThis page is of an earlier demo: reload it.` : told);
}

function terminal(step, demo) {
  const { facts } = demo;
  const path = `${TENANT}/groups/${LOBBY}/send`;
  const body = JSON.stringify(event("from a terminal"));
  step.title("Send from a terminal", "Any back end sends so: one call, and every socket of the group has the event, on every replica.");
  step.command(
    "the lockgate command",
    `lockgate send -c ${word(facts.config_file)} \\\n  --tenant demo --group ${LOBBY} \\\n'${body}'`,
  );
  step.command(
    "the curl command",
    `curl -H "Authorization: Bearer $(cat ${word(facts.api_key_file)})" \\\n  -H "Content-Type: application/json" \\\n  -d '${body}' \\\n  ${facts.api}${path}`,
    "The same with curl",
  );
  step.buttons(["Send it", () => must(demo, "POST", path, event("from a button"))]);
}

function django(step, demo) {
  step.title(
    "Send as Django would",
    "A Django project keeps its group_send, which goes through Redis. This demo has no Redis, so the button gives the same event to the API.",
  );
  step.command(
    "the Python code",
    `layer = get_channel_layer()\nasync_to_sync(layer.group_send)(\n    "${LOBBY}",\n    {"type": "chat.message",\n     "message": "from Django"})`,
  );
  const path = `${TENANT}/groups/${LOBBY}/send`;
  step.buttons(["Send the event", () => must(demo, "POST", path, event("from Django"))]);
}

function revoke(step, demo) {
  const [alice] = demo.panes;
  step.title(
    "Revoke alice's token",
    "Her socket closes on whichever replica it is, and the token opens no other. The client knows by the code that it needs a new one.",
  );
  step.buttons([
    "Revoke it",
    async () => {
      if (!alice.token) throw new Error("Alice has no token yet.");
      const began = performance.now();
      const closing = alice.closing();
      const told = await must(demo, "POST", `${TENANT}/revocations`, { token: alice.token });
      if (JSON.parse(told.slice(told.indexOf("{"))).closed === 0) return `${told}\nNo socket of the token was open.`;
      const code = await closing;
      return `${told}\nAlice's socket closed with ${code}, ${Math.round(performance.now() - began)} ms after the click.`;
    },
  ]);
}

function suspend(step, demo) {
  step.title(
    "Suspend the tenant",
    "A customer who has to stop: all sockets close with 4016, and handshakes get 403. The clients wait as told, and come back after Resume.",
  );
  step.buttons(
    ["Suspend", () => must(demo, "POST", `${TENANT}/suspend`)],
    ["Resume", () => must(demo, "POST", `${TENANT}/resume`)],
  );
}

function crowd(step, demo) {
  const { sockets: many, calls, events, seconds } = CROWD;
  step.title(
    "Let the metrics move",
    `${many} more sockets join another room for ${seconds} seconds. Each of them gets ${calls * events} events a second.`,
  );
  let running = null;
  const [button] = step.buttons([
    "Call a crowd",
    async () => {
      if (running) {
        running.stop();
        return "The crowd leaves.";
      }
      running = await gather(demo);
      button.textContent = "Send the crowd home";
      running.over.then((received) => {
        running = null;
        button.textContent = "Call a crowd";
        step.show(`The crowd is gone. It received ${received} events.`);
      });
      return `${many} sockets are open.`;
    },
  ]);
}

/** Opens the sockets of a crowd, and sends to their group until its time is over. */
async function gather(demo) {
  const token = await demo.login("bob");
  const { replicas } = demo.facts;
  let received = 0;
  const sockets = await Promise.all(
    Array.from({ length: CROWD.sockets }, (_, index) => {
      const url = demo.address(replicas[index % replicas.length], "ws/chat/crowd/");
      return opened(`${url}?token=${token}`, () => received++);
    }),
  );
  let stop;
  const stopped = new Promise((resolve) => (stop = resolve));
  const messages = Array.from({ length: CROWD.events }, () => ({ group: "chat_crowd", event: event("to the crowd") }));
  const sending = setInterval(() => demo.call("POST", `${TENANT}/send`, { messages }).catch(stop), 1000 / CROWD.calls);
  const timer = setTimeout(stop, CROWD.seconds * 1000);
  const over = stopped.then(() => {
    clearInterval(sending);
    clearTimeout(timer);
    for (const socket of sockets) socket.close(1000);
    return received;
  });
  return { stop, over };
}

function opened(url, onmessage) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    // The gateway's own frame tells the position of a socket that opens.
    socket.onmessage = ({ data }) => JSON.parse(data).type === "lockgate.position" || onmessage();
    socket.onopen = () => resolve(socket);
    socket.onclose = () => reject(new Error("The crowd is refused. Is the tenant suspended?"));
  });
}
