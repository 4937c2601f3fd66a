"""The signals that affect sockets: changed users, changed passwords and ended sessions."""

from functools import partial

from django.apps import AppConfig
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import transaction
from django.db.models.signals import post_delete, post_save, pre_save

import lockgate

CHANGED = "_lockgate_password_changed"


class LockgateConfig(AppConfig):
    name = "lockgate"

    def ready(self):
        checks.register(settings_check)
        for signal, receiver in [
            (setting_changed, forget_settings),
            (user_logged_out, session_ended),
            (pre_save, compare_password),
            (post_save, user_saved),
            (post_delete, user_deleted),
        ]:
            signal.connect(receiver, dispatch_uid=f"lockgate.{receiver.__name__}")


def settings_check(app_configs, **kwargs):
    try:
        lockgate.config()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="lockgate.E001")]
    return []


def forget_settings(setting, **kwargs):
    """Forgets the settings that a test overrides."""
    if setting in ("LOCKGATE", "SIMPLE_JWT"):
        lockgate.config.cache_clear()
        lockgate.connect.cache_clear()


def session_ended(user, **kwargs):
    if user is None or not lockgate.config()["REVOKE_ON_LOGOUT"]:
        return
    try:
        in_each(lockgate.revoke_user, user, lockgate.tenants_of(user))
    except lockgate.NotRevoked:
        # Not raised, because Django ends the session only after this signal.
        lockgate.logger.exception("The sockets of a user who logged out may still be open")


def compare_password(instance, raw, using, update_fields, **kwargs):
    """Notes if a save is going to change the password column."""
    # Removes the note of an earlier save that failed.
    instance.__dict__.pop(CHANGED, None)
    if raw or instance.pk is None or not isinstance(instance, get_user_model()):
        return
    if not (update_fields is None or "password" in update_fields) or not lockgate.config()["REVOKE_ON_PASSWORD_CHANGE"]:
        return
    # At a login Django may hash the same password again. It then saves only this column, without a raw password.
    if update_fields == {"password"} and getattr(instance, "_password", None) is None:
        return
    rows = type(instance)._base_manager.using(using).filter(pk=instance.pk)
    before = rows.values_list("password", flat=True).first()
    setattr(instance, CHANGED, before is not None and before != instance.password)


def user_saved(instance, using, update_fields, **kwargs):
    if not isinstance(instance, get_user_model()):
        return
    # Every login saves `last_login`, and no socket depends on it.
    if update_fields != {"last_login"}:
        invalidate_on_commit(instance, using)
    # Last, because it may raise. The cut-off is the time of the commit, after which the old password is not accepted.
    if getattr(instance, CHANGED, False):
        on_commit(lockgate.revoke_user, instance, using)


def user_deleted(instance, using, **kwargs):
    if isinstance(instance, get_user_model()):
        invalidate_on_commit(instance, using)


def invalidate_on_commit(user, using):
    if lockgate.config()["INVALIDATE_ON_SAVE"]:
        on_commit(lockgate.invalidate, user, using)


def on_commit(call, user, using):
    """Calls one of the app's functions for a user when the transaction is committed."""
    # The id is read now, because a deleted instance loses its key, and the tenants, because the transaction may outlast the
    # schema in which the user is saved.
    tenants = lockgate.tenants_of(user)
    if tenants:
        transaction.on_commit(partial(in_each, call, lockgate.user_text(user), tenants), using=using)


def in_each(call, user, tenants):
    """Calls one of the app's functions for every tenant, also after one of them has failed."""
    failure = None
    for tenant in tenants:
        try:
            call(user, tenant=tenant)
        except lockgate.NotRevoked as error:
            failure = failure or error
    if failure is not None:
        raise failure
