// A real gateway for one test: its folder, its processes, its management API and tokens that it takes.

import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const REPOSITORY = fileURLToPath(new URL("../../../../", import.meta.url));
export const BINARY = process.env.LOCKGATE_BINARY ?? join(REPOSITORY, "target/debug/lockgate");
const SIGNING_KEY = "a-key-of-these-tests-with-32-bytes-or-more";
const API_KEY = "an-operator-of-these-tests-with-32-bytes";
/** How long a fact may take on a machine whose cores are busy. */
const PATIENCE = 60_000;

/** Waits until `look` gives something true, and returns it. `what` says what was not seen. */
export async function eventually(what, look) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    if (Date.now() > end) throw new Error(`not seen within ${PATIENCE / 1000} s: ${typeof what === "function" ? what() : what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** The sum of a metric's values at the gateway with this admin port. */
export async function measured(port, name) {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
  const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`));
  return lines.map((line) => Number(line.split(" ").at(-1))).reduce((sum, value) => sum + value, 0);
}

/** Returns loopback ports that are free now. */
export async function freePorts(count) {
  const servers = await Promise.all(
    Array.from({ length: count }, () => new Promise((done) => {
      const server = createServer().listen(0, "127.0.0.1", () => done(server));
    })),
  );
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => new Promise((done) => server.close(done))));
  return ports;
}

/**
 * A process that ends with the test; with `detached` its children too. Its output is kept, and read when something fails.
 */
export class Program {
  output = "";

  constructor(test, command, values, options = {}) {
    this.isGroup = options.detached === true;
    this.process = spawn(command, values, { stdio: ["ignore", "pipe", "pipe"], ...options });
    this.ended = new Promise((done) => {
      this.process.on("exit", (code, signal) => done({ code, signal }));
      this.process.on("error", (error) => done({ error }));
    });
    this.isOver = false;
    this.ended.then(() => (this.isOver = true));
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => (this.output += text));
    }
    test.after(() => this.kill());
  }

  async kill(signal = "SIGKILL") {
    if (this.isOver) return this.ended;
    if (this.isGroup) process.kill(-this.process.pid, signal);
    else this.process.kill(signal);
    return this.ended;
  }
}

/** Returns a token of the tests' key. */
export function sign(user, lifetime = 300, key = SIGNING_KEY, claims = {}) {
  // The real time, also for a test that plays with `Date`.
  const iat = Math.floor((performance.timeOrigin + performance.now()) / 1000);
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const jti = `${user}-${process.hrtime.bigint()}`;
  const body = { token_type: "access", user_id: user, jti, iat, exp: iat + lifetime, ...claims };
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(body)}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

/** The configuration of the tests. Users: 1 alice, 2 bob, 3 carol, who is not active. */
function configuration({ ports, folder, tenant = "", token = "", chat = "", more = "" }) {
  return `
[server]
listen = "127.0.0.1:${ports[0]}"
drain = { delay = "0s", window = "1s" }
[admin]
listen = "127.0.0.1:${ports[1]}"
[api]
listen = "127.0.0.1:${ports[2]}"
api_keys = ["${API_KEY}"]
[tenants.acme]
origins = ["*"]
${tenant}
[tenants.acme.token]
algorithm = "HS256"
signing_key = "${SIGNING_KEY}"
${token}
[tenants.acme.users]
database = "sqlite://${folder}/users.sqlite3?mode=ro"
[[tenants.acme.routes]]
path = "ws/echo/"
consumer = { kind = "echo" }
[[tenants.acme.routes]]
path = "ws/chat/<slug:room>/"
groups = ["chat_{room}"]
consumer = { kind = "broadcast", type = "chat.message", fields = ["message"], stamp = ["username"] }
${chat}
${more}`;
}

const USERS = `
import sqlite3, sys
users = sqlite3.connect(sys.argv[1])
users.executescript(open(sys.argv[2]).read())
users.execute("INSERT INTO auth_user VALUES (3, '!', NULL, 0, 'carol', '', '', 0, 0, '2026-01-01 00:00:00', '')")
users.commit()
`;

export class Gateway {
  /** Starts a gateway: `tenant`, `token`, `chat` (its route) and `more` are added to the configuration. */
  static async start(test, settings = {}) {
    if (!existsSync(BINARY)) {
      throw new Error(`no gateway at ${BINARY}: run cargo build, or name another in LOCKGATE_BINARY`);
    }
    const gateway = new Gateway();
    gateway.test = test;
    gateway.folder = mkdtempSync(join(tmpdir(), "lockgate-js-"));
    test.after(() => rmSync(gateway.folder, { recursive: true, force: true }));
    const users = join(REPOSITORY, "deploy/dev/users.sql");
    execFileSync("python3", ["-c", USERS, join(gateway.folder, "users.sqlite3"), users]);
    gateway.ports = await freePorts(3);
    gateway.settings = settings;
    await gateway.run();
    return gateway;
  }

  get url() {
    return `ws://127.0.0.1:${this.ports[0]}/`;
  }

  /** Starts the process, also again after its end, and waits until it is ready. */
  async run() {
    const config = join(this.folder, "lockgate.toml");
    writeFileSync(config, configuration({ ...this.settings, ports: this.ports, folder: this.folder }));
    this.program = new Program(this.test, BINARY, ["serve", "--config", config]);
    await eventually("a ready gateway", async () => {
      if (this.program.isOver) throw new Error(`the gateway ended:\n${this.program.output}`);
      const answer = await fetch(`http://127.0.0.1:${this.ports[1]}/readyz`).catch(() => undefined);
      return answer?.status === 200;
    });
  }

  /** Calls the management API. */
  async api(method, path, body) {
    const answer = await fetch(`http://127.0.0.1:${this.ports[2]}/v1/${path}`, {
      method,
      headers: { authorization: `Bearer ${API_KEY}`, "content-type": "application/json" },
      body: body && JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text && JSON.parse(text);
  }

  /** Sends an event to a group. */
  send(group, event) {
    return this.api("POST", `tenants/acme/groups/${group}/send`, event);
  }
}
