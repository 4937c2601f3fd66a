"""What the app writes to Redis, to the byte, and what it does where Redis does not answer."""

import concurrent.futures
import re
import time
import unittest
from datetime import datetime, timedelta, timezone
from unittest import mock

import jwt
import redis
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, TestCase, override_settings
from rest_framework_simplejwt import exceptions
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

import lockgate
from lockgate.apps import settings_check

from .models import Member
from .redis_server import WithRedis, start

# Nobody listens there.
NOWHERE = "redis://127.0.0.1:1/0"
DAY = 86400


class Tokens(WithRedis, TestCase):
    def setUp(self):
        super().setUp()
        self.user = User.objects.create_user("alice", password="a")
        self.token = AccessToken.for_user(self.user)
        self.jti, self.exp = self.token["jti"], self.token["exp"]

    def assert_denied(self, until):
        self.assertEqual(self.redis.keys("*"), [f"lockgate:acme:deny:jti:{self.jti}".encode()])
        self.assertEqual(self.redis.get(f"lockgate:acme:deny:jti:{self.jti}"), b"1")
        self.assertAlmostEqual(self.redis.expiretime(f"lockgate:acme:deny:jti:{self.jti}"), until, delta=2)
        self.assertEqual(self.heard(), [b'{"v":1,"op":"revoke","jti":"%s"}' % self.jti.encode()])

    def test_a_token_is_denied_until_a_minute_after_its_expiry(self):
        lockgate.revoke_token(self.token)
        self.assertEqual(self.redis.expiretime(f"lockgate:acme:deny:jti:{self.jti}"), self.exp + 60)
        self.assert_denied(self.exp + 60)

    def test_the_encoded_token_does_too(self):
        lockgate.revoke_token(str(self.token))
        self.assert_denied(self.exp + 60)

    def test_the_leeway_of_simplejwt_counts(self):
        with override_settings(SIMPLE_JWT={"LEEWAY": timedelta(seconds=90)}):
            lockgate.revoke_token(self.token)
        self.assert_denied(self.exp + 150)

    def test_a_fraction_of_a_leeway_is_rounded_up(self):
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": start(), "LEEWAY": 0.5}):
            lockgate.revoke_token(self.token)
        self.assertEqual(self.redis.expiretime(f"lockgate:acme:deny:jti:{self.jti}"), self.exp + 61)

    @unittest.skipUnless(hasattr(exceptions, "ExpiredTokenError"), "simplejwt before 5.4")
    def test_an_expired_token_is_denied_for_a_while(self):
        self.token.set_exp(lifetime=-timedelta(hours=1))
        lockgate.revoke_token(str(self.token))
        self.assert_denied(time.time() + 60)

    def test_where_sockets_outlive_tokens_their_denial_does_too(self):
        conf = {"TENANT": "acme", "REDIS_URL": start(), "ON_EXPIRY": "keep", "KEEP": timedelta(days=7)}
        with override_settings(LOCKGATE=conf):
            lockgate.revoke_token(self.token)
        self.assert_denied(time.time() + 7 * DAY)

    def test_a_strangers_token_revokes_nothing(self):
        forged = jwt.encode(self.token.payload, "another key of thirty-two bytes or more", "HS256")
        expired = jwt.encode({**self.token.payload, "exp": 1}, "another key of thirty-two bytes or more", "HS256")
        for token in [forged, expired, str(self.token)[:-3], "", "x"]:
            with self.assertRaises(TokenError):
                lockgate.revoke_token(token)
        self.assertEqual((self.redis.keys("*"), self.heard()), ([], []))

    def test_what_opens_no_socket_or_has_no_id_is_no_silent_success(self):
        without_id = AccessToken.for_user(self.user)
        del without_id["jti"]
        for token in [RefreshToken.for_user(self.user), str(RefreshToken.for_user(self.user)), without_id, None]:
            with self.assertRaises(ValueError):
                lockgate.revoke_token(token)
        with override_settings(SIMPLE_JWT={"JTI_CLAIM": None}), self.assertRaises(ValueError):
            lockgate.revoke_token(self.token)
        self.assertEqual((self.redis.keys("*"), self.heard()), ([], []))

    def test_a_logout_view_revokes_the_token_of_its_request(self):
        answer = self.client.post("/logout/", headers={"authorization": f"Bearer {self.token}"})
        self.assertEqual(answer.status_code, 204)
        self.assert_denied(self.exp + 60)
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": NOWHERE}):
            answer = self.client.post("/logout/", headers={"authorization": f"Bearer {self.token}"})
        self.assertEqual(answer.status_code, 503)


class Users(WithRedis, TestCase):
    key = "lockgate:acme:deny:user:7"

    def test_a_cut_off_is_unix_seconds_kept_for_a_month(self):
        before = int(time.time())
        lockgate.revoke_user(User(pk=7))
        cut_off = int(self.redis.get(self.key))
        self.assertTrue(before <= cut_off <= time.time())
        self.assertEqual(self.redis.keys("*"), [self.key.encode()])
        self.assertAlmostEqual(self.redis.expiretime(self.key), before + 30 * DAY, delta=3)
        self.assertEqual(self.heard(), [b'{"v":1,"op":"revoke","user_id":"7","issued_before":%d}' % cut_off])

    def test_a_cut_off_only_rises(self):
        for cut_off, stands in [(1000, b"1000"), (999, b"1000"), (1000, b"1000"), (1001.9, b"1001"), (-5, b"1001")]:
            lockgate.revoke_user("7", issued_before=cut_off)
            self.assertEqual(self.redis.get(self.key), stands)
        messages = [b'{"v":1,"op":"revoke","user_id":"7","issued_before":%d}' % value for value in (1000, 999, 1000, 1001, -5)]
        self.assertEqual(self.heard(), messages)

    def test_an_earlier_cut_off_does_not_shorten_the_life_of_a_later_one(self):
        self.redis.set(self.key, "2000.5", exat=int(time.time()) + 99 * DAY)
        until = self.redis.expiretime(self.key)
        lockgate.revoke_user(7, issued_before=2000)
        self.assertEqual((self.redis.get(self.key), self.redis.expiretime(self.key)), (b"2000.5", until))

    def test_what_is_no_cut_off_is_mended(self):
        self.redis.set(self.key, "soon")
        lockgate.revoke_user(7, issued_before=5)
        self.assertEqual(self.redis.get(self.key), b"5")

    def test_times_may_be_datetimes_and_milliseconds_are_a_mistake(self):
        lockgate.revoke_user(7, issued_before=datetime(2001, 9, 9, 1, 46, 40, 999, tzinfo=timezone.utc))
        self.assertEqual(self.redis.get(self.key), b"1000000000")
        for mistake in [time.time() * 1000, datetime(2001, 9, 9), time.time() + DAY + 100]:
            with self.assertRaises(ValueError):
                lockgate.revoke_user(7, issued_before=mistake)

    def test_ids_are_texts_as_the_gateway_prints_them(self):
        member = Member(id="6F9619FF8B86D011B42D00C04FC964FF")
        member.clean_fields(exclude=["password", "email"])
        self.assertEqual(lockgate.user_text(member), "6f9619ff-8b86-d011-b42d-00c04fc964ff")
        self.assertEqual(lockgate.user_text(7), "7")
        with override_settings(SIMPLE_JWT={"USER_ID_FIELD": "username"}):
            self.assertEqual(lockgate.user_text(User(pk=7, username="älice")), "älice")
        for nobody in [AnonymousUser(), User(), None, ""]:
            with self.assertRaises(ValueError):
                lockgate.revoke_user(nobody)

    def test_invalidation_writes_a_fresh_generation_first(self):
        generations = set()
        for _ in range(2):
            lockgate.invalidate(User(pk=7))
            self.assertEqual(self.redis.keys("*"), [b"lockgate:acme:usergen:7"])
            self.assertAlmostEqual(self.redis.ttl("lockgate:acme:usergen:7"), 7200, delta=2)
            generations.add(self.redis.get("lockgate:acme:usergen:7"))
            self.assertEqual(self.heard(), [b'{"v":1,"op":"invalidate","user_id":"7"}'])
        self.assertEqual(len(generations), 2)
        self.assertTrue(all(re.fullmatch(b"[0-9a-f]{16}", text) for text in generations))

    def test_each_schema_is_a_tenant(self):
        schema = "globex"
        with override_settings(LOCKGATE={"TENANT": lambda: schema, "REDIS_URL": start()}):
            lockgate.revoke_user(7, issued_before=5)
            schema = "initech"
            lockgate.invalidate(7)
            self.assertEqual(sorted(self.redis.keys("*")), [b"lockgate:globex:deny:user:7", b"lockgate:initech:usergen:7"])
            for schema in ["_public", None]:
                with self.assertRaises(ImproperlyConfigured):
                    lockgate.revoke_user(7)

    def test_a_tenant_may_be_named(self):
        lockgate.revoke_user(7, issued_before=5, tenant="globex")
        lockgate.revoke_token(AccessToken.for_user(User(pk=7)), tenant="globex")
        lockgate.invalidate(7, tenant="globex")
        self.assertEqual(len(self.redis.keys("lockgate:globex:*")), 3)
        self.assertEqual(self.redis.keys("lockgate:acme:*"), [])
        for name in ["Globex", "", "a b"]:
            with self.assertRaises(ImproperlyConfigured):
                lockgate.revoke_user(7, tenant=name)

    def test_groups_of_open_sockets(self):
        self.assertEqual(lockgate.group_add(User(pk=7), "room_7"), 1)
        lockgate.group_discard(7, "room_7")
        heard = [b'{"v":1,"op":"group_%s","user_id":"7","group":"room_7"}' % op for op in [b"add", b"discard"]]
        self.assertEqual(self.heard(), heard)


class Places(WithRedis, TestCase):
    """The keys that are written, and the error without a Redis."""

    def test_the_denylist_may_have_a_redis_of_its_own(self):
        other = redis.Redis.from_url(start().replace("/0", "/1"))
        self.addCleanup(other.close)
        conf = {"TENANT": "acme", "REDIS_URL": start(), "DENYLIST_URL": start().replace("/0", "/1")}
        with override_settings(LOCKGATE=conf):
            lockgate.revoke_user(7, issued_before=5)
            lockgate.invalidate(7)
        self.assertEqual(other.keys("*"), [b"lockgate:acme:deny:user:7"])
        self.assertEqual(self.redis.keys("*"), [b"lockgate:acme:usergen:7"])
        self.assertEqual(len(self.heard()), 2)

    def test_what_cannot_be_stored_raises_and_is_not_announced(self):
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": start(), "DENYLIST_URL": NOWHERE}):
            with self.assertRaises(lockgate.NotRevoked) as raised:
                lockgate.revoke_user(7)
        self.assertIsInstance(raised.exception.__cause__, redis.ConnectionError)
        self.assertEqual(self.heard(), [])

    def test_what_cannot_be_announced_raises(self):
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": NOWHERE, "DENYLIST_URL": start()}):
            with self.assertRaises(lockgate.NotRevoked):
                lockgate.revoke_user(7)
        self.assertEqual(self.redis.exists("lockgate:acme:deny:user:7"), 1)

    def test_too_few_acknowledgements_raise(self):
        conf = {"TENANT": "acme", "REDIS_URL": start(), "DENYLIST_REPLICAS": 1, "TIMEOUT": 0.5}
        with override_settings(LOCKGATE=conf), self.assertRaisesMessage(lockgate.NotRevoked, "fewer than 1"):
            lockgate.revoke_user(7)
        self.assertEqual(self.heard(), [])

    def test_a_redis_that_refuses_raises(self):
        self.redis.config_set("maxmemory", 1)
        self.addCleanup(self.redis.config_set, "maxmemory", 0)
        with self.assertRaises(lockgate.NotRevoked):
            lockgate.revoke_user(7)
        self.assertEqual(self.heard(), [])

    def test_an_invalidation_that_fails_is_logged(self):
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": NOWHERE}):
            with self.assertLogs("lockgate", "ERROR") as logged:
                lockgate.invalidate(7)
        self.assertIn("Could not tell Lockgate of a changed user", logged.output[0])

    def test_a_connection_that_died_while_idle_is_replaced(self):
        lockgate.revoke_user(7, issued_before=5)
        self.redis.client_kill_filter(_type="normal", skipme=True)
        lockgate.revoke_user(7, issued_before=6)
        self.assertEqual(self.redis.get("lockgate:acme:deny:user:7"), b"6")

    def test_sentinels_are_asked_for_the_master(self):
        entry = {"sentinels": [("127.0.0.1", 26379)], "master_name": "m", "db": 1, "password": "p", "sentinel_kwargs": {"password": "s"}}
        with override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": entry}):
            with mock.patch.object(redis.Sentinel, "discover_master", return_value=("10.0.0.1", 6379)):
                pool = lockgate.connect("REDIS_URL").connection_pool
                self.assertEqual((pool.service_name, pool.get_master_address()), ("m", ("10.0.0.1", 6379)))
                self.assertEqual((pool.connection_kwargs["db"], pool.connection_kwargs["password"]), (1, "p"))
                sentinel = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs
                self.assertEqual((sentinel["password"], sentinel["socket_timeout"]), ("s", 1))


class Settings(SimpleTestCase):
    def test_mistakes_are_told_by_name(self):
        good = {"TENANT": "acme", "REDIS_URL": NOWHERE}
        for conf, told in [
            (None, "must be a dict"),
            ({}, 'LOCKGATE["TENANT"]'),
            (good | {"TENANT": "Acme"}, 'LOCKGATE["TENANT"]'),
            (good | {"TENANT": "acme:x"}, 'LOCKGATE["TENANT"]'),
            ({"TENANT": "acme"}, 'LOCKGATE["REDIS_URL"]'),
            (good | {"REDIS_URL": "127.0.0.1:6379"}, 'LOCKGATE["REDIS_URL"]'),
            (good | {"REDIS_URL": {"host": "x"}}, 'LOCKGATE["REDIS_URL"]'),
            (good | {"DENYLIST_URL": ""}, 'LOCKGATE["DENYLIST_URL"]'),
            (good | {"STALE_TTL": "1h"}, 'LOCKGATE["STALE_TTL"]'),
            (good | {"STALE_TTL": 0}, 'LOCKGATE["STALE_TTL"]'),
            (good | {"KEEP": None}, 'LOCKGATE["KEEP"]'),
            (good | {"TIMEOUT": float("nan")}, 'LOCKGATE["TIMEOUT"]'),
            (good | {"ON_EXPIRY": "stay"}, 'LOCKGATE["ON_EXPIRY"]'),
            (good | {"REDIS": NOWHERE}, "LOCKGATE has no 'REDIS'"),
        ]:
            with self.subTest(conf=conf), override_settings(LOCKGATE=conf):
                with self.assertRaisesMessage(ImproperlyConfigured, told):
                    lockgate.config()
                [error] = settings_check(None)
                self.assertEqual(error.id, "lockgate.E001")
                with self.assertRaises(ImproperlyConfigured):
                    lockgate.revoke_user(7)
        with override_settings(LOCKGATE=good):
            self.assertEqual(settings_check(None), [])


class Races(WithRedis, TestCase):
    """Cut-offs only rise, whoever writes at the same time, and without a script."""

    key = "lockgate:acme:deny:user:7"

    def writing_in_between(self, write, before="MULTI"):
        """Calls `write` once, just before the app sends this command."""
        send, writes = redis.connection.Connection.send_command, [write]

        def sent(connection, *command, **options):
            if command[0] == before and writes:
                writes.pop()()
            return send(connection, *command, **options)

        return mock.patch.object(redis.connection.Connection, "send_command", sent)

    def test_a_later_cut_off_that_comes_between_read_and_write_stays(self):
        for before in ["MULTI", "SET", "EXEC"]:
            self.redis.delete(self.key)
            other = redis.Redis.from_url(start())
            self.addCleanup(other.close)
            with self.writing_in_between(lambda: other.execute_command("SETEX", self.key, 100, 2000), before):
                lockgate.revoke_user(7, issued_before=1000)
            self.assertEqual(self.redis.get(self.key), b"2000", before)

    def test_an_earlier_one_that_comes_between_is_raised(self):
        other = redis.Redis.from_url(start())
        self.addCleanup(other.close)
        with self.writing_in_between(lambda: other.execute_command("SETEX", self.key, 100, 500)):
            lockgate.revoke_user(7, issued_before=1000)
        self.assertEqual(self.redis.get(self.key), b"1000")

    def test_of_many_at_once_the_latest_stays(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: lockgate.revoke_user(7, issued_before=1000 + n * 37 % 101), range(101)))
        self.assertEqual(self.redis.get(self.key), b"1100")

    def test_no_script_is_run_and_no_connection_goes_back_that_watches(self):
        self.redis.config_resetstat()
        lockgate.revoke_user(7, issued_before=1000)
        lockgate.revoke_user(7, issued_before=999)
        sent = {name.split("|")[0] for name in self.redis.info("commandstats")}
        self.assertTrue({"cmdstat_watch", "cmdstat_unwatch", "cmdstat_exec"} <= sent, sent)
        self.assertFalse([name for name in sent if "eval" in name or "script" in name], sent)

    def test_a_value_that_is_too_long_or_no_string_is_mended(self):
        for write in [("SETRANGE", 1_000_000, "9"), ("SET", "9" * 65), ("RPUSH", "9"), ("SET", "")]:
            self.redis.delete(self.key)
            self.redis.execute_command(write[0], self.key, *write[1:])
            lockgate.revoke_user(7, issued_before=5)
            self.assertEqual(self.redis.get(self.key), b"5", write[0])
