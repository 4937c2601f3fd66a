"""Redis Clusters: their URLs, the map of their slots, and a blocking client for revocations.

A cluster's URL is that of the gateway: redis+cluster://[user:password@]host:port,host:port or rediss+cluster:// for TLS. It
names some nodes, and one that answers is enough. With TLS, `?ssl_ca_certs=/path/to/ca.pem` names an authority of your own, and
`ssl_certfile` and `ssl_keyfile` the certificate of this client.

The clients here and in `sharded` take the place of redis-py's cluster clients. Those repeat a command whose answer was lost up to ten
times, so that an event is sent twice, wait up to a minute for a node that is stopped, and raise errors that are no RedisError.
"""

import random
import time
from urllib.parse import parse_qsl, unquote

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry

SCHEMES = {"redis+cluster": False, "rediss+cluster": True}
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SLOTS = 16384
FORM = "the URL of a cluster is redis+cluster://HOST:PORT,HOST:PORT"


class NotSent(redis.ConnectionError):
    """No connection was made, so the command has not run."""


# The answers to a command that has not run, without a word of another node.
NOT_RUN = (NotSent, ClusterDownError, TryAgainError, BusyLoadingError)


def is_cluster(url):
    """Returns true if the scheme of a URL is that of a cluster."""
    return isinstance(url, str) and url.partition("://")[0] in SCHEMES


def _parts(url):
    """Returns host and port of the nodes, and the options of connections.

    ValueError: the URL is not readable; its text is not quoted.
    """
    scheme, _, rest = url.partition("://")
    login, _, address = rest.rpartition("@")
    address, _, query = address.partition("?")
    address, _, database = address.partition("/")
    if database not in ("", "0"):
        raise ValueError("a cluster has no database number")
    nodes = []
    for node in address.split(","):
        host, colon, port = node.rpartition(":") if not node.endswith("]") else (node, "", "")
        host, port = (host, port) if colon else (node, "6379")
        if not host or not port.isdecimal():
            raise ValueError(FORM)
        nodes.append((host.strip("[]"), int(port)))
    name, _, password = login.partition(":")
    options = {"ssl": True, "ssl_check_hostname": True} if SCHEMES[scheme] else {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in TLS_OPTIONS or not SCHEMES[scheme]:
            raise ValueError(f"{FORM}, and rediss+cluster:// alone takes options: {', '.join(TLS_OPTIONS)}")
        options[option] = value
    if name:
        options["username"] = unquote(name)
    if password:
        options["password"] = unquote(password)
    return nodes, options


class Slots:
    """Where the slots of a cluster are, as its nodes tell. All threads and event loops of a process share it.

    ValueError: the URL is not readable, or redis-py is too old.
    """

    def __init__(self, url):
        # Before 6.0 the connections do not tell MOVED from other errors.
        if int(redis.__version__.partition(".")[0]) < 6:
            raise ValueError(f"a cluster needs redis-py 6.0 or later, and this is {redis.__version__}")
        self._seeds, self.options = _parts(url)
        self._owners = [None] * SLOTS
        # The masters and replicas.
        self.nodes = frozenset()

    def owner(self, slot):
        """Returns the address of the master that has a slot; None if none is known."""
        return self._owners[slot]

    def sources(self, away):
        """Returns the addresses of the nodes that may know the map, those that are `away` last.

        The order is random otherwise, so that a node whose map is of long ago is not believed for ever.
        """
        nodes = list(self.nodes.union(self._seeds))
        random.shuffle(nodes)
        return sorted(nodes, key=lambda node: node in away)

    def learn(self, answer, asked):
        """Takes the answer of the node `asked` to CLUSTER SLOTS."""
        owners, nodes = [None] * SLOTS, set()
        try:
            for first, last, *members in answer:
                addresses = [(text(member[0]) or asked[0], int(member[1])) for member in members]
                owners[first : last + 1] = [addresses[0]] * (last - first + 1)
                nodes.update(addresses)
        except (TypeError, ValueError, IndexError) as error:
            raise redis.InvalidResponse(f"the answer to CLUSTER SLOTS is not readable: {error}") from error
        if not nodes:
            raise redis.InvalidResponse("a node knows of no slots")
        self._owners, self.nodes = owners, frozenset(nodes)

    def follow(self, error, asked):
        """Notes what MOVED of the node `asked` says, or returns the address that ASK names for once."""
        address = (error.host or asked[0], error.port)
        if not isinstance(error, MovedError):
            return address
        self._owners[error.slot_id] = address
        self.nodes |= {address}
        return None


class Cluster:
    """A blocking client of a cluster. All threads share it."""

    def __init__(self, url, timeout):
        self.slots = Slots(url)
        self._timeout = timeout
        # By the address of a node.
        self._clients = {}

    def call(self, key, work, repeatable):
        """Calls `work` on one connection to the node that has a key, as `on_connection` does, and returns what it returns.

        A command that has not run, because it was redirected or refused, is repeated for twice the timeout, and for twice that time
        while other nodes are named. `repeatable`: one that may have run is repeated once, after a lost connection, or after a timeout
        if another node has the key by then.
        """
        slot, begin, pause = key_slot(key.encode()), time.monotonic(), 0.01
        asking = None
        while True:
            address = asking or self._owner(slot)
            try:
                if address is None:
                    raise ClusterDownError("no node serves the slot of the key")
                return on_connection(self._connect(address), work, asking=asking is not None)
            except AskError as error:
                asking, failure = self.slots.follow(error, address), error
            except NOT_RUN as error:
                asking, failure = None, error
                self._read_slots(address)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                asking, failure = None, error
                self._read_slots(address)
                if not repeatable or isinstance(error, redis.TimeoutError) and self._owner(slot) == address:
                    raise
                repeatable = False
            is_same = (asking or self.slots.owner(slot)) == address
            if time.monotonic() - begin > (2 if is_same else 4) * self._timeout:
                raise redis.ConnectionError(f"the cluster does not serve a key: {failure}") from failure
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def _owner(self, slot):
        if not self.slots.nodes:
            failure = self._read_slots()
            if failure:
                raise redis.ConnectionError(f"no node of the cluster tells its slots: {failure}") from failure
        return self.slots.owner(slot)

    def _read_slots(self, away=None):
        """Reads the map from the first node that tells it, `away` last. Returns an error if none does; then the map stays."""
        deadline, failure = time.monotonic() + 2 * self._timeout, None
        for address in self.slots.sources({away}):
            try:
                self.slots.learn(on_connection(self._connect(address), lambda ask: ask("CLUSTER", "SLOTS")), address)
                # The connections to other nodes are closed when no thread uses them any more.
                known = self.slots.nodes | {address}
                self._clients = {node: client for node, client in list(self._clients.items()) if node in known}
                return None
            except (redis.RedisError, OSError) as error:
                failure = error
            if time.monotonic() > deadline:
                break
        return failure

    def _connect(self, address):
        """Returns a client of one connection to a node."""
        client = self._clients.get(address)
        if client is None:
            host, port = address
            timeouts = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
            # Without retries, which would run a command twice.
            client = redis.Redis(host, port, retry=Retry(NoBackoff(), 0), **timeouts, **self.slots.options)
            self._clients[address] = client
        try:
            return client.client()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise NotSent(str(error)) from error


def on_connection(single, work, asking=False):
    """Calls `work` with a function that sends a command on one connection, since WATCH and WAIT concern their own connection alone.

    `single`: what `client()` of redis-py returns. `asking`: the node takes the commands although it does not have their slot yet.
    """
    with single:
        connection = single.connection

        # Not `single.execute_command`, which reconnects on its own: a new connection does not watch the key.
        def ask(*command):
            if asking:
                connection.send_command("ASKING")
                connection.read_response()
            connection.send_command(*command)
            return connection.read_response()

        try:
            return work(ask)
        except BaseException:
            # The pool must not get a connection back that watches a key or has an answer to come.
            connection.disconnect()
            raise


def text(value):
    return value.decode() if isinstance(value, bytes) else value
