// A load balancer of one line: each new connection goes to the first replica that takes it. It can cut what it carries.

import { connect, createServer } from "node:net";

export class Balancer {
  #carried = new Set();

  static async start(test, ports) {
    const balancer = new Balancer();
    balancer.ports = [...ports];
    const server = createServer((client) => balancer.#carry(client, [...balancer.ports]));
    await new Promise((done) => server.listen(0, "127.0.0.1", done));
    balancer.url = `ws://127.0.0.1:${server.address().port}/`;
    test.after(() => {
      server.close();
      balancer.cut();
    });
    return balancer;
  }

  #carry(client, ports) {
    client.on("error", () => client.destroy());
    if (!ports.length) return client.destroy();
    const replica = connect(ports[0], "127.0.0.1");
    replica.once("connect", () => {
      this.#carried.add(client);
      client.on("close", () => {
        this.#carried.delete(client);
        replica.destroy();
      });
      replica.on("close", () => client.destroy());
      client.pipe(replica).pipe(client);
    });
    replica.on("error", () => (replica.connecting || !this.#carried.has(client) ? this.#carry(client, ports.slice(1)) : client.destroy()));
  }

  /** Cuts every connection, without a close frame. */
  cut() {
    for (const client of this.#carried) client.destroy();
  }

  /** The other replica is the first choice from now on. */
  turn() {
    this.ports.reverse();
  }
}
