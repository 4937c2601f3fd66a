"""A channel layer that records the events of groups with a memory. It is Channels' own pub/sub layer otherwise.

    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "lockgate.layers.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": ["redis://127.0.0.1:6379/0"], "prefix": "acme"},
        },
    }

`CONFIG` takes what `channels_redis.pubsub.RedisPubSubChannelLayer` takes, and `tenant`, the name in [tenants.NAME]; without
it LOCKGATE["TENANT"] counts. A project whose schemas are tenants sends to "acme.chat_lobby", and has `tenants` in its place:
the names by `layer.namespace`, `{"acme.": "acme", "globex.": "globex"}`, or a function from the name of a group to that of
its tenant, `lambda group: group.partition(".")[0]`. Which groups have a memory is written in the configuration of the gateway
alone: it puts the rules into each Redis of the layer, and this class reads them every few seconds.

A group with a memory: `group_send` stores and publishes the event in one step of Redis. If Redis refuses that, because it
has no memory left, is a replica, lacks the gateway's function or does not let this user call it, the call raises
`NotRecorded`, and nothing was sent. Any other group, and every group while no gateway has written rules or this user may not
read them: Channels' own `group_send`.

On a Redis Cluster `RedisClusterChannelLayer` takes its place, with `"hosts": ["redis+cluster://10.0.0.1:6379,10.0.0.2:6379"]`;
`clusters` has the form of the URL. It needs redis-py 6 and channels_redis 4.1 or later.

It needs channels_redis 3.3.1 or later; `lockgate` need not stand in INSTALLED_APPS.
"""

import json
import logging
import re
import secrets
import time

import redis
from channels_redis import pubsub
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from . import clusters, sharded

try:
    from aioredis import ReplyError
except ImportError:
    # channels_redis 4 and later use redis-py.
    ReplyError = redis.ResponseError

logger = logging.getLogger("lockgate")

# The number of seconds for which the rules of a host are believed.
RULES_TTL = 5
# The most bytes of the rules. The gateway writes no more.
RULES_BYTES = 1024 * 1024
# The most groups whose rules are remembered, and the most tenants.
GROUPS_KEPT = 10_000
TENANTS_KEPT = 10_000
TENANT = re.compile("[a-z0-9][a-z0-9-]{0,62}")
# The words of Redis for a missing right. Of a command inside a script the next to last are those of Redis 7.0, and the last
# those of Redis 7.2 and later and of Valkey.
DENIED = re.compile("NOPERM|no permissions|The user executing the script can't|ACL failure in script")
# The words of a server before Redis 7, and those for a function and a script that are not there.
UNKNOWN_COMMAND = re.compile("unknown command")
MISSING = re.compile("Function not found|NOSCRIPT|No matching script")


class NotRecorded(redis.ResponseError):
    """Redis refused to record an event, which was not sent either. The cause is the refusal."""


class RedisPubSubChannelLayer(pubsub.RedisPubSubChannelLayer):
    def __init__(self, *args, tenant=None, tenants=None, **kwargs):
        super().__init__(*args, **kwargs)
        if tenants is None:
            tenants = {"": tenant or (getattr(settings, "LOCKGATE", None) or {}).get("TENANT")}
        # Returns the tenant of a group; None for a group of no tenant.
        self._tenant_of = tenants if callable(tenants) else _by_namespaces(tenants)
        # The rules of each tenant and host, by its place among the hosts. All event loops share them.
        self._rules = {}
        self._warned = set()

    async def group_send(self, group, message):
        """Sends the message to the group, as Channels does, and records it if the group has a memory."""
        layer = self._get_layer()
        tenant = self._tenant_of(group)
        if tenant is not None and TENANT.fullmatch(tenant):
            channel = layer._get_group_channel_name(group)
            shard = layer._get_shard(channel)
            rules = await self._rules_of(tenant, layer._shards.index(shard), shard)
            kept = rules.of(group)
            if kept:
                return await self._record(shard, (tenant, rules), kept, channel, message)
        await layer.group_send(group, message)

    async def _record(self, shard, of_tenant, kept, channel, message):
        """Records and publishes a message."""
        tenant, rules = of_tenant
        keys = [f"lockgate:{tenant}:{kind}:{{{channel}}}" for kind in ("history", "position", "group")]
        # The random text is the epoch of a history that begins with this event.
        arguments = [2, keys[0], keys[1], secrets.token_hex(15), *kept, keys[2], channel, self._bytes_of(message)]
        refusal = None
        for way in rules.ways:
            try:
                await _execute(shard, *way, *arguments)
            except (redis.ResponseError, ReplyError) as error:
                # A server without functions says nothing about the script.
                if refusal is None or UNKNOWN_COMMAND.search(str(refusal)):
                    refusal = error
                if not _may_be_recorded_otherwise(error):
                    break
            else:
                # The other way is tried again with the next rules.
                rules.ways = [way]
                return
        raise NotRecorded(f"Redis refused to record the event, so it was not sent: {refusal}{_advice(refusal, tenant)}") from refusal

    def _bytes_of(self, message):
        if hasattr(type(self), "serialize"):
            return self.serialize(message)
        # Before channels_redis 3.4 the connection does it.
        return pubsub.msgpack.packb(message)

    async def _rules_of(self, tenant, index, shard):
        rules = self._rules.get((tenant, index))
        if rules and time.monotonic() - rules.read_at < RULES_TTL:
            return rules
        if rules:
            # One call reads them again. Until then the others go on with these.
            rules.read_at = time.monotonic()
        try:
            text = await _execute(shard, "GETRANGE", f"lockgate:{tenant}:groups", 0, RULES_BYTES)
            rules = Rules(text)
        except (redis.ResponseError, ReplyError) as error:
            self._warn_once("Redis does not show the rules of the groups, so no event is recorded: %s", error)
            rules = Rules(b"")
        except (redis.ConnectionError, redis.TimeoutError):
            # In a cluster the rules may lie on another node than the group.
            if rules is None:
                raise
        except ValueError as error:
            self._warn_once("The rules of the groups in Redis are not readable, so no event is recorded: %s", error)
            rules = Rules(b"")
        if len(self._rules) >= TENANTS_KEPT:
            self._rules.clear()
        self._rules[tenant, index] = rules
        return rules

    def _warn_once(self, text, *details):
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text, *details)


class RedisClusterChannelLayer(RedisPubSubChannelLayer):
    """The same on a Redis Cluster: the gateway's layer `sharded`."""

    def __init__(self, hosts, **kwargs):
        if isinstance(hosts, (str, bytes)) or len(hosts) != 1 or not clusters.is_cluster(hosts[0]):
            expected = "one URL redis+cluster://HOST:PORT,HOST:PORT with some nodes of one cluster"
            raise ImproperlyConfigured(f'CONFIG["hosts"] of the channel layer must have {expected}.')
        try:
            # All event loops share the map, so that one `async_to_sync(layer.group_send)` needs no map of its own.
            self._slots = clusters.Slots(hosts[0])
        except ValueError as error:
            raise ImproperlyConfigured(f'CONFIG["hosts"] of the channel layer: {error}.') from None
        # The class above makes connections to its default host, which are replaced before they are opened.
        super().__init__(**kwargs)

    def _get_layer(self):
        layer = super()._get_layer()
        if not isinstance(layer._shards[0], sharded.ClusterConnection):
            layer._shards = [sharded.ClusterConnection(self._slots, layer)]
        return layer


def _by_namespaces(tenants):
    """Returns a function from the name of a group to the tenant whose namespace begins it."""
    for name in tenants.values():
        if not TENANT.fullmatch(str(name or "")):
            expected = "a name in [tenants.NAME] of the gateway's configuration"
            raise ImproperlyConfigured(
                f'CONFIG["tenant"] or CONFIG["tenants"] of the channel layer, or LOCKGATE["TENANT"], must be {expected}, not {name!r}.'
            )
    for one in tenants:
        if any(other != one and other.startswith(one) for other in tenants):
            raise ImproperlyConfigured(f'CONFIG["tenants"] of the channel layer: another namespace begins with {one!r}.')
    return lambda group: next((name for namespace, name in tenants.items() if group.startswith(namespace)), None)


class Rules:
    """The rules of the groups, as the gateway wrote them. ValueError: it did not write this."""

    def __init__(self, text):
        self.read_at = time.monotonic()
        self.known = {}
        self.patterns = []
        self.ways = []
        if not text:
            return
        try:
            rules = json.loads(text)
            if rules["v"] != 1:
                raise ValueError(f"version {rules['v']!r}; update this app")
            for rule in rules["groups"]:
                self.patterns.append((re.compile(rule["regex"]), int(rule["size"]), int(rule["ttl_ms"])))
            # A function needs Redis 7 and no right to run scripts, the digest of a script that right.
            self.ways = [("FCALL", "lockgate_record"), ("EVALSHA", str(rules["record"]))]
        except (KeyError, TypeError, re.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def of(self, group):
        """Returns the number of events and their life in milliseconds; None for a group without a memory."""
        try:
            return self.known[group]
        except KeyError:
            pass
        found = None
        for pattern, size, ttl in self.patterns:
            if pattern.fullmatch(group):
                found = (size, ttl) if size else None
                break
        if len(self.known) >= GROUPS_KEPT:
            self.known.clear()
        self.known[group] = found
        return found


async def _execute(shard, *command):
    """Sends a command on the connection over which this shard publishes."""
    if isinstance(shard, sharded.ClusterConnection):
        return await shard.execute(*command)
    if hasattr(shard, "_get_pub_conn"):
        # channels_redis before 4.0
        connection = await shard._get_pub_conn()
        return await connection.execute(*command)
    async with shard._lock:
        shard._ensure_redis()
        return await shard._redis.execute_command(*command)


def _may_be_recorded_otherwise(error):
    return _is_denied(error) or _is_missing(error) or UNKNOWN_COMMAND.search(str(error))


def _advice(error, tenant):
    if _is_denied(error):
        return f". Give the Redis user of this back end the line that `lockgate doctor --acl --tenant {tenant}` prints"
    if _is_missing(error):
        return ". A gateway that runs puts its function there within 30 s"
    return ""


def _is_denied(error):
    # redis-py takes the code out of the text of some errors, and gives them classes.
    return isinstance(error, redis.exceptions.NoPermissionError) or DENIED.search(str(error))


def _is_missing(error):
    return isinstance(error, redis.exceptions.NoScriptError) or MISSING.search(str(error))
