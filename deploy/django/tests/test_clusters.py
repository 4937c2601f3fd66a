"""Revocations and the channel layer on a Redis Cluster of three masters."""

import asyncio
import hashlib
import json
from unittest import mock

import redis
import redis.cluster
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

import lockgate
from lockgate import layers

from . import redis_server
from .test_layers import LUA, RULES, event

SOURCE = LUA.replace("'PUBLISH'", "'SPUBLISH'")
SCRIPT = f"{SOURCE}\nreturn record(KEYS, ARGV)"
LIBRARY = f"#!lua name=lockgate\n{SOURCE}\nredis.register_function('lockgate_record', record)"
# Enough names that every master has some.
GROUPS = [f"chat_{n}" for n in range(12)]


def prepare(cluster):
    """Empties a cluster, and puts there what the gateway does."""
    for node in cluster.nodes[:3]:
        node.run("FLUSHALL")
        node.run("FUNCTION", "LOAD", "REPLACE", LIBRARY)
    sha = hashlib.sha1(SCRIPT.encode()).hexdigest()
    rules = json.dumps({"v": 1, "record": sha, "groups": RULES})
    cluster.master_of("lockgate:acme:groups").run("SET", "lockgate:acme:groups", rules)


class WithSettings:
    """For test cases: `self.use(url)` lets the app speak to this Redis."""

    def use(self, url, **conf):
        overridden = override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": url, **conf})
        overridden.enable()
        # The app is not installed here, and forgets by hand.
        for cached in (lockgate.config, lockgate.connect):
            cached.cache_clear()
            self.addCleanup(cached.cache_clear)
        self.addCleanup(overridden.disable)


class Clusters(WithSettings, SimpleTestCase):
    def setUp(self):
        server = redis_server.start_cluster()
        prepare(server)
        self.nodes, self.url = server.nodes, server.url
        seed = redis.cluster.ClusterNode("127.0.0.1", server.nodes[0].port)
        self.cluster = redis.cluster.RedisCluster(startup_nodes=[seed])
        self.addCleanup(self.cluster.close)

    def nodes_of(self, keys):
        return {self.cluster.get_node_from_key(key).name for key in keys}

    def test_events_of_all_shards_are_recorded_and_consumers_get_them_once(self):
        self.assertEqual(len(self.nodes_of(f"acme__group__{group}" for group in GROUPS)), 3)
        for config in [{}, {"serializer_format": "json"}, {"symmetric_encryption_keys": ["a"]}]:
            with self.subTest(config=config):
                config = {"hosts": [self.url], "prefix": "acme", "tenant": "acme", **config}
                heard = asyncio.run(self.talk(layers.RedisClusterChannelLayer(**config), GROUPS + ["quiet-a", "news"]))
                for group, events in heard.items():
                    self.assertEqual(events, [event(0), event(1), {"type": "mark"}], group)
        for group in GROUPS:
            stream = f"lockgate:acme:history:{{acme__group__{group}}}"
            # Three configurations sent two events each, and the rule keeps three.
            self.assertEqual(self.cluster.xlen(stream), 3, group)

    async def talk(self, layer, groups):
        """What a consumer in each group gets: two events of the group, and one sent to the consumer's own channel."""
        heard = {}
        for group in groups:
            channel = await layer.new_channel()
            await layer.group_add(group, channel)
            await layer.group_send(group, event(0))
            await layer.group_send(group, event(1))
            heard[group] = [await asyncio.wait_for(layer.receive(channel), 20) for _ in range(2)]
            await layer.send(channel, {"type": "mark"})
            heard[group].append(await asyncio.wait_for(layer.receive(channel), 20))
            await layer.group_discard(group, channel)
        await layer.flush()
        return heard

    def test_a_consumer_follows_the_slot_of_its_group(self):
        slot = self.cluster.keyslot("acme__group__news")
        before = self.cluster.get_node_from_key("acme__group__news")
        after = next(node for node in self.cluster.get_primaries() if node.name != before.name)
        self.move(slot, before, after)
        self.addCleanup(self.move, slot, after, before)
        self.addCleanup(self.cluster.nodes_manager.initialize)

        async def follow():
            layer = layers.RedisClusterChannelLayer(hosts=[self.url], prefix="acme", tenant="acme")
            channel = await layer.new_channel()
            await layer.group_add("news", channel)
            await layer.group_send("news", event(0))
            first = await asyncio.wait_for(layer.receive(channel), 20)
            await asyncio.to_thread(self.move, slot, after, before)
            waiting = asyncio.ensure_future(layer.receive(channel))
            # What is sent before the channel is subscribed again does not arrive.
            for n in range(1, 1000):
                await layer.group_send("news", event(n))
                done, _ = await asyncio.wait([waiting], timeout=0.05)
                if done:
                    break
            again = await asyncio.wait_for(waiting, 5)
            await layer.flush()
            return first, again

        first, again = asyncio.run(follow())
        self.assertEqual(first, event(0))
        self.assertEqual(again["type"], "chat.message")
        self.assertGreater(again["n"], 0)

    def move(self, slot, source, target):
        """Moves an empty slot from one master to another."""
        source, target = (self.cluster.get_redis_connection(node) for node in (source, target))
        owner = target.execute_command("CLUSTER", "MYID")
        for node in (target, source):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner)

    def test_revocations_lie_on_the_node_of_their_key_and_are_announced(self):
        control = self.cluster.pubsub()
        control.ssubscribe("lockgate:acme:control")
        self.addCleanup(control.close)
        users = [str(n) for n in range(12)]
        keys = [f"lockgate:acme:deny:user:{user}" for user in users]
        self.assertEqual(len(self.nodes_of(keys)), 3)
        self.use(self.url)
        for user in users:
            lockgate.revoke_user(user, issued_before=1_700_000_000)
            lockgate.revoke_user(user, issued_before=1_600_000_000)
        lockgate.invalidate("7")
        for key in keys:
            self.assertEqual(self.cluster.get(key), b"1700000000")
        self.assertIsNotNone(self.cluster.get("lockgate:acme:usergen:7"))
        announced = []
        while len(announced) < 25:
            message = control.get_sharded_message(timeout=20)
            self.assertIsNotNone(message)
            if message["type"] == "smessage":
                announced.append(json.loads(message["data"]))
        self.assertEqual([message["op"] for message in announced], ["revoke"] * 24 + ["invalidate"])

    def test_a_call_from_synchronous_code_reads_the_map_once_for_all(self):
        def counted(command):
            stats = [node.client.info("commandstats") for node in self.nodes]
            return sum(stat.get(f"cmdstat_{command}", {"calls": 0})["calls"] for stat in stats)

        spoken = layers.RedisClusterChannelLayer(hosts=[self.url], prefix="acme", tenant="acme")
        before = counted("cluster|slots"), counted("command")
        for n in range(5):
            # Each call has an event loop of its own.
            async_to_sync(spoken.group_send)("chat_1", event(n))
        self.assertEqual(counted("fcall"), 5)
        self.assertEqual((counted("cluster|slots"), counted("command")), (before[0] + 1, before[1]))

    def test_an_old_redis_py_is_refused(self):
        self.use(self.url)
        with mock.patch("redis.__version__", "5.3.1"), self.assertRaisesMessage(ImproperlyConfigured, "needs redis-py 6.0"):
            lockgate.config()

    def test_wrong_urls_are_refused_in_words_that_help(self):
        for hosts in [["redis://h:1"], [self.url, self.url], self.url, []]:
            with self.subTest(hosts=hosts), self.assertRaisesMessage(ImproperlyConfigured, "redis+cluster://HOST:PORT,HOST:PORT"):
                layers.RedisClusterChannelLayer(hosts=hosts, tenant="acme")
        for rest, word in [
            ("h:1/2", "no database number"),
            ("h:x", "HOST:PORT"),
            ("", "HOST:PORT"),
            ("h:1?ssl_ca_certs=/ca.pem", "rediss+cluster:// alone"),
            ("h:1?ca=/ca.pem", "ssl_ca_certs"),
        ]:
            url = f"redis+cluster://u:hunter2@{rest}"
            with self.subTest(rest=rest):
                with self.assertRaisesMessage(ImproperlyConfigured, word) as of_layer:
                    layers.RedisClusterChannelLayer(hosts=[url], tenant="acme")
                self.use(url)
                with self.assertRaisesMessage(ImproperlyConfigured, word) as of_app:
                    lockgate.config()
                self.assertIn('CONFIG["hosts"]', str(of_layer.exception))
                self.assertIn('LOCKGATE["REDIS_URL"]', str(of_app.exception))
                self.assertNotIn("hunter2", f"{of_layer.exception} {of_app.exception}")
