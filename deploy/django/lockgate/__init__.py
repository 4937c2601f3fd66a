"""The Lockgate app for Django: revokes tokens and reports changed users to Lockgate, through Redis alone.

Copy this folder beside manage.py, add "lockgate" to INSTALLED_APPS, and name the tenant:

    LOCKGATE = {"TENANT": "acme", "REDIS_URL": "redis://127.0.0.1:6379/0"}

Then `revoke_token(request.auth)` in a logout view closes the sockets of that token. When the transaction is committed, a
changed password revokes the user's tokens, and Lockgate reads every saved or deleted user again. DEFAULTS has all settings.

The calls block while Redis answers; in an async view use `sync_to_async`. The app needs Django 4.2, redis-py 5 (6 on a
cluster) and djangorestframework-simplejwt 5.3, or later versions.
"""

import functools
import json
import logging
import math
import re
import secrets
import time
from datetime import datetime, timedelta

import redis
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import clusters

logger = logging.getLogger("lockgate")

# A duration is a number of seconds or a timedelta.
DEFAULTS = {
    # The name in [tenants.NAME]; or a function that returns it, where each schema of the project is a tenant:
    # lambda: connection.schema_name. It returns None for a schema that is none.
    "TENANT": None,
    # A function of a user that returns the names of all tenants that have it, where several share one table of users. A saved or
    # deleted user then concerns each of them, whichever schema is set. None: the tenant of "TENANT".
    "USER_TENANTS": None,
    # The tenant's Redis ([tenants.NAME.redis], else [redis]): a URL, redis+cluster://host:port,host:port for a cluster, or a dict
    # with "sentinels" as in CHANNEL_LAYERS.
    "REDIS_URL": None,
    # [denylist] redis; None: the denylist is in REDIS_URL.
    "DENYLIST_URL": None,
    # denylist.replicas: the number of Redis replicas that must acknowledge a revocation.
    "DENYLIST_REPLICAS": 0,
    # denylist.keep: the lifetime of cut-offs.
    "KEEP": timedelta(days=30),
    # users.stale_ttl
    "STALE_TTL": 3600,
    # token.leeway; None: the LEEWAY of SIMPLE_JWT.
    "LEEWAY": None,
    # token.on_expiry: with "keep" sockets outlive their tokens, so denied tokens are kept for KEEP.
    "ON_EXPIRY": "close",
    # True: the end of a session (`user_logged_out`) revokes all of the user's tokens, on every device.
    "REVOKE_ON_LOGOUT": False,
    # True: a changed password revokes the tokens issued until then.
    "REVOKE_ON_PASSWORD_CHANGE": True,
    # True: Lockgate reads a saved or deleted user again.
    "INVALIDATE_ON_SAVE": True,
    # The longest time for a Redis command and for connecting.
    "TIMEOUT": 1,
}
# The time that a denied token is kept after its expiry, in seconds, because clocks differ.
MARGIN = 60
# The most bytes of a cut-off. The gateway reads no more of a value.
CUT_OFF_BYTES = 64


class NotRevoked(Exception):
    """Redis did not confirm a revocation, so it may not have happened. Tell the caller."""


def revoke_token(token, *, tenant=None):
    """Denies one access token and closes its sockets. `token` is the encoded text or simplejwt's object (`request.auth`).

    `tenant` here and below: the name in [tenants.NAME]; None: that of LOCKGATE["TENANT"].

    An encoded token must have a valid signature; otherwise simplejwt's TokenError is raised. From simplejwt 5.4 on it may
    be expired. ValueError is raised for a refresh token, which cannot open a socket (blacklist it), and for a token
    without an id (use `revoke_user`).
    """
    token, conf = _read(token), config()
    jti, exp, now = _jti(token), token.get("exp"), time.time()
    if exp is None or conf["ON_EXPIRY"] == "keep":
        until = now + conf["KEEP"]
    else:
        until = max(exp + conf["LEEWAY"], now) + MARGIN
    _deny(tenant, f"jti:{jti}", _put, ("1", math.ceil(until)), {"jti": jti})


def revoke_user(user, issued_before=None, *, tenant=None):
    """Denies all tokens of a user that were issued at or before `issued_before`, and closes their sockets.

    `issued_before` is Unix seconds or an aware datetime, and its whole second is included; the default is now. An earlier
    cut-off than the stored one has no effect. Refresh tokens stay valid; blacklist them in Django.
    """
    now = time.time()
    if isinstance(issued_before, datetime):
        if issued_before.tzinfo is None:
            raise ValueError("issued_before has no time zone")
        issued_before = issued_before.timestamp()
    cut_off = int(now if issued_before is None else issued_before)
    if cut_off > now + 86400:
        raise ValueError("issued_before is more than a day ahead: it takes seconds, not milliseconds")
    user_id = user_text(user)
    until = math.ceil(now + config()["KEEP"])
    _deny(tenant, f"user:{user_id}", _raise, (cut_off, until), {"user_id": user_id, "issued_before": cut_off})


def invalidate(user, *, tenant=None):
    """Makes the gateway read a user again. The sockets of a user who is inactive or deleted are closed at once.

    If Redis does not answer, the error is logged and not raised, because the gateway reads its users again every
    `users.cache_ttl`.
    """
    conf, user_id = config(), user_text(user)
    try:
        key, value, life = _key(tenant, f"usergen:{user_id}"), secrets.token_hex(8), math.ceil(2 * conf["STALE_TTL"])
        _write("REDIS_URL", key, lambda ask: ask("SET", key, value, "EX", life))
        _announce(tenant, "invalidate", {"user_id": user_id})
    except (redis.RedisError, OSError) as error:
        logger.error("Could not tell Lockgate of a changed user: %s", error)


def group_add(user, group, *, tenant=None):
    """Puts all open sockets of a user into a group, on every replica. Returns the number of connections that heard of it.

    A socket that opens later is in the groups of its route alone. Raises redis.RedisError if Redis does not answer.
    """
    return _announce(tenant, "group_add", {"user_id": user_text(user), "group": group})


def group_discard(user, group, *, tenant=None):
    """Takes all open sockets of a user out of a group, as `group_add` puts them in."""
    return _announce(tenant, "group_discard", {"user_id": user_text(user), "group": group})


def user_text(user):
    """Returns the id that Lockgate uses for a user, from a model instance or an id."""
    if hasattr(user, "pk"):
        from rest_framework_simplejwt.settings import api_settings

        user = getattr(user, api_settings.USER_ID_FIELD)
    if user is None or user == "":
        raise ValueError("a user without an id")
    return str(user)


@functools.cache
def config():
    """Returns the checked settings, with durations in seconds. Raises ImproperlyConfigured with the mistake."""
    conf = getattr(settings, "LOCKGATE", None)
    if not isinstance(conf, dict):
        raise ImproperlyConfigured('LOCKGATE must be a dict such as {"TENANT": "acme", "REDIS_URL": "redis://…"}.')
    if unknown := sorted(set(conf) - set(DEFAULTS)):
        raise ImproperlyConfigured(f"LOCKGATE has no {unknown[0]!r}; it has {', '.join(DEFAULTS)}.")
    conf = DEFAULTS | conf
    if not callable(conf["TENANT"]):
        _checked_tenant(conf["TENANT"])
    if conf["USER_TENANTS"] is not None and not callable(conf["USER_TENANTS"]):
        raise ImproperlyConfigured('LOCKGATE["USER_TENANTS"] must be a function that gets a user and returns names of tenants.')
    for name, needed in [("REDIS_URL", True), ("DENYLIST_URL", False)]:
        url = conf[name]
        is_url = isinstance(url, str) and re.match(r"(rediss?|rediss?\+cluster|unix)://", url)
        is_sentinel = isinstance(url, dict) and {"sentinels", "master_name"} <= set(url)
        if not (is_url or is_sentinel or url is None and not needed):
            expected = 'a URL redis://, rediss:// or redis+cluster://, or a dict with "sentinels" and "master_name"'
            raise ImproperlyConfigured(f'LOCKGATE["{name}"] must be {expected}.')
        if clusters.is_cluster(url):
            try:
                clusters.Slots(url)
            except ValueError as error:
                raise ImproperlyConfigured(f'LOCKGATE["{name}"]: {error}.') from None
    if conf["LEEWAY"] is None:
        from rest_framework_simplejwt.settings import api_settings

        conf["LEEWAY"] = api_settings.LEEWAY or 0
    for name, least in [("KEEP", 1), ("STALE_TTL", 1), ("LEEWAY", 0), ("TIMEOUT", 0.001), ("DENYLIST_REPLICAS", 0)]:
        span = conf[name]
        span = span.total_seconds() if isinstance(span, timedelta) else span
        if isinstance(span, bool) or not isinstance(span, (int, float)) or not span >= least:
            raise ImproperlyConfigured(f'LOCKGATE["{name}"] must be a number or a timedelta, at least {least}.')
        conf[name] = span
    if conf["ON_EXPIRY"] not in ("close", "keep"):
        raise ImproperlyConfigured('LOCKGATE["ON_EXPIRY"] must be "close" or "keep".')
    return conf


@functools.cache
def connect(name):
    """Returns the client of the Redis in this setting. All threads share its pool."""
    conf = config()
    url, timeout = conf[name], conf["TIMEOUT"]
    # One retry at once, in case the connection was lost. The default retries of redis-py would pause for seconds.
    options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 1)}
    if clusters.is_cluster(url):
        return clusters.Cluster(url, timeout)
    if isinstance(url, str):
        return redis.Redis.from_url(url, **options)
    options |= url
    name, sentinels, login = options.pop("master_name"), options.pop("sentinels"), options.pop("sentinel_kwargs", None)
    login = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **(login or {})}
    return redis.Sentinel(sentinels, sentinel_kwargs=login).master_for(name, **options)


def _checked_tenant(name):
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", str(name or "")):
        raise ImproperlyConfigured('LOCKGATE["TENANT"] must be a name of 1 to 63 of a-z, 0-9 and -, not beginning with -.')
    return name


def current_tenant():
    """Returns the name that LOCKGATE["TENANT"] has now; None if its function says that this schema is no tenant."""
    tenant = config()["TENANT"]
    name = tenant() if callable(tenant) else tenant
    return None if name is None else _checked_tenant(name)


def tenants_of(user):
    """Returns the names of the tenants that a change of this user concerns."""
    tenants = config()["USER_TENANTS"]
    if tenants is not None:
        return [_checked_tenant(name) for name in tenants(user)]
    name = current_tenant()
    return [] if name is None else [name]


def _key(tenant, rest):
    return f"lockgate:{_checked_tenant(current_tenant() if tenant is None else tenant)}:{rest}"


def _deny(tenant, name, write, value, announced):
    """Stores a revocation first, so that it holds for new sockets, and then announces it."""
    conf, key = config(), _key(tenant, f"deny:{name}")
    try:
        _write("DENYLIST_URL" if conf["DENYLIST_URL"] else "REDIS_URL", key, lambda ask: _store(ask, write, key, value))
        _announce(tenant, "revoke", announced)
    except (redis.RedisError, OSError) as error:
        raise NotRevoked("Redis did not confirm the revocation") from error


def _write(name, key, work):
    """Calls `work` with a function that sends commands to the Redis in this setting; in a cluster to the node that has the key.

    A second call must change nothing more: there is one if the connection was lost.
    """
    server = connect(name)
    if isinstance(server, clusters.Cluster):
        return server.call(key, work, repeatable=True)
    try:
        return clusters.on_connection(server.client(), work)
    except redis.ConnectionError:
        # The connection had died while idle.
        return clusters.on_connection(server.client(), work)


def _store(ask, write, key, value):
    """Writes, and waits for the replicas of Redis on the same connection."""
    conf = config()
    write(ask, key, *value)
    wanted = conf["DENYLIST_REPLICAS"]
    # Half the timeout, because Redis ends a wait late and must answer before the socket times out.
    if wanted and ask("WAIT", wanted, max(1, int(conf["TIMEOUT"] * 500))) < wanted:
        raise NotRevoked(f"fewer than {wanted} replicas of Redis have the revocation")


def _put(ask, key, value, until):
    ask("SET", key, value, "PX", _left(until))


def _left(until):
    """Returns the milliseconds to a Unix second. EXAT would need Redis 6.2."""
    return max(1, int((until - time.time()) * 1000) + 1)


def _raise(ask, key, cut_off, until):
    """Replaces an earlier cut-off and keeps a later one. A value that is no cut-off counts as none, so that it is mended.

    No script does this, because a back end with the right to run scripts can stop a Redis that it shares. EXEC does
    nothing if the key changed after WATCH; then all begins again.
    """
    deadline = time.monotonic() + config()["TIMEOUT"]
    while time.monotonic() < deadline:
        ask("WATCH", key)
        stored = _cut_off(ask, key)
        if stored is not None and stored > cut_off:
            ask("UNWATCH")
            return
        ask("MULTI")
        ask("SET", key, cut_off, "PX", _left(until))
        if ask("EXEC") is not None:
            return
    raise NotRevoked("other clients wrote the same cut-off all the time")


def _cut_off(ask, key):
    try:
        # One byte more than a cut-off may have, so that a longer value is none.
        value = ask("GETRANGE", key, 0, CUT_OFF_BYTES)
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return None
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    is_number = len(text) <= CUT_OFF_BYTES and re.fullmatch(r"-?[0-9]+\.?[0-9]*", text)
    return float(text) if is_number else None


def _announce(tenant, op, members):
    message = json.dumps({"v": 1, "op": op, **members}, separators=(",", ":"))
    server, channel = connect("REDIS_URL"), _key(tenant, "control")
    if isinstance(server, clusters.Cluster):
        # All of the gateway's channels on a cluster are sharded.
        return server.call(channel, lambda ask: ask("SPUBLISH", channel, message), repeatable=False)
    return server.publish(channel, message)


def _read(token):
    from rest_framework_simplejwt import exceptions
    from rest_framework_simplejwt.tokens import UntypedToken

    if isinstance(token, (str, bytes)):
        # simplejwt raises ExpiredTokenError after the check of the signature. Older releases do not have this error.
        try:
            return UntypedToken(token)
        except getattr(exceptions, "ExpiredTokenError", ()):
            return UntypedToken(token, verify=False)
    if not hasattr(token, "get"):
        raise ValueError("no token: was this request authenticated by simplejwt?")
    return token


def _jti(token):
    from rest_framework_simplejwt.settings import api_settings

    claim = api_settings.TOKEN_TYPE_CLAIM
    kinds = {kind.token_type for kind in api_settings.AUTH_TOKEN_CLASSES}
    if claim and token.get(claim) not in kinds and "untyped" not in kinds:
        raise ValueError(f"a token of type {token.get(claim)!r} opens no socket")
    jti = token.get(api_settings.JTI_CLAIM) if api_settings.JTI_CLAIM else None
    if jti is None:
        raise ValueError("the token has no id; revoke its user")
    return str(jti)
