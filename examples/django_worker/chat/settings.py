"""What a worker needs of Django: users, a layer, and the application that names it."""

import os
from pathlib import Path

SECRET_KEY = "only for this example; no token is signed with it"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "channels"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).resolve().parent.parent / "db.sqlite3",
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# `runworker` reads it, and nothing else does.
ASGI_APPLICATION = "chat.asgi.application"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        # `prefix` as in lockgate.toml.
        "CONFIG": {"hosts": [os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")], "prefix": "acme"},
    },
}
