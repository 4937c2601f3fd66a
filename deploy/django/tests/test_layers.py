"""The layer class that records, against a real Redis with the function and the rules that the gateway puts there."""

import asyncio
import hashlib
import json
from pathlib import Path
from unittest import mock

import redis
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import channel_layers, get_channel_layer
from channels_redis import pubsub
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

from lockgate import layers

from . import redis_server

LUA = (Path(__file__).parents[3] / "src/channel_layer/recorded/history.lua").read_text()
SCRIPT = f"{LUA}\nreturn record(KEYS, ARGV)"
LIBRARY = f"#!lua name=lockgate\n{LUA}\nredis.register_function('lockgate_record', record)"
RULES = [
    {"regex": "quiet\\-[-a-zA-Z0-9_]+", "size": 0, "ttl_ms": 0},
    {"regex": "chat\\_[^/]+", "size": 3, "ttl_ms": 60000},
]
# Three hosts: three databases of one server, whose channels are the same.
HOSTS = [0, 1, 2]


def event(n):
    return {"type": "chat.message", "n": n, "text": "grüß dich", "__like_ours": 1}


class Refusals(SimpleTestCase):
    """The words of servers that are not at hand: no server is asked."""

    def test_what_may_not_be_called_is_told_apart_from_other_refusals(self):
        for words, denied in [
            ("NOPERM User a has no permissions to run the 'fcall' command", True),
            # Redis 7.0, then 7.2 and Valkey.
            ("The user executing the script can't run this command or subcommand script: 9", True),
            ("ACL failure in script: User a has no permissions to run the 'xadd' command", True),
            ("ACL failure in script: No permissions to access a key", True),
            ("ACL failure in script: No permissions to access a channel", True),
            ("unknown command 'FCALL', with args beginning with: ...", False),
            ("Function not found", False),
            ("OOM command not allowed when used memory > 'maxmemory'.", False),
            ("READONLY You can't write against a read only replica.", False),
        ]:
            with self.subTest(words):
                advice = layers._advice(redis.ResponseError(words), "acme")
                self.assertEqual("doctor --acl --tenant acme" in advice, denied, advice)

    def test_the_missing_right_is_named_where_the_server_has_no_functions(self):
        layer = layers.RedisPubSubChannelLayer(tenant="acme")
        rules = layers.Rules(json.dumps({"v": 1, "record": "f" * 40, "groups": RULES}))
        asked = []

        async def refuse(shard, command, *rest):
            asked.append(command)
            before_redis_7 = "unknown command 'FCALL', with args beginning with: ..."
            raise redis.ResponseError({"FCALL": before_redis_7}.get(command, "NOPERM this user has no permissions to run 'evalsha'"))

        with mock.patch.object(layers, "_execute", refuse), self.assertRaises(layers.NotRecorded) as refused:
            asyncio.run(layer._record(None, ("acme", rules), (3, 60000), "acme__group__chat_a", event(1)))
        self.assertEqual(asked, ["FCALL", "EVALSHA"])
        self.assertIn("not sent: NOPERM this user has no permissions to run 'evalsha'", str(refused.exception))
        self.assertIn("doctor --acl --tenant acme", str(refused.exception))


class Layers(SimpleTestCase):
    def setUp(self):
        self.url = redis_server.start().removesuffix("/0")
        self.redis = [redis.Redis.from_url(f"{self.url}/{db}") for db in HOSTS]
        self.redis[0].flushall()
        self.redis[0].config_set("maxmemory", 0)
        self.redis[0].execute_command("SCRIPT", "FLUSH")
        self.redis[0].execute_command("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        self.redis[0].script_load(SCRIPT)
        self.rule(RULES)
        for server in self.redis:
            self.addCleanup(server.close)
        ttl = layers.RULES_TTL
        self.addCleanup(setattr, layers, "RULES_TTL", ttl)

    def rule(self, groups, version=1):
        sha = hashlib.sha1(SCRIPT.encode()).hexdigest()
        for server in self.redis:
            server.set("lockgate:acme:groups", json.dumps({"v": version, "record": sha, "groups": groups}))

    def layer(self, hosts=HOSTS[:1], user="", **config):
        address = self.url.replace("redis://", f"redis://{user}")
        config = {"hosts": [f"{address}/{db}" for db in hosts], "prefix": "acme", "tenant": "acme", **config}
        return layers.RedisPubSubChannelLayer(**config)

    def kept(self, group):
        """The offsets of a group's history, wherever it lies, and the newest one."""
        stream, position = (f"lockgate:acme:{kind}:{{acme__group__{group}}}" for kind in ("history", "position"))
        entries = [entry for server in self.redis for entry, _ in server.xrange(stream)]
        newest = [server.hget(position, "offset") for server in self.redis]
        return [int(entry.split(b"-")[0]) for entry in entries], sum(int(offset or 0) for offset in newest)

    def heard(self, layer, group, send, count):
        """What a consumer of Channels on a layer of its own gets while `send` runs."""

        async def run():
            other = pubsub.RedisPubSubChannelLayer(*layer._args, **layer._kwargs)
            other._serializer = layer._serializer
            channel = await other.new_channel()
            await other.group_add(group, channel)
            await send()
            heard = [await asyncio.wait_for(other.receive(channel), 5) for _ in range(count)]
            # Nothing comes twice: what is sent to the channel itself arrives behind it.
            await other.send(channel, {"type": "mark"})
            heard.append(await asyncio.wait_for(other.receive(channel), 5))
            await other.flush()
            await layer.flush()
            return heard

        heard = asyncio.run(run())
        self.assertEqual(heard.pop(), {"type": "mark"})
        return heard

    def test_events_are_recorded_and_consumers_get_them_once_and_unchanged(self):
        for config in [{}, {"serializer_format": "json"}, {"symmetric_encryption_keys": ["a", "b"]}]:
            for hosts in [HOSTS[:1], HOSTS]:
                with self.subTest(config=config, hosts=hosts):
                    for server in self.redis:
                        for key in server.keys("lockgate:acme:*:*"):
                            server.delete(key)
                    layer = self.layer(hosts, **config)
                    for group in ["chat_a", "chat_b", "chat_c"]:

                        async def send(group=group):
                            for n in range(5):
                                await layer.group_send(group, event(n))

                        self.assertEqual(self.heard(layer, group, send, 5), [event(n) for n in range(5)])
                        self.assertEqual(self.kept(group), ([3, 4, 5], 5))

    def test_other_groups_are_sent_as_channels_sends_them(self):
        layer = self.layer()
        for group in ["quiet-a", "news", "chat_/", "chat_a\n/"]:

            async def send(group=group):
                await layer.group_send(group, event(1))

            self.assertEqual(self.heard(layer, group, send, 1), [event(1)])
        self.assertEqual(self.redis[0].keys("lockgate:acme:*:*"), [])

    def test_tenants_of_one_layer_are_told_apart_by_their_namespaces(self):
        rules = json.loads(self.redis[0].get("lockgate:acme:groups"))
        for rule in rules["groups"]:
            rule["regex"] = "globex\\." + rule["regex"]
        self.redis[0].set("lockgate:globex:groups", json.dumps(rules))
        for tenants in [{"acme.": "acme", "globex.": "globex"}, lambda group: group.partition(".")[0]]:
            layer = self.layer(tenant=None, tenants=tenants)
            for group, recorded in [("globex.chat_a", True), ("acme.chat_a", False), ("chat_a", False), ("A.chat_a", False)]:

                async def send(group=group):
                    await layer.group_send(group, event(1))

                self.assertEqual(self.heard(layer, group, send, 1), [event(1)])
                keys = [f"lockgate:globex:{kind}:{{acme__group__{group}}}".encode() for kind in ("history", "position")]
                self.assertEqual(sorted(self.redis[0].keys("lockgate:*:*:*")), keys if recorded else [])
                self.redis[0].delete(*keys)
        for tenants in [{"acme.": "A"}, {"acme.": None}, {"a": "acme", "ab": "globex"}, {"": "acme", "b.": "globex"}]:
            with self.assertRaises(ImproperlyConfigured):
                self.layer(tenant=None, tenants=tenants)

    def test_synchronous_code_records_too(self):
        with override_settings(
            CHANNEL_LAYERS={
                "default": {
                    "BACKEND": "lockgate.layers.RedisPubSubChannelLayer",
                    "CONFIG": {"hosts": [f"{self.url}/0"], "prefix": "acme"},
                }
            },
            LOCKGATE={"TENANT": "acme", "REDIS_URL": f"{self.url}/0"},
        ):
            channel_layers.backends = {}
            self.addCleanup(setattr, channel_layers, "backends", {})
            for n in range(4):
                # Each call has an event loop of its own.
                async_to_sync(get_channel_layer().group_send)("chat_sync", event(n))
        self.assertEqual(self.kept("chat_sync"), ([2, 3, 4], 4))

    def test_sends_at_once_are_recorded_once_each(self):
        layer = self.layer(HOSTS)

        async def send():
            await asyncio.gather(*(layer.group_send("chat_a", event(n)) for n in range(200)))

        heard = self.heard(layer, "chat_a", send, 200)
        self.assertEqual(sorted(message["n"] for message in heard), list(range(200)))
        self.assertEqual(self.kept("chat_a"), ([198, 199, 200], 200))

    def test_the_rules_are_read_again(self):
        layers.RULES_TTL = 0
        layer = self.layer()

        async def send():
            await layer.group_send("news", event(0))
            self.rule([{"regex": "news", "size": 10, "ttl_ms": 1000}])
            await layer.group_send("news", event(1))
            self.redis[0].delete("lockgate:acme:groups")
            await layer.group_send("news", event(2))

        self.assertEqual(self.heard(layer, "news", send, 3), [event(n) for n in range(3)])
        self.assertEqual(self.kept("news"), ([1], 1))

    def test_without_a_function_the_script_is_called_and_without_both_nothing_is_sent(self):
        self.redis[0].execute_command("FUNCTION", "FLUSH")
        layer = self.layer()

        async def send():
            await layer.group_send("chat_a", event(0))
            self.redis[0].execute_command("SCRIPT", "FLUSH")
            with self.assertRaisesMessage(layers.NotRecorded, "was not sent"):
                await layer.group_send("chat_a", event(1))
            # Without rules no gateway keeps the events of any group.
            layers.RULES_TTL = 0
            self.redis[0].delete("lockgate:acme:groups")
            await layer.group_send("chat_a", event(2))

        self.assertEqual(self.heard(layer, "chat_a", send, 2), [event(0), event(2)])
        self.assertEqual(self.kept("chat_a"), ([1], 1))

    def test_a_user_without_the_rights_is_told_which_and_sends_to_other_groups(self):
        own = "~lockgate:acme:history:* ~lockgate:acme:position:* %R~lockgate:acme:groups &acme__group__* &acmespecific.*"
        writes = "+object|encoding +hstrlen +hmget +hset +xadd +xdel +xrange +pexpire +unlink +time"
        basic = "+publish +subscribe +unsubscribe +getrange +ping +hello +select +client|setname"
        apart = f"(~lockgate:acme:history:* ~lockgate:acme:position:* &lockgate:acme:group:* -@all +fcall +publish {writes})"
        for rights, missing in [
            (f"%R~lockgate:acme:groups &acme__group__* &acmespecific.* {apart}", None),
            (f"{own} &lockgate:acme:group:* +fcall {writes}", None),
            (f"{own} &lockgate:acme:group:* +evalsha {writes}", None),
            # No right to the channel of the gateways, to a command of the function, to any function.
            (f"{own} +fcall {writes}", "."),
            (f"{own} &lockgate:acme:group:* +fcall {writes} -xadd", "."),
            (f"{own} &lockgate:acme:group:* {writes}", "fcall"),
        ]:
            with self.subTest(rights=rights):
                words = f"ACL SETUSER back_end reset on >p resetchannels -@all {basic} {rights}".split()
                self.redis[0].execute_command(*words)
                self.redis[0].delete(*(self.redis[0].keys("lockgate:acme:*:*") or ["none"]))
                layer = self.layer(user="back_end:p@")

                async def send():
                    await layer.group_send("chat_a", event(1))

                async def send_to_others():
                    await layer.group_send("news", event(2))

                if missing:
                    # Each call is refused, in synchronous code too, and Channels' consumers hear none of it.
                    def refused():
                        with self.assertRaises(layers.NotRecorded) as refusal:
                            async_to_sync(layer.group_send)("chat_a", event(1))
                        for words in ["was not sent", missing, "lockgate doctor --acl --tenant acme"]:
                            self.assertIn(words, str(refusal.exception))

                    async def twice():
                        await sync_to_async(refused)()
                        await sync_to_async(refused)()

                    self.assertEqual(self.heard(self.layer(), "chat_a", twice, 0), [])
                else:
                    asyncio.run(send())
                self.assertEqual(self.kept("chat_a"), ([], 0) if missing else ([1], 1))
                self.assertEqual(self.heard(self.layer(), "news", send_to_others, 1), [event(2)])

    def test_a_user_who_may_not_read_the_rules_sends_as_channels_does(self):
        rights = "~lockgate:acme:history:* ~lockgate:acme:position:* &acme__group__* &lockgate:acme:group:* +fcall +publish"
        words = f"ACL SETUSER back_end reset on >p resetchannels -@all +getrange +ping +hello +select +client|setname {rights}"
        self.redis[0].execute_command(*words.split())
        layer = self.layer(user="back_end:p@")
        with self.assertLogs("lockgate", "WARNING"):
            asyncio.run(layer.group_send("chat_a", event(1)))
        self.assertEqual(self.kept("chat_a"), ([], 0))

    def test_a_refused_write_is_raised_and_nothing_is_sent(self):
        layer = self.layer()

        async def send():
            await layer.group_send("chat_a", event(0))
            self.redis[0].config_set("maxmemory", 1)
            with self.assertRaisesMessage(redis.ResponseError, "was not sent: "):
                await layer.group_send("chat_a", event(1))
            await layer.group_send("news", event(2))
            self.redis[0].config_set("maxmemory", 0)
            await layer.group_send("chat_a", event(3))

        self.assertEqual(self.heard(layer, "chat_a", send, 2), [event(0), event(3)])
        self.assertEqual(self.kept("chat_a"), ([1, 2], 2))

    def test_rules_that_are_none_stop_nothing(self):
        texts = ["", "{", "[]", "7", '{"v":2,"groups":[]}', '{"v":1}', '{"v":1,"record":"x","groups":[{"regex":"("}]}']
        for text in [*texts, '{"v":1,"record":"x","groups":[{"regex":"(","size":1,"ttl_ms":1}]}', "\x00"]:
            with self.subTest(text=text):
                self.redis[0].set("lockgate:acme:groups", text)
                layer = self.layer()

                async def send():
                    await layer.group_send("chat_a", event(0))

                with self.assertLogs("lockgate", "WARNING") if text else self.assertNoLogs("lockgate", "WARNING"):
                    self.assertEqual(self.heard(layer, "chat_a", send, 1), [event(0)])
        self.redis[0].delete("lockgate:acme:groups")
        self.redis[0].rpush("lockgate:acme:groups", "a list")
        layer = self.layer()
        with self.assertLogs("lockgate", "WARNING"):
            asyncio.run(layer.group_send("chat_a", event(0)))

    def test_a_layer_without_a_tenant_is_a_mistake(self):
        for conf in [None, {}, {"TENANT": "No Name"}]:
            with override_settings(LOCKGATE=conf), self.assertRaisesMessage(ImproperlyConfigured, 'LOCKGATE["TENANT"]'):
                layers.RedisPubSubChannelLayer(hosts=[f"{self.url}/0"])
