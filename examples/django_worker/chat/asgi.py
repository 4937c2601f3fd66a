"""The channels that `manage.py runworker` can serve. The sockets are Lockgate's."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")
django.setup()

from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402

from .workers import ChatWorker  # noqa: E402

application = ProtocolTypeRouter({"channel": ChannelNameRouter({"acme.chat": ChatWorker.as_asgi()})})
