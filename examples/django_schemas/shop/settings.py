"""A project of django-tenants: every company has a schema, with users of its own, and a domain."""

import os

from django.db import connection

SECRET_KEY = "only for this example; no token is signed with it"
ALLOWED_HOSTS = [".example.com"]
ROOT_URLCONF = "shop.urls"
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

SHARED_APPS = ["django_tenants", "companies", "django.contrib.contenttypes"]
TENANT_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "rest_framework",
    "rest_framework_simplejwt",
    "channels",
    "lockgate",
]
INSTALLED_APPS = SHARED_APPS + [app for app in TENANT_APPS if app not in SHARED_APPS]
TENANT_MODEL = "companies.Company"
TENANT_DOMAIN_MODEL = "companies.Domain"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DATABASES = {
    "default": {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": os.environ["PGDATABASE"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ.get("PGPORT", ""),
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
    },
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["shop.tokens.SchemaAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}
SIMPLE_JWT = {
    "SIGNING_KEY": os.environ["SHOP_SIGNING_KEY"],
    "TOKEN_OBTAIN_SERIALIZER": "shop.tokens.SchemaTokenSerializer",
}

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


def tenant_of(schema):
    """Returns the tenant of a schema; the public one is none. Names of tenants have no underscores."""
    return None if schema == "public" else schema.replace("_", "-")


LOCKGATE = {"TENANT": lambda: tenant_of(connection.schema_name), "REDIS_URL": REDIS_URL}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "lockgate.layers.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [REDIS_URL],
            "prefix": "shop",
            # The group "acme_ltd.chat_lobby" is of the schema acme_ltd.
            "tenants": lambda group: tenant_of(group.partition(".")[0]),
        },
    },
}
if os.environ.get("LAYER") == "core":
    CHANNEL_LAYERS["default"] = {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "shop"},
    }
