// A Redis for one test.

import { spawnSync } from "node:child_process";

import { Program, eventually, freePorts } from "./gateway.js";

export class Redis {
  static async start(test) {
    const redis = new Redis();
    [redis.port] = await freePorts(1);
    const options = { port: redis.port, bind: "127.0.0.1", save: "", appendonly: "no" };
    const values = Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
    redis.program = new Program(test, "redis-server", values);
    await eventually("a Redis", () => {
      if (redis.program.isOver) throw new Error(`redis-server ended:\n${redis.program.output}`);
      return redis.call("ping") === "PONG";
    });
    return redis;
  }

  get url() {
    return `redis://127.0.0.1:${this.port}/0`;
  }

  /** Sends a command, and returns what redis-cli prints. */
  call(...values) {
    return spawnSync("redis-cli", ["-p", String(this.port), ...values], { encoding: "utf8" }).stdout.trim();
  }
}
