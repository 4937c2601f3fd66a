"""A changed password takes back the user's tokens, once the transaction is committed."""

from functools import partial

from django.apps import AppConfig
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models.signals import post_save


class ProjectConfig(AppConfig):
    name = "project"

    def ready(self):
        post_save.connect(user_saved, sender=get_user_model())


def user_saved(instance, created, **kwargs):
    from .views import revoke_user

    # What set_password() was given; Django forgets it at the end of the save.
    if not created and instance._password is not None:
        transaction.on_commit(partial(revoke_user, instance.pk))
