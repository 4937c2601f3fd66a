// How TypeScript sees the package. It is compiled and never run; each expected error has to be one.

import { FinalError, LockgateClient, readClose, type Close, type NextStep, type Options, type TokenFunction } from "@lockgate/client";

interface Message {
  message: string;
  username: string;
}

const token: TokenFunction = async ({ renew, signal }) => {
  const answer = await fetch(renew ? "/token/?new" : "/token/", { signal });
  if (answer.status === 401) throw new FinalError("logged out", { cause: answer });
  const { access }: { access: string } = await answer.json();
  return access;
};

const options: Options = { token, tokenIn: "subprotocol", refresh: true, queue: 10, WebSocket };
const client = new LockgateClient<Message>(new URL("wss://acme.test/ws/"), options);
const off: () => void = client.on("event", ({ message, username }, { position }) => {
  const kept: string | undefined = position;
  console.log(message.length, username, kept);
});
client.on("open", ({ reconnected }) => reconnected === true);
client.on("gap", ({ group }) => group?.length);
client.on("reconnecting", ({ delay, attempt, code, error }) => [delay + attempt + code, error]);
client.on("closed", ({ login, meaning, next }: Close) => {
  const step: NextStep = next;
  return [login, meaning, step];
});
const taken: boolean = client.send(new Uint8Array([1]));
const kept: string[] = client.positions;
new LockgateClient("/ws/", { positions: kept, decide: ({ code }) => (code === 4403 ? "stop" : undefined) });
// The class of the package ws has other types than that of the DOM.
class Other {
  constructor(
    readonly url: string | URL,
    readonly protocols?: string | string[],
    readonly more?: { headers: object },
  ) {}
}
new LockgateClient("wss://acme.test/ws/", { WebSocket: Other, token: () => null, parse: (text) => text });
const wait: number | undefined = readClose(1012, "draining retry_after_ms=5").retryAfter;
client.close();
client.close(4000, "bye");
off();

// @ts-expect-error There is no such event.
client.on("message", () => {});
// @ts-expect-error There is no such option.
new LockgateClient("/ws/", { tokens: token });
// @ts-expect-error A token is a text.
new LockgateClient("/ws/", { token: async () => 7 });
// @ts-expect-error The state is read only.
client.state = "open";
// @ts-expect-error An object is no frame.
client.send({ message: "hello" });

export { taken, wait };
