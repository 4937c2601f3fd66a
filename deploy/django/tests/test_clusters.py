"""Revocations and the channel layer on a Redis Cluster of three masters."""

import asyncio
import hashlib
import json

from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

import lockgate
from lockgate import clusters, layers

from . import redis_server
from .test_layers import LUA, RULES, event

SOURCE = LUA.read_text().replace("'PUBLISH'", "'SPUBLISH'")
SCRIPT = f"{SOURCE}\nreturn record(KEYS, ARGV)"
LIBRARY = f"#!lua name=lockgate\n{SOURCE}\nredis.register_function('lockgate_record', record)"
# Enough names that every master has some.
GROUPS = [f"chat_{n}" for n in range(12)]


class Clusters(SimpleTestCase):
    def setUp(self):
        self.url = redis_server.start_cluster()
        self.cluster = clusters.client(self.url)
        self.addCleanup(self.cluster.close)
        for node in self.cluster.get_primaries():
            server = self.cluster.get_redis_connection(node)
            server.flushall()
            server.execute_command("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        sha = hashlib.sha1(SCRIPT.encode()).hexdigest()
        self.cluster.set("lockgate:acme:groups", json.dumps({"v": 1, "record": sha, "groups": RULES}))

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
        lockgate.config.cache_clear()
        lockgate.connect.cache_clear()
        self.addCleanup(lockgate.config.cache_clear)
        self.addCleanup(lockgate.connect.cache_clear)
        users = [str(n) for n in range(12)]
        keys = [f"lockgate:acme:deny:user:{user}" for user in users]
        self.assertEqual(len(self.nodes_of(keys)), 3)
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": self.url}):
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

    def test_wrong_urls_are_refused_in_words_that_help(self):
        for hosts in [["redis://h:1"], [self.url, self.url], self.url, []]:
            with self.subTest(hosts=hosts), self.assertRaisesMessage(ImproperlyConfigured, "redis+cluster://HOST:PORT,HOST:PORT"):
                layers.RedisClusterChannelLayer(hosts=hosts, tenant="acme")
        for url in ["redis+cluster://u:hunter2@h:1/2", "redis+cluster://u:hunter2@h:x", "redis+cluster://u:hunter2@"]:
            with self.subTest(url=url), self.assertRaises(ValueError) as refused:
                clusters.client(url)
            self.assertNotIn("hunter2", str(refused.exception))
