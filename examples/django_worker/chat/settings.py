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
# In deploy/compose/cluster.yaml the users are those of its PostgreSQL.
if "POSTGRES_HOST" in os.environ:
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "lockgate",
        "USER": "lockgate",
        "HOST": os.environ["POSTGRES_HOST"],
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# `runworker` reads it, and nothing else does.
ASGI_APPLICATION = "chat.asgi.application"
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
ON_A_CLUSTER = REDIS_URL.startswith(("redis+cluster://", "rediss+cluster://"))
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        # `prefix` as in lockgate.toml.
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "acme"},
    },
}
if ON_A_CLUSTER:
    # In deploy/django, which then stands on the path of Python. `tenant` as in lockgate.toml.
    CHANNEL_LAYERS["default"]["BACKEND"] = "lockgate.layers.RedisClusterChannelLayer"
    CHANNEL_LAYERS["default"]["CONFIG"]["tenant"] = "acme"
