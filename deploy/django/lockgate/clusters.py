"""Redis Clusters: their URLs and clients, for revocations and for the channel layer.

A cluster's URL is that of the gateway: redis+cluster://[user:password@]host:port,host:port or rediss+cluster:// for TLS. It
names some nodes, and one that answers is enough.
"""

import asyncio
from urllib.parse import unquote

import redis
import redis.asyncio.cluster
import redis.cluster

SCHEMES = {"redis+cluster": False, "rediss+cluster": True}


def is_cluster(url):
    """Returns true if the scheme of a URL is that of a cluster."""
    return isinstance(url, str) and url.partition("://")[0] in SCHEMES


def client(url, **options):
    """Returns a blocking client of a cluster."""
    nodes, login = _parts(url)
    nodes = [redis.cluster.ClusterNode(host, port) for host, port in nodes]
    return redis.cluster.RedisCluster(startup_nodes=nodes, require_full_coverage=False, **login, **options)


def async_client(url, **options):
    """Returns a client of a cluster for the running event loop."""
    nodes, login = _parts(url)
    nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in nodes]
    return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, require_full_coverage=False, **login, **options)


def on_node(cluster, key, work):
    """Calls `work` with a client of the node that has a key, and once more if the key has moved or the node is gone."""
    try:
        return work(_node(cluster, key))
    except (redis.exceptions.MovedError, redis.exceptions.AskError, redis.ConnectionError):
        cluster.nodes_manager.initialize()
        return work(_node(cluster, key))


def _node(cluster, key):
    return cluster.get_redis_connection(cluster.get_node_from_key(key))


def _parts(url):
    """Returns host and port of the nodes, and the login. ValueError: the URL is not readable; its text is not quoted."""
    scheme, _, rest = url.partition("://")
    login, _, address = rest.rpartition("@")
    address, _, database = address.partition("/")
    if database not in ("", "0"):
        raise ValueError("a cluster has no database number")
    nodes = []
    for node in address.split(","):
        host, colon, port = node.rpartition(":") if not node.endswith("]") else (node, "", "")
        host, port = (host, port) if colon else (node, "6379")
        if not host or not port.isdecimal():
            raise ValueError("the URL of a cluster is redis+cluster://HOST:PORT,HOST:PORT")
        nodes.append((host.strip("[]"), int(port)))
    name, _, password = login.partition(":")
    options = {"ssl": True} if SCHEMES[scheme] else {}
    if name:
        options["username"] = unquote(name)
    if password:
        options["password"] = unquote(password)
    return nodes, options


class ClusterConnection:
    """The connection of a channel layer to a cluster, in place of `channels_redis.pubsub.RedisSingleShardConnection`.

    Channels are sharded: SPUBLISH and SSUBSCRIBE go to the node that has the slot of the channel. Each node has a connection of
    its own. The cluster's pub/sub of redis-py reads the nodes in turns, so that a message waits for the silence of the others.
    """

    def __init__(self, url, layer):
        self.url = url
        self.layer = layer
        self._lock = asyncio.Lock()
        self._redis = None
        # The channels that are wished for.
        self._wishes = set()
        # By the name of a node: its pub/sub, and the task that reads it.
        self._lines = {}
        self._mending = None

    async def execute(self, *command):
        async with self._lock:
            await self._ensure_redis()
        return await self._redis.execute_command(*command)

    async def publish(self, channel, message):
        await self.execute("SPUBLISH", channel, message)

    async def subscribe(self, channel):
        async with self._lock:
            if channel not in self._wishes:
                await self._ensure_redis()
                self._wishes.add(channel)
                await self._line_of(channel).ssubscribe(channel)

    async def unsubscribe(self, channel):
        async with self._lock:
            if channel in self._wishes:
                self._wishes.remove(channel)
                await self._line_of(channel).sunsubscribe(channel)

    async def flush(self):
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        async with self._lock:
            await self._hang_up()
            if self._redis is not None:
                await self._redis.aclose()
                self._redis = None
            self._wishes = set()

    async def _ensure_redis(self):
        if self._redis is None:
            self._redis = await async_client(self.url).initialize()

    def _line_of(self, channel):
        """Returns the pub/sub of the node that has a channel."""
        node = self._redis.get_node_from_key(channel)
        if node.name not in self._lines:
            _, login = _parts(self.url)
            pubsub = redis.asyncio.Redis(host=node.host, port=node.port, **login).pubsub()
            self._lines[node.name] = pubsub, asyncio.ensure_future(self._read(pubsub))
        return self._lines[node.name][0]

    async def _hang_up(self):
        lines, self._lines = self._lines, {}
        for pubsub, task in lines.values():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.gather(pubsub.aclose(), pubsub.connection_pool.disconnect(), return_exceptions=True)

    async def _read(self, pubsub):
        """Reads one node. Whatever goes wrong there, all channels are subscribed again where their slots are then."""
        try:
            while pubsub.connection is None:
                await asyncio.sleep(0.01)
            while True:
                message = await pubsub.get_message(timeout=None)
                name = _text(message["channel"]) if message else ""
                kind = _text(message["type"]) if message else ""
                if kind == "smessage":
                    self._deliver(name, message["data"])
                elif kind == "sunsubscribe" and name in self._wishes:
                    raise redis.RedisError("the slot of a channel has moved")
        except (redis.RedisError, OSError):
            if self._mending is None or self._mending.done():
                self._mending = asyncio.ensure_future(self._mend())

    async def _mend(self):
        while True:
            try:
                async with self._lock:
                    await self._hang_up()
                    await self._redis.nodes_manager.initialize()
                    for channel in self._wishes:
                        await self._line_of(channel).ssubscribe(channel)
                return
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.5)

    def _deliver(self, name, data):
        queues = self.layer.channels
        for receiver in [name] if name in queues else self.layer.groups.get(name, ()):
            if receiver in queues:
                queues[receiver].put_nowait(data)


def _text(value):
    return value.decode() if isinstance(value, bytes) else value
