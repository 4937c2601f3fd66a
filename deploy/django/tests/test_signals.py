"""What the app does by itself when users are saved, deleted and logged out."""

from unittest import mock

from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.test import RequestFactory, TransactionTestCase, override_settings

import lockgate

from .models import Employee, Member
from .redis_server import WithRedis, start

NOWHERE = {"TENANT": "acme", "REDIS_URL": "redis://127.0.0.1:1/0", "TIMEOUT": 0.5}


class Case(WithRedis, TransactionTestCase):
    def setUp(self):
        super().setUp()
        self.user = User.objects.create_user("alice", password="old")
        self.invalidated = b'{"v":1,"op":"invalidate","user_id":"%d"}' % self.user.pk
        self.revoked = b'{"v":1,"op":"revoke","user_id":"%d","issued_before":' % self.user.pk
        self.deny, self.generation = (f"lockgate:acme:{name}:{self.user.pk}" for name in ("deny:user", "usergen"))
        # A new user may be remembered as absent.
        self.assertEqual(self.heard(), [self.invalidated])
        self.assertEqual(self.redis.keys("*"), [self.generation.encode()])
        self.redis.flushall()

    def assert_heard(self, *starts):
        heard = self.heard()
        self.assertEqual(len(heard), len(starts), heard)
        for message, start_of_it in zip(heard, starts):
            self.assertTrue(message.startswith(start_of_it), message)

    def settings_with(self, **conf):
        return override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": start(), **conf})


class SharedUsers(Case):
    """Users in a schema that several tenants share: a save concerns all of them, whichever schema is set."""

    def shared(self, **conf):
        schema = {"TENANT": lambda: None, "USER_TENANTS": lambda user: ["acme", f"of-{user.username}"]}
        return self.settings_with(**schema, **conf)

    def test_a_save_concerns_every_tenant_of_the_user(self):
        # Before, a save in the public schema reached no tenant, and one in a tenant's schema that tenant alone.
        with self.shared():
            self.user.set_password("new")
            self.user.save()
        for name in ["acme", "of-alice"]:
            for key in ["deny:user", "usergen"]:
                self.assertTrue(self.redis.exists(f"lockgate:{name}:{key}:{self.user.pk}"), (name, key))
        with self.shared():
            self.redis.flushall()
            key = self.user.pk
            self.user.delete()
        self.assertEqual(self.redis.exists(f"lockgate:acme:usergen:{key}", f"lockgate:of-alice:usergen:{key}"), 2)

    def test_a_logout_concerns_every_tenant_of_the_user(self):
        request = RequestFactory().get("/")
        request.session, request.user = SessionStore(), self.user
        with self.shared(REVOKE_ON_LOGOUT=True):
            logout(request)
        for name in ["acme", "of-alice"]:
            self.assertTrue(self.redis.exists(f"lockgate:{name}:deny:user:{self.user.pk}"), name)

    def test_one_tenant_that_fails_keeps_no_other_from_its_revocation(self):
        revoke_user = lockgate.revoke_user

        def fails_for_acme(user, *, tenant):
            if tenant == "acme":
                raise lockgate.NotRevoked
            revoke_user(user, tenant=tenant)

        with self.shared(), mock.patch("lockgate.revoke_user", fails_for_acme):
            self.user.set_password("new")
            with self.assertRaises(lockgate.NotRevoked):
                self.user.save()
        self.assertTrue(self.redis.exists(f"lockgate:of-alice:deny:user:{self.user.pk}"))

    def test_names_are_checked(self):
        for value in ["acme", ["acme"]]:
            message = 'LOCKGATE["USER_TENANTS"] must be a function'
            with self.settings_with(USER_TENANTS=value), self.assertRaisesMessage(ImproperlyConfigured, message):
                lockgate.config()
        with self.settings_with(USER_TENANTS=lambda user: ["a_b"]), self.assertRaises(ImproperlyConfigured):
            self.user.save()


class Saves(Case):
    def test_a_changed_password_revokes_the_users_tokens(self):
        self.user.set_password("new")
        self.user.save()
        self.assert_heard(self.invalidated, self.revoked)
        self.assertEqual(self.redis.exists(self.deny, self.generation), 2)
        self.user.save(update_fields=["email"])
        self.assert_heard(self.invalidated)

    def test_a_save_that_failed_is_forgotten(self):
        User.objects.create_user("bob")
        self.heard()
        self.user.set_password("new")
        self.user.username = "bob"
        with self.assertRaises(IntegrityError):
            self.user.save()
        self.user.save(update_fields=["email"])
        self.assert_heard(self.invalidated)

    def test_whichever_way_it_is_changed(self):
        for change in [
            {"password": make_password("other"), "update_fields": None},
            {"password": make_password(None), "update_fields": ["password", "username"]},
        ]:
            user = User.objects.get(pk=self.user.pk)
            user.password = change["password"]
            user.save(update_fields=change["update_fields"])
            self.assert_heard(self.invalidated, self.revoked)
        user.set_password("again")
        user.save(update_fields=["password"])
        self.assert_heard(self.invalidated, self.revoked)
        User(pk=user.pk, username="alice", password=make_password("whole")).save()
        self.assert_heard(self.invalidated, self.revoked)

    def test_a_model_in_several_tables_is_compared_once(self):
        employee = Employee.objects.create(email="bob@example.com", password=make_password("old"))
        with override_settings(AUTH_USER_MODEL="tests.Employee"):
            employee.set_password("new")
            self.heard()
            employee.save()
            Member.objects.first().save()
        user_id = str(employee.pk).encode()
        self.assert_heard(b'{"v":1,"op":"invalidate","user_id":"%b"}' % user_id, b'{"v":1,"op":"revoke","user_id":"%b",' % user_id)

    def test_other_fields_do_not(self):
        self.user.is_active = False
        self.user.save()
        self.user.save(update_fields=["email"])
        self.assert_heard(self.invalidated, self.invalidated)
        self.assertEqual(self.redis.exists(self.deny), 0)

    def test_a_login_neither_revokes_nor_invalidates(self):
        weak = make_password("old", hasher="pbkdf2_sha256")
        User.objects.filter(pk=self.user.pk).update(password=weak)
        request = RequestFactory().get("/")
        request.session = SessionStore()
        user = authenticate(request, username="alice", password="old")
        self.assertNotEqual(User.objects.get().password, weak)
        # The record holds a digest of the hash where tokens are bound to it, so a new hash is told.
        self.assert_heard(self.invalidated)
        login(request, user)
        self.assert_heard()
        self.assertEqual(self.redis.exists(self.deny), 0)

    def test_a_transaction_that_is_rolled_back_sends_nothing(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            self.user.set_password("new")
            self.user.save()
            self.user.delete()
            1 / 0
        self.assert_heard()
        self.assertEqual(self.redis.keys("*"), [])

    def test_nothing_is_sent_before_the_commit(self):
        with transaction.atomic():
            self.user.set_password("new")
            self.user.save()
            self.assert_heard()
        self.assert_heard(self.invalidated, self.revoked)

    def test_the_tenant_is_that_of_the_save_and_not_of_the_commit(self):
        """Where schemas are tenants, the schema could change back before the commit, and another tenant's user was revoked."""
        schema = None
        with self.settings_with(TENANT=lambda: schema):
            with transaction.atomic():
                schema = "globex"
                self.user.set_password("new")
                self.user.save()
                schema = "initech"
            names = [f"lockgate:globex:{name}:{self.user.pk}".encode() for name in ("deny:user", "usergen")]
            self.assertEqual(sorted(self.redis.keys("*")), names)
            self.redis.flushall()
            # A schema that is no tenant has no sockets.
            schema = None
            self.user.set_password("newer")
            self.user.save()
            self.user.delete()
        self.assertEqual(self.redis.keys("*"), [])

    def test_a_deleted_user_is_told_by_the_key_that_it_had(self):
        self.user.delete()
        self.assert_heard(self.invalidated)
        bob = User.objects.create_user("bob")
        user_id = str(bob.pk).encode()
        self.heard()
        with transaction.atomic():
            bob.delete()
        self.assert_heard(b'{"v":1,"op":"invalidate","user_id":"%b"}' % user_id)
        User.objects.create_user("carol")
        self.heard()
        User.objects.all().delete()
        self.assert_heard(b'{"v":1,"op":"invalidate"')

    def test_a_password_whose_revocation_fails_is_no_silent_success(self):
        self.user.set_password("new")
        with override_settings(LOCKGATE=NOWHERE):
            with self.assertLogs("lockgate", "ERROR"), self.assertRaises(lockgate.NotRevoked):
                self.user.save()
        self.assertTrue(User.objects.get().check_password("new"))

    def test_a_user_is_saved_while_redis_is_away(self):
        self.user.email = "alice@example.com"
        with override_settings(LOCKGATE=NOWHERE), self.assertLogs("lockgate", "ERROR"):
            self.user.save()
        self.assertEqual(User.objects.get().email, "alice@example.com")

    def test_each_can_be_switched_off(self):
        with self.settings_with(REVOKE_ON_PASSWORD_CHANGE=False, INVALIDATE_ON_SAVE=False):
            self.user.set_password("new")
            with self.assertNumQueries(1):
                self.user.save()
            self.user.delete()
        self.assert_heard()


class Sessions(Case):
    def end_session(self):
        request = RequestFactory().get("/")
        request.session, request.user = SessionStore(), self.user
        logout(request)

    def test_the_end_of_a_session_revokes_only_if_it_is_to(self):
        self.end_session()
        self.assert_heard()
        with self.settings_with(REVOKE_ON_LOGOUT=True):
            self.end_session()
        self.assert_heard(self.revoked)

    def test_a_session_ends_also_where_redis_does_not_answer(self):
        with self.settings_with(REVOKE_ON_LOGOUT=True, REDIS_URL="redis://127.0.0.1:1/0"):
            with self.assertLogs("lockgate", "ERROR"):
                self.end_session()

    def test_nobody_may_log_out(self):
        self.user = None
        with self.settings_with(REVOKE_ON_LOGOUT=True):
            self.end_session()
        self.assert_heard()
