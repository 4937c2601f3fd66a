"""The connection of a channel layer to a Redis Cluster: sharded channels, each on the node that has its slot.

A node has one connection that listens, a `_Line`, and a pool of connections for commands. Each line and each channel is mended by
itself: what goes wrong with one node concerns the channels there alone.
"""

import asyncio
import logging

import redis
from redis.asyncio.connection import BlockingConnectionPool, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError

from .clusters import NOT_RUN, NotSent, text

logger = logging.getLogger("lockgate")

# The longest time in seconds for connecting, for an answer, and for repeating a command that has not run.
TIMEOUT = 3
# The same for a node that is asked for the map, since another one is asked next.
MAP_TIMEOUT = 1
# The time without a message after which a line is asked if it lives. After three such questions it counts as lost.
PING_AFTER = 1
# The map is read again this often in any case.
MAP_EVERY = 60
# The least and the most time between two readings of the map.
LEAST_PAUSE, MOST_PAUSE = 0.1, 1
# The most connections for commands to one node.
POOL_SIZE = 10
# The most redirections of a channel that are followed at once.
HOPS = 5


class ClusterConnection:
    """Takes the place of `channels_redis.pubsub.RedisSingleShardConnection`, for one event loop.

    `slots`: the map of the cluster, `clusters.Slots`.
    """

    def __init__(self, slots, layer):
        self._slots = slots
        self._layer = layer
        # By the address of a node.
        self._pools = {}
        self._lines = {}
        # By the name of a channel.
        self._wishes = {}
        self._doubted = asyncio.Event()
        self._tender = None
        # The failures that have been logged, by the address of the node; None stands for the map.
        self._away = {}

    async def execute(self, *command):
        """Sends a command to the node that has its key.

        It is repeated only where it has not run, for `TIMEOUT` seconds, and for twice that time while other nodes are named.
        """
        key = command[3] if command[0] in ("FCALL", "EVALSHA") else command[1]
        slot, begin, pause = key_slot(key.encode()), _now(), 0.005
        asking = None
        while True:
            address = asking or self._slots.owner(slot)
            try:
                if address is None:
                    raise ClusterDownError("no node is known for the slot of the key")
                return await self._ask(address, command, asking=asking is not None)
            except AskError as error:
                asking, failure = self._slots.follow(error, address), error
            except NOT_RUN as error:
                asking, failure = None, error
                self._doubt()
            except (redis.ConnectionError, redis.TimeoutError):
                self._doubt()
                raise
            is_same = (asking or self._slots.owner(slot)) == address
            if _now() - begin > (1 if is_same else 2) * TIMEOUT:
                raise redis.ConnectionError(f"the cluster does not serve a key: {failure}") from failure
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.2)

    async def publish(self, channel, message):
        await self.execute("SPUBLISH", channel, message)

    async def subscribe(self, channel):
        """Subscribes a channel. When it returns, what is published is heard; if it raises, the channel is not wished for."""
        if self._tender is None:
            self._tender = asyncio.ensure_future(self._tend())
        wish = self._wishes.get(channel)
        if wish is None:
            wish = self._wishes[channel] = _Wish(channel)
            self._place(wish)
        if wish.heard.is_set():
            wish.kept = True
            return
        wish.waiting += 1
        try:
            await _within(TIMEOUT, wish.heard.wait())
            wish.kept = True
        except asyncio.TimeoutError:
            reason = self._away.get(self._slots.owner(wish.slot)) or self._away.get(None) or "it does not answer"
            raise redis.ConnectionError(f"no node of the cluster has subscribed a channel: {reason}") from None
        finally:
            wish.waiting -= 1
            if not (wish.kept or wish.waiting) and self._wishes.get(channel) is wish:
                await self.unsubscribe(channel)

    async def unsubscribe(self, channel):
        wish = self._wishes.pop(channel, None)
        if wish is not None:
            for line in {wish.line, wish.asked} - {None}:
                line.send("SUNSUBSCRIBE", channel)
                line.settle(wish)

    async def flush(self):
        tasks = [line.task for line in self._lines.values()] + ([self._tender] if self._tender else [])
        pools = self._pools.values()
        self._lines, self._wishes, self._pools, self._tender = {}, {}, {}, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(pool.disconnect() for pool in pools), return_exceptions=True)

    async def _ask(self, address, command, asking=False):
        if address not in self._pools:
            self._pools[address] = BlockingConnectionPool(POOL_SIZE, TIMEOUT, **_options(address, self._slots.options))
        pool = self._pools[address]
        try:
            connection = await pool.get_connection()
        except (redis.RedisError, OSError) as error:
            raise NotSent(str(error)) from error
        try:
            if asking:
                await connection.send_command("ASKING")
                await connection.read_response()
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await pool.release(connection)

    def has(self, line):
        """True while channels may need a line."""
        return self._lines.get(line.address) is line

    def _doubt(self):
        """Has the map read again, and then each channel subscribed that no node hears."""
        if self._tender is None:
            self._tender = asyncio.ensure_future(self._tend())
        self._doubted.set()

    async def _tend(self):
        pause = LEAST_PAUSE
        while True:
            try:
                await _within(MAP_EVERY, self._doubted.wait())
            except asyncio.TimeoutError:
                pass
            self._doubted.clear()
            try:
                await self._read_slots()
                self._place_all()
            except Exception as error:
                self._complain(None, error)
                self._doubted.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE) if self._doubted.is_set() else LEAST_PAUSE

    async def _read_slots(self):
        """Reads the map from the first node that tells it. If none does, the map stays that of before."""
        failure = None
        for address in self._slots.sources(self._away):
            try:
                answer = await _within(MAP_TIMEOUT, self._ask(address, ("CLUSTER", "SLOTS")))
                self._slots.learn(answer, address)
                break
            except (redis.RedisError, OSError, asyncio.TimeoutError) as error:
                failure = error
        else:
            self._complain(None, failure)
            self._doubted.set()
            return
        self._away = {node: error for node, error in self._away.items() if node in self._slots.nodes}
        for address in set(self._pools) - self._slots.nodes - {address}:
            await self._pools.pop(address).disconnect(inuse_connections=False)

    def _place_all(self):
        """Subscribes each channel at the node that has its slot now, and ends the lines that no channel needs."""
        for wish in self._wishes.values():
            at = wish.asked or wish.line
            if at is None or at.address != self._slots.owner(wish.slot):
                wish.hops = 0
                self._place(wish, again=True)
        needed = {line for wish in self._wishes.values() for line in (wish.line, wish.asked)}
        for line in [line for line in self._lines.values() if line not in needed]:
            del self._lines[line.address]
            line.task.cancel()

    def _place(self, wish, again=False):
        """Subscribes a channel where its slot is. `again`: also at a node that was away when it was tried last."""
        address = self._slots.owner(wish.slot)
        line = self._lines.get(address)
        wish.hops += 1
        if address is None or wish.hops > HOPS or line is None and address in self._away and not again:
            self._doubt()
            return
        if line is None:
            line = self._lines[address] = _Line(address, _options(address, self._slots.options), self)
        wish.asked = line
        line.asked.setdefault(wish.slot, set()).add(wish)
        line.send("SSUBSCRIBE", wish.channel)

    def answered(self, line, answer):
        """Takes what a node says on a line."""
        # The answer to PING is a text before the first subscription.
        kind, name, data = (text(answer[0]), text(answer[1]), answer[-1]) if isinstance(answer, list) else ("pong", "", None)
        wish = self._wishes.get(name)
        if wish is None:
            return
        if kind == "ssubscribe":
            line.settle(wish)
            if wish.line is None and wish.asked is None:
                # The refusal of another channel was taken for one of this channel.
                wish.asked = line
        if line not in (wish.line, wish.asked):
            if kind == "ssubscribe":
                # Meanwhile another node has been asked.
                line.send("SUNSUBSCRIBE", name)
        elif kind == "smessage" and wish.line is line:
            self._deliver(name, data)
        elif kind == "ssubscribe" and wish.asked is line:
            if wish.line not in (None, line):
                wish.line.send("SUNSUBSCRIBE", name)
            wish.line, wish.asked, wish.hops = line, None, 0
            wish.heard.set()
            if line.address in self._away:
                del self._away[line.address]
                logger.info("Channel layer: the node %s:%s serves channels again", *line.address)
        elif kind == "sunsubscribe":
            # The slot has moved, and MOVED will name the new node. If this answers an earlier order of ours, nothing is lost.
            self._lost(wish, line)
            if wish.asked is None:
                self._place(wish)

    def refused(self, line, error):
        """Takes an error of a node. Only channels that are not subscribed yet are concerned."""
        if isinstance(error, MovedError):
            self._slots.follow(error, line.address)
            wishes = line.asked.pop(error.slot_id, ())
        else:
            wishes = set().union(*line.asked.values())
            line.asked.clear()
            self._complain(line.address, error)
            self._doubt()
        for wish in wishes:
            if wish.asked is line and self._wishes.get(wish.channel) is wish:
                wish.asked = None
                if isinstance(error, MovedError):
                    self._place(wish)

    def ended(self, line, error):
        """Takes the end of a line, whose channels are subscribed again by the next reading of the map."""
        if self.has(line):
            del self._lines[line.address]
        for wish in self._wishes.values():
            self._lost(wish, line)
        self._complain(line.address, error)
        self._doubt()

    def _lost(self, wish, line):
        if wish.line is line:
            wish.line = None
            wish.heard.clear()
        if wish.asked is line:
            wish.asked = None

    def _complain(self, address, error):
        """Logs the failure of a node, or of all for None, once until it is back."""
        is_told = address in self._away
        self._away[address] = str(error) or type(error).__name__
        if is_told:
            return
        is_foreseen = isinstance(error, (redis.RedisError, OSError, asyncio.TimeoutError))
        logger.warning(
            "Channel layer: %s, and this is tried again: %s",
            "no node of the Redis Cluster tells the map" if address is None else "the node {}:{} does not serve channels".format(*address),
            self._away[address],
            exc_info=None if is_foreseen else error,
        )

    def _deliver(self, name, data):
        queues = self._layer.channels
        for receiver in [name] if name in queues else self._layer.groups.get(name, ()):
            if receiver in queues:
                queues[receiver].put_nowait(data)


class _Wish:
    """A channel that is wished for."""

    def __init__(self, channel):
        self.channel = channel
        self.slot = key_slot(channel.encode())
        # The line on which it is heard, and the line that is asked to subscribe it.
        self.line = None
        self.asked = None
        self.heard = asyncio.Event()
        # The number of calls that wait until it is heard; true when one has returned.
        self.waiting = 0
        self.kept = False
        # The number of attempts since it was heard or the map was read.
        self.hops = 0


class _Line:
    """The connection that listens to one node. It ends at the first failure, which it tells its owner."""

    def __init__(self, address, options, owner):
        self.address = address
        # The wishes whose subscription has no answer yet, by slot.
        self.asked = {}
        self._options = options
        self._owner = owner
        self._orders = []
        self._ordered = asyncio.Event()
        self.task = asyncio.ensure_future(self._live())

    def settle(self, wish):
        """Forgets that a subscription has no answer yet."""
        same = self.asked.get(wish.slot, set())
        same.discard(wish)
        if not same:
            self.asked.pop(wish.slot, None)

    def send(self, *command):
        self._orders.append(command)
        self._ordered.set()

    async def _live(self):
        options = dict(self._options)
        connection = options.pop("connection_class")(**options)
        tasks = []
        try:
            await connection.connect()
            # The cancellation of a line that is not needed any more may be lost while it connects.
            if self._owner.has(self):
                tasks = [asyncio.ensure_future(work(connection)) for work in (self._read, self._write)]
                await asyncio.gather(*tasks)
        except Exception as error:
            self._owner.ended(self, error)
        finally:
            await _end(tasks)
            await asyncio.gather(connection.disconnect(nowait=True), return_exceptions=True)

    async def _read(self, connection):
        silent = 0
        while True:
            try:
                answer = await connection.read_response(timeout=PING_AFTER, disconnect_on_error=False)
            except redis.ResponseError as error:
                self._owner.refused(self, error)
                continue
            if answer is not None:
                silent = 0
                self._owner.answered(self, answer)
            elif silent == 3:
                raise redis.TimeoutError("it does not answer")
            else:
                silent += 1
                self.send("PING")

    async def _write(self, connection):
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            orders, self._orders = self._orders, []
            if not connection.is_connected:
                # `send_packed_command` would connect again, without the subscriptions.
                raise redis.ConnectionError("the connection was lost")
            await connection.send_packed_command(connection.pack_commands(orders), check_health=False)


def _options(address, options):
    """Returns the options of a connection to a node. It does not repeat commands."""
    options = dict(options)
    options["connection_class"] = SSLConnection if options.pop("ssl", False) else Connection
    options["host"], options["port"] = address
    # The answers are read here, so their form must be known.
    return {"protocol": 2, "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 0), **options}


async def _within(seconds, work):
    """Returns what `work` returns; TimeoutError after `seconds`.

    `asyncio.wait_for` may lose a cancellation before Python 3.12, and a task that goes on keeps its loop from closing.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise asyncio.TimeoutError
    return task.result()


async def _end(tasks):
    """Cancels tasks until they have ended, because redis-py calls `asyncio.wait_for`, which may lose a cancellation (`_within`)."""
    going = set(tasks)
    while going:
        for task in going:
            task.cancel()
        _, going = await asyncio.wait(going, timeout=0.05)
    await asyncio.gather(*tasks, return_exceptions=True)


def _now():
    return asyncio.get_running_loop().time()
