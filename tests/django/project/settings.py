"""Settings of the test back end; whatever differs from test to test comes from the environment.

LOCKGATE_TEST_DATABASE_URL   postgres://, mysql:// or sqlite:// (a path)
LOCKGATE_TEST_REDIS_URL      where the channel layer lives; several URLs with commas between
LOCKGATE_TEST_LAYER_PREFIX   its prefix
LOCKGATE_TEST_LAYER          "pubsub" (default), "recording" and "sharded" (the classes of deploy/django) or "core"
LOCKGATE_TEST_LAYER_CONFIG   more of its CONFIG, as JSON
LOCKGATE_TEST_SIGNING_KEY    what simplejwt signs with
LOCKGATE_TEST_USER_MODEL     auth.User (default) or accounts.UuidUser
LOCKGATE_TEST_REVOKE_TOKEN   "1": tokens carry the password's digest (CHECK_REVOKE_TOKEN)
LOCKGATE_TEST_TENANT         the tenant whose tokens this back end takes back ("acme")
LOCKGATE_TEST_SIGNALS        "1": a changed password takes back the user's tokens
LOCKGATE_TEST_USER_MODELS    "1": the models of models_of_users, and the commands of deploy/django
LOCKGATE_TEST_WORKERS        the channels that `manage.py runworker` may be given, with commas between ("chat,chat.0,chat.1")
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pymysql

# Django asks for mysqlclient, which has to be compiled; PyMySQL speaks the same protocol in Python.
pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()

ENGINES = {"postgres": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}


def database(url):
    parts = urlsplit(url)
    engine = f"django.db.backends.{ENGINES[parts.scheme]}"
    if parts.scheme == "sqlite":
        return {"ENGINE": engine, "NAME": unquote(parts.netloc + parts.path)}
    return {
        "ENGINE": engine,
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": parts.port,
    }


SIGNING_KEY = os.environ.get("LOCKGATE_TEST_SIGNING_KEY", "a signing key for tests, which protects nothing")
SECRET_KEY = "a secret key for tests, which protects nothing either"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = os.environ.get("LOCKGATE_TEST_USER_MODEL", "auth.User")
# Hashing a password properly takes a quarter of a second, and the tests are not about that.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "rest_framework_simplejwt",
    "channels",
]
# Installed only where it is wanted: its model and auth.User cannot both be the project's user.
if AUTH_USER_MODEL.startswith("accounts."):
    INSTALLED_APPS.append("accounts")

DATABASES = {"default": database(os.environ["LOCKGATE_TEST_DATABASE_URL"])}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"],
}
SIMPLE_JWT = {
    "SIGNING_KEY": SIGNING_KEY,
    "CHECK_REVOKE_TOKEN": os.environ.get("LOCKGATE_TEST_REVOKE_TOKEN") == "1",
}
BACKENDS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "recording": "lockgate.layers.RedisPubSubChannelLayer",
    "sharded": "lockgate.layers.RedisClusterChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}


LAYER = os.environ.get("LOCKGATE_TEST_LAYER", "pubsub")
LOCKGATE_TENANT = os.environ.get("LOCKGATE_TEST_TENANT", "acme")
WITH_USER_MODELS = os.environ.get("LOCKGATE_TEST_USER_MODELS") == "1"
if LAYER in ("recording", "sharded") or WITH_USER_MODELS:
    # A project copies this folder beside its manage.py.
    sys.path.append(str(Path(__file__).resolve().parents[3] / "deploy/django"))
    LOCKGATE = {"TENANT": LOCKGATE_TENANT}
if WITH_USER_MODELS:
    INSTALLED_APPS += ["lockgate", "models_of_users"]
REDIS_URLS = os.environ.get("LOCKGATE_TEST_REDIS_URL", "redis://127.0.0.1:6379").split(",")


def host(url):
    if LAYER == "sharded" or version("channels_redis") < "4":
        return url
    # redis-py 8 gives up on a socket after five seconds, which is how long the core layer waits for a message.
    return {"address": url, "socket_timeout": None}


CHANNEL_LAYERS = {
    "default": {
        "BACKEND": BACKENDS[LAYER],
        "CONFIG": {
            "hosts": [host(url) for url in REDIS_URLS],
            "prefix": os.environ.get("LOCKGATE_TEST_LAYER_PREFIX", "asgi"),
            **json.loads(os.environ.get("LOCKGATE_TEST_LAYER_CONFIG", "{}")),
        },
    },
}
# Where revocations are written, and whose.
LOCKGATE_REDIS_URL = REDIS_URLS[0]
WORKER_CHANNELS = os.environ.get("LOCKGATE_TEST_WORKERS", "chat,chat.0,chat.1").split(",")
if os.environ.get("LOCKGATE_TEST_SIGNALS") == "1":
    INSTALLED_APPS.append("project.apps.ProjectConfig")
