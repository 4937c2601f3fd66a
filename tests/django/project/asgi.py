"""No sockets here: the gateway holds them. What is left of Channels is the layer, and workers."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402

http = get_asgi_application()

from .workers import ChatWorker  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": http,
        "channel": ChannelNameRouter({name: ChatWorker.as_asgi() for name in settings.WORKER_CHANNELS}),
    }
)
