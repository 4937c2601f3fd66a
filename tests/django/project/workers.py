"""The consumer of a chat as a worker: `manage.py runworker chat`.

One instance serves all sockets of its channel, message by message, so that nothing of a socket may be kept in `self`; each
message says where the answer goes.
"""

import json

from channels.consumer import AsyncConsumer

# A worker that has lost its mind. None of these may harm the gateway, nor the socket that it is sent to.
NONSENSE = [
    {},
    {"type": ""},
    {"type": 7},
    {"type": None},
    {"type": "no.such.type"},
    {"type": "websocket.send"},
    {"type": "websocket.send", "text": 7},
    {"type": "websocket.send", "bytes": ["x"]},
    {"type": "websocket.accept", "subprotocol": {}, "headers": 7},
    {"type": "lockgate.group_add"},
    {"type": "lockgate.group_add", "group": 7},
    {"type": "lockgate.group_add", "group": "no name!"},
    {"type": "lockgate.group_discard", "group": None},
    {"type": "lockgate.no_such_order", "group": "x"},
]

# The members of `websocket.accept` by room: one answer that is right, and those that no handshake can carry.
ANSWERS = {
    "chosen": lambda message: {
        "subprotocol": message["subprotocols"][-1],
        "headers": [[b"x-worker", b"1"], [b"set-cookie", b"a=1"]],
    },
    "unoffered": lambda message: {"subprotocol": "none"},
    "reserved": lambda message: {"headers": [[b"sec-websocket-protocol", b"v1"]]},
    "split": lambda message: {"headers": [[b"x-a", b"1\r\nx-b: 2"]]},
}


class ChatWorker(AsyncConsumer):
    async def websocket_connect(self, message):
        room = room_of(message)
        if room == "silent":
            return
        if room == "closed":
            await self.reply(message, "websocket.close", code=4403, reason="closed")
            return
        await self.reply(message, "websocket.accept", **ANSWERS.get(room, lambda message: {})(message))
        await self.reply(message, "lockgate.group_add", group=f"chat_{room}")

    async def websocket_receive(self, message):
        if message.get("text") is None:
            await self.reply(message, "websocket.send", bytes=message["bytes"])
            return
        command = json.loads(message["text"])
        await getattr(self, f"do_{command['do']}")(message, command)

    async def websocket_disconnect(self, message):
        """Sends to the group `left_ROOM`, so that a test sees it."""
        event = {"type": "chat.left", "code": message.get("code"), "channel": message["reply_channel"], "user": message.get("user")}
        await self.channel_layer.group_send(f"left_{room_of(message)}", event)

    async def do_echo(self, message, command):
        await self.reply(message, "websocket.send", text=message["text"])

    async def do_group(self, message, command):
        """Sends to the whole room, with the speaker's name."""
        event = {**command, "type": "chat.message", "user": message.get("user"), "tenant": message.get("tenant")}
        await self.channel_layer.group_send(f"chat_{room_of(message)}", event)

    async def do_scope(self, message, command):
        """All that the worker was told, as JSON."""
        await self.reply(message, "websocket.send", text=json.dumps(message))

    async def do_close(self, message, command):
        await self.reply(message, "websocket.close", code=command["code"])

    async def do_add(self, message, command):
        await self.reply(message, "lockgate.group_add", group=command["group"])

    async def do_discard(self, message, command):
        await self.reply(message, "lockgate.group_discard", group=command["group"])

    async def do_twice(self, message, command):
        """Answers twice, and accepts once more in between, which is once too often."""
        await self.reply(message, "websocket.send", text="1")
        await self.reply(message, "websocket.accept")
        await self.reply(message, "websocket.send", text="2")

    async def do_nonsense(self, message, command):
        """Ends with a proper answer, so that a test sees that all before it has passed."""
        for nonsense in NONSENSE:
            await self.channel_layer.send(message["reply_channel"], nonsense)
        await self.reply(message, "websocket.send", text="after nonsense")

    async def do_reply(self, message, command):
        """Whatever the client wants to see answered."""
        await self.channel_layer.send(message["reply_channel"], command["message"])

    async def do_crash(self, message, command):
        raise RuntimeError("a client asked for it")

    async def reply(self, message, kind, **members):
        await self.channel_layer.send(message["reply_channel"], {"type": kind, **members})


def room_of(message):
    return message.get("kwargs", {}).get("room", "lobby")
