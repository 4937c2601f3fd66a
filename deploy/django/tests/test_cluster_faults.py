"""Nodes of a Redis Cluster that are lost, stopped or replaced, and slots that move, as consumers and revocations meet them."""

import asyncio
import contextlib
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import redis
from django.test import SimpleTestCase
from redis.crc import key_slot

import lockgate
from lockgate import clusters, layers, sharded

from . import redis_server
from .test_clusters import WithSettings, prepare
from .test_layers import event


def channel_of(group):
    return f"acme__group__{group}"


def first_group_on(cluster, node, start="news"):
    """The name of a group without a memory whose channel a node has."""
    return next(name for n in range(1000) if cluster.master_of(channel_of(name := f"{start}{n}")) is node)


def move(cluster, key, target):
    """Moves the slot of a key, which is empty, to another master."""
    for node in (target, cluster.master_of(key)):
        node.run("CLUSTER", "SETSLOT", key_slot(key.encode()), "NODE", target.id())


def begin_to_move(cluster, key, target):
    source, slot = cluster.master_of(key), key_slot(key.encode())
    target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id())
    source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id())
    return source


async def wait_for_async(is_true, what, seconds=15):
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


class Consumers:
    """A layer with a consumer in each of some groups, and the events that each got."""

    def __init__(self, cluster, groups=()):
        self.layer = layers.RedisClusterChannelLayer(hosts=[cluster.url], prefix="acme", tenant="acme")
        self.groups, self.heard, self.tasks = list(groups), {}, []

    async def __aenter__(self):
        for group in self.groups:
            await self.join(group)
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.layer.flush()

    async def join(self, group):
        channel = await self.layer.new_channel()
        await self.layer.group_add(group, channel)
        self.heard.setdefault(group, [])
        self.tasks.append(asyncio.ensure_future(self._listen(group, channel)))

    async def _listen(self, group, channel):
        while True:
            self.heard[group].append((await self.layer.receive(channel))["n"])

    async def until_heard(self, group, sender=None, seconds=30):
        """Sends to a group, with another layer if one is given, until an event of now arrives. Returns the time that this took."""
        begin, n = time.monotonic(), 10_000
        while time.monotonic() < begin + seconds:
            n += 1
            with contextlib.suppress(redis.RedisError):
                await (sender or self).layer.group_send(group, event(n))
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                if n in self.heard[group]:
                    return time.monotonic() - begin
                await asyncio.sleep(0.01)
        raise AssertionError(f"{group} heard nothing for {seconds} s")


class ClusterFaults(WithSettings, SimpleTestCase):
    def start(self, **options):
        cluster = redis_server.Cluster(**options)
        self.addCleanup(cluster.stop)
        prepare(cluster)
        return cluster

    def test_consumers_hear_again_after_all_nodes_were_away(self):
        cluster = self.start()
        groups = [first_group_on(cluster, node) for node in cluster.nodes]

        async def outlive():
            async with Consumers(cluster, groups) as consumers:
                with self.assertLogs("lockgate", "INFO") as logs:
                    for node in cluster.nodes:
                        node.kill()
                    # Longer than clients of redis-py go on by themselves.
                    await asyncio.sleep(12)
                    await asyncio.to_thread(lambda: [node.start() for node in cluster.nodes])
                    await asyncio.to_thread(cluster.wait_until_whole)
                    for group in groups:
                        self.assertLess(await consumers.until_heard(group), 5)
                return [record.getMessage() for record in logs.records]

        told = asyncio.run(outlive())
        # Each node and the map are told once, however often they were tried, and each return.
        self.assertEqual(len([text for text in told if "again:" in text]), 4, told)
        self.assertEqual(len([text for text in told if text.endswith("again")]), 3, told)

    def test_slots_that_move_one_by_one_concern_no_other_group(self):
        cluster = self.start()
        source, target = cluster.nodes[:2]
        groups = [f"g{n}" for n in range(2000)]
        moving = [group for group in groups if cluster.master_of(channel_of(group)) is source][:6]
        still = [first_group_on(cluster, node, "still") for node in cluster.nodes]

        async def reshard():
            async with Consumers(cluster, groups + still) as consumers:
                moves = asyncio.ensure_future(self.move_all(cluster, moving, target))
                sent = 0
                while not moves.done():
                    for group in still:
                        await consumers.layer.group_send(group, event(sent))
                    sent += 1
                    await asyncio.sleep(0.005)
                await moves
                for group in moving + groups[-30:]:
                    self.assertLess(await consumers.until_heard(group), 5)
                for group in still:
                    await consumers.until_heard(group)
                return {group: [n for n in consumers.heard[group] if n < 10_000] for group in still}, sent

        heard, sent = asyncio.run(reshard())
        self.assertGreater(sent, 5)
        for group, events in heard.items():
            self.assertEqual(events, list(range(sent)), group)

    def test_a_layer_ends_though_a_cancellation_is_lost(self):
        """redis-py sends with `asyncio.wait_for`, which may lose it before Python 3.12. Before, `flush` never returned then."""
        cluster = self.start()
        send = sharded.Connection.send_packed_command
        lost = []

        async def loses(connection, *args, **kwargs):
            await send(connection, *args, **kwargs)
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                lost.append(connection)

        async def end():
            consumers = await Consumers(cluster, [first_group_on(cluster, cluster.nodes[0])]).__aenter__()
            with mock.patch.object(sharded.Connection, "send_packed_command", loses):
                await consumers.join(first_group_on(cluster, cluster.nodes[0], "more"))
                done, _ = await asyncio.wait({asyncio.ensure_future(consumers.__aexit__())}, timeout=15)
            self.assertTrue(done)

        asyncio.run(end())
        self.assertTrue(lost)

    async def move_all(self, cluster, groups, target):
        for group in groups:
            await asyncio.to_thread(move, cluster, channel_of(group), target)
            await asyncio.sleep(0.1)

    def test_a_group_that_could_not_be_joined_is_joined_by_the_next_call(self):
        cluster = self.start()
        away = cluster.nodes[2]
        group = first_group_on(cluster, away)

        async def join():
            async with Consumers(cluster, [first_group_on(cluster, cluster.nodes[0])]) as consumers:
                away.kill()
                channel = next(iter(consumers.layer.channels))
                with self.assertRaises(redis.RedisError):
                    await consumers.layer.group_add(group, channel)
                await asyncio.to_thread(away.start)
                await asyncio.to_thread(cluster.wait_until_whole)
                await consumers.layer.group_add(group, channel)
                self.assertIn(channel_of(group).encode(), away.run("PUBSUB", "SHARDCHANNELS"))
                consumers.heard[group] = consumers.heard[consumers.groups[0]]
                self.assertLess(await consumers.until_heard(group), 5)

        asyncio.run(join())

    def test_a_stopped_master_is_left_for_its_replica_and_delays_nothing_else(self):
        cluster = self.start(replicas=1)
        stopped = cluster.nodes[0]
        group, other = first_group_on(cluster, stopped), first_group_on(cluster, cluster.nodes[1])

        async def follow():
            async with Consumers(cluster, [group, other]) as consumers:
                await consumers.until_heard(group)
                stopped.freeze()
                lost = asyncio.ensure_future(consumers.layer.group_send(group, event(1)))
                slowest = 0
                while not lost.done():
                    begin = time.monotonic()
                    await consumers.layer.group_send(other, event(2))
                    slowest = max(slowest, time.monotonic() - begin)
                    await asyncio.sleep(0.01)
                with self.assertRaises(redis.TimeoutError):
                    await lost
                self.assertLess(slowest, 1)
                # The master is still stopped. Here nothing more is sent that would fail.
                async with Consumers(cluster) as sender:
                    took = await consumers.until_heard(group, sender)
                self.assertIs(await asyncio.to_thread(cluster.master_of, channel_of(group)), cluster.nodes[3])
                return took

        self.assertLess(asyncio.run(follow()), 12)

    def test_an_event_whose_answer_is_lost_is_not_sent_twice(self):
        cluster = self.start()
        group = next(f"chat_{n}" for n in range(100) if cluster.master_of(channel_of(f"chat_{n}")) is cluster.nodes[0])

        async def send():
            async with Consumers(cluster, [group]) as consumers:
                await consumers.layer.group_send(group, event(0))
                cluster.nodes[0].freeze()
                with self.assertRaises(redis.RedisError):
                    await consumers.layer.group_send(group, event(1))
                cluster.nodes[0].thaw()
                await asyncio.to_thread(cluster.wait_until_whole)
                await consumers.until_heard(group)
                return consumers.heard[group]

        heard = asyncio.run(send())
        self.assertEqual(heard.count(0), 1)
        # The master had the event in its socket, and takes it when it goes on.
        self.assertEqual(heard.count(1), 1)

    def test_a_loop_ends_after_an_answer_was_lost(self):
        cluster = self.start()
        node = cluster.nodes[0]
        channel = channel_of(first_group_on(cluster, node))

        async def lose_an_answer():
            connection = sharded.ClusterConnection(clusters.Slots(cluster.url), None)
            await connection.subscribe(channel_of(first_group_on(cluster, cluster.nodes[1])))
            await connection.publish(channel, b"x")
            node.freeze()
            lost = asyncio.ensure_future(connection.publish(channel, b"x"))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(node.kill)
            await lost

        ended = threading.Thread(target=lambda: self.assertRaises(redis.RedisError, asyncio.run, lose_an_answer()), daemon=True)
        ended.start()
        ended.join(20)
        self.assertFalse(ended.is_alive(), "the loop does not end")

    def test_a_forbidden_channel_leaves_the_others_of_its_node_heard(self):
        cluster = self.start()
        node = cluster.nodes[0]
        forbidden, allowed = (channel_of(first_group_on(cluster, node, start)) for start in ("closed", "open"))
        for each in cluster.nodes:
            each.run("ACL", "SETUSER", "django", "on", ">secret", "~*", "+@all", "&acme__group__open*")
        url = cluster.url.replace("://", "://django:secret@")

        async def outlive():
            connection = sharded.ClusterConnection(clusters.Slots(url), None)

            async def insist():
                while True:
                    with contextlib.suppress(redis.RedisError):
                        await connection.subscribe(forbidden)

            # The refused channel is asked for before the other one, also on the next line.
            insisting = [asyncio.ensure_future(insist())]
            await asyncio.sleep(1.5)
            insisting.append(asyncio.ensure_future(insist()))
            await connection.subscribe(allowed)
            heard = connection._wishes[allowed].heard
            await asyncio.to_thread(node.run, "CLIENT", "KILL", "TYPE", "pubsub")
            await wait_for_async(lambda: not heard.is_set(), "the line was cut")
            await wait_for_async(heard.is_set, "the channel is heard again")
            for task in insisting:
                task.cancel()
            await connection.flush()

        asyncio.run(outlive())

    def test_groups_go_on_while_the_node_with_the_rules_is_away(self):
        cluster = self.start()
        rules = cluster.master_of("lockgate:acme:groups")
        other = next(node for node in cluster.nodes if node is not rules)
        group = next(f"chat_{n}" for n in range(100) if cluster.master_of(channel_of(f"chat_{n}")) is other)
        ttl, layers.RULES_TTL = layers.RULES_TTL, 0
        self.addCleanup(setattr, layers, "RULES_TTL", ttl)

        async def send():
            async with Consumers(cluster, [group]) as consumers:
                await consumers.layer.group_send(group, event(0))
                rules.kill()
                await consumers.layer.group_send(group, event(1))

        asyncio.run(send())
        self.assertEqual(other.run("XLEN", f"lockgate:acme:history:{{{channel_of(group)}}}"), 2)

    def test_revocations_follow_a_slot_that_is_on_its_way(self):
        cluster = self.start()
        key = "lockgate:acme:deny:user:7"
        target = next(node for node in cluster.nodes if node is not cluster.master_of(key))
        self.use(cluster.url)
        begin_to_move(cluster, key, target)
        lockgate.revoke_user("7", issued_before=1_600_000_000)
        lockgate.revoke_user("7", issued_before=1_700_000_000)
        lockgate.revoke_user("7", issued_before=1_650_000_000)
        move(cluster, key, target)
        self.assertEqual(target.run("GET", key), b"1700000000")

    def test_commands_of_the_layer_follow_a_slot_that_is_on_its_way(self):
        cluster = self.start()
        group = "chat_1"
        target = next(node for node in cluster.nodes if node is not cluster.master_of(channel_of(group)))
        begin_to_move(cluster, channel_of(group), target)

        async def send():
            async with Consumers(cluster, []) as consumers:
                await consumers.layer.group_send("news", event(0))
                shard = consumers.layer._shards[0]
                await shard.execute("SET", channel_of(group), "1")
                return await shard.execute("GETRANGE", channel_of(group), 0, 9)

        self.assertEqual(asyncio.run(send()), b"1")
        self.assertEqual(target.run("CLUSTER", "COUNTKEYSINSLOT", key_slot(channel_of(group).encode())), 1)

    def test_revocations_go_on_after_a_stopped_master_was_replaced(self):
        cluster = self.start(replicas=1)
        stopped = cluster.nodes[0]
        user = next(str(n) for n in range(1000) if cluster.master_of(f"lockgate:acme:deny:user:{n}") is stopped)
        # The announcement goes to another shard.
        self.assertIsNot(cluster.master_of("lockgate:acme:control"), stopped)
        self.use(cluster.url)
        lockgate.revoke_user(user, issued_before=1_600_000_000)
        stopped.freeze()
        with self.assertRaises(lockgate.NotRevoked):
            lockgate.revoke_user(user, issued_before=1_700_000_000)
        replica = cluster.nodes[3]
        redis_server.wait_for(lambda: b"role:master" in replica.run("INFO", "replication"), "the replica takes over")
        redis_server.wait_for(lambda: cluster.master_of(f"lockgate:acme:deny:user:{user}") is replica, "all know it")
        lockgate.revoke_user(user, issued_before=1_700_000_000)
        self.assertEqual(replica.run("GET", f"lockgate:acme:deny:user:{user}"), b"1700000000")

    def test_without_the_cluster_a_revocation_is_refused_and_a_change_logged(self):
        cluster = self.start()
        for known in (False, True):
            with self.subTest(known=known):
                self.use(cluster.url)
                if known:
                    lockgate.revoke_user("7")
                for node in cluster.nodes:
                    node.kill()
                with self.assertRaises(lockgate.NotRevoked):
                    lockgate.revoke_user("7")
                with self.assertLogs("lockgate", "ERROR") as logs:
                    lockgate.invalidate("7")
                self.assertEqual(len(logs.records), 1)
                for node in cluster.nodes:
                    node.start()
                cluster.wait_until_whole()

    def test_a_cluster_with_tls_is_trusted_by_its_authority_alone(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        key, certificate = (str(Path(folder.name, name)) for name in ("key.pem", "cert.pem"))
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        make += ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
        subprocess.run(make, check=True, capture_output=True)
        tls = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate, "tls-auth-clients": "no"}
        cluster = self.start(tls=tls)
        plain = cluster.url
        self.use(plain)
        with self.assertRaises(lockgate.NotRevoked):
            lockgate.revoke_user("7")
        cluster.url = f"{plain}?ssl_ca_certs={certificate}"
        self.use(cluster.url)
        lockgate.revoke_user("7", issued_before=1_700_000_000)
        key = "lockgate:acme:deny:user:7"
        self.assertEqual(cluster.master_of(key).run("GET", key), b"1700000000")

        async def talk():
            async with Consumers(cluster, ["news"]) as consumers:
                await consumers.until_heard("news")

        asyncio.run(talk())
