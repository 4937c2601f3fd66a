"""A consumer of Channels as a worker: one instance for all sockets of its channel, one message after another.

Nothing of a socket may be kept in `self`. Each message says whose it is (`user`, `kwargs`, `path`) and where an answer goes
(`reply_channel`).
"""

import json
import logging

from channels.consumer import AsyncConsumer
from django.contrib.auth.models import User

log = logging.getLogger(__name__)


class ChatWorker(AsyncConsumer):
    async def websocket_connect(self, message):
        """Decides about the handshake: the room `staff` is for staff."""
        if room_of(message) == "staff" and not message["user"]["is_staff"]:
            await self.reply(message, "websocket.close", code=4403, reason="for staff")
            return
        # Added before the accept, the socket is in the room before its client sees it open.
        await self.reply(message, "lockgate.group_add", group=group_of(message))
        await self.reply(message, "websocket.accept")

    async def websocket_receive(self, message):
        # An exception would end this instance, and lose the messages that wait for it.
        try:
            frame = json.loads(message.get("text") or "")
            if "say" in frame:
                await self.say(message, str(frame["say"]))
            elif "count" in frame:
                await self.answer(message, {"users": await User.objects.acount()})
            else:
                await self.answer(message, {"error": "say, or count"})
        except (ValueError, TypeError):
            await self.answer(message, {"error": "no JSON object"})
        except Exception:
            log.exception("a frame was lost")
            await self.answer(message, {"error": "try again"})

    async def websocket_disconnect(self, message):
        event = {"type": "chat.left", "left": message["user"]["username"]}
        await self.channel_layer.group_send(group_of(message), event)

    async def say(self, message, words):
        event = {"type": "chat.message", "by": message["user"]["username"], "said": words}
        await self.channel_layer.group_send(group_of(message), event)

    async def answer(self, message, content):
        await self.reply(message, "websocket.send", text=json.dumps(content))

    async def reply(self, message, kind, **members):
        await self.channel_layer.send(message["reply_channel"], {"type": kind, **members})


def room_of(message):
    return message["kwargs"]["room"]


def group_of(message):
    return f"chat_{room_of(message)}"
