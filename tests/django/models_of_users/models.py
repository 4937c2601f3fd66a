"""User models in every shape that Django allows. Only one at a time is the project's."""

import uuid

import django
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import models


def place(table):
    """A name with a schema, in the quotes with which Django takes one; SQLite has none in what Django writes."""
    schema, quote = {
        "postgresql": ("public", '"'),
        "mysql": (settings.DATABASES["default"]["NAME"], "`"),
        "sqlite3": ("", '"'),
    }[settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]]
    return ".".join(f"{quote}{name}{quote}" for name in [schema, table] if name)


class Named(AbstractBaseUser):
    username = models.CharField(max_length=40, unique=True)
    USERNAME_FIELD = "username"

    class Meta:
        abstract = True


class Switched(Named):
    is_active = models.BooleanField(default=True)

    class Meta:
        abstract = True


class PublicUuid(Switched):
    public_id = models.UUIDField(unique=True, default=uuid.uuid4)


class PublicText(Switched):
    public_id = models.CharField(max_length=40, unique=True)


class PublicNumber(Switched):
    public_id = models.IntegerField(unique=True)


class PublicAddress(Switched):
    public_id = models.GenericIPAddressField(unique=True)


class SameTable(Switched):
    """As a project that replaced Django's model and kept its table."""

    public_id = models.CharField(max_length=40, unique=True)

    class Meta:
        db_table = "auth_user"


class Stand(PublicUuid):
    class Meta:
        proxy = True


class Party(models.Model):
    """Has the id, and nothing else that a gateway reads."""

    since = models.IntegerField(default=0)


class Account(Party, Switched):
    pass


class Manager(Account):
    room = models.CharField(max_length=10, default="")


class Renamed(AbstractBaseUser):
    public_id = models.CharField(max_length=40, unique=True, db_column="the id")
    username = models.CharField(max_length=40, unique=True, db_column="login")
    nickname = models.CharField(max_length=40, unique=True, db_column="username")
    is_active = models.BooleanField(default=True, db_column="enabled")
    USERNAME_FIELD = "username"


class InSchema(Switched):
    class Meta:
        db_table = place("in_schema")


class InQuotes(Switched):
    class Meta:
        db_table = "our users"


class Person(models.Model):
    code = models.CharField(max_length=20, primary_key=True)


class Badge(models.Model):
    pass


class Holder(Switched):
    person = models.OneToOneField(Person, models.CASCADE, primary_key=True)


class Wearer(Switched):
    badge = models.OneToOneField(Badge, models.CASCADE)


class AlwaysActive(Named):
    pass


class Computed(Named):
    @property
    def is_active(self):
        return True


class SoftDeleted(Switched):
    class Kept(models.Manager):
        def get_queryset(self):
            return super().get_queryset().exclude(username="gone")

    objects = Kept()


if django.VERSION >= (5, 2):

    class TwoColumns(Switched):
        pk = models.CompositePrimaryKey("site", "id")
        site = models.IntegerField()
        id = models.IntegerField(unique=True)
        number = models.CharField(max_length=40, unique=True)
