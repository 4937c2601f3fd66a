"""Makes the tables, a user that is active and one that is not, and what `lockgate_config` prints for them."""

import io
import uuid

from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from rest_framework_simplejwt.tokens import AccessToken

from . import models

# A model, USER_ID_FIELD, and the values of a user's fields.
SHAPES = [
    (models.PublicUuid, "public_id", lambda n: {"public_id": uuid.UUID(int=n)}),
    (models.PublicUuid, "id", lambda n: {}),
    (models.PublicUuid, "username", lambda n: {}),
    (models.PublicText, "public_id", lambda n: {"public_id": f"Usr-{n}"}),
    (models.PublicNumber, "public_id", lambda n: {"public_id": n}),
    (models.PublicAddress, "public_id", lambda n: {"public_id": f"10.0.0.{n}"}),
    (models.SameTable, "public_id", lambda n: {"public_id": f"usr-{n}"}),
    (models.Stand, "id", lambda n: {}),
    (models.Stand, "public_id", lambda n: {"public_id": uuid.UUID(int=n)}),
    (models.Account, "id", lambda n: {}),
    (models.Account, "pk", lambda n: {}),
    (models.Manager, "id", lambda n: {}),
    (models.Manager, "username", lambda n: {}),
    (models.Renamed, "public_id", lambda n: {"public_id": f"usr-{n}", "nickname": f"nick-{n}"}),
    (models.Renamed, "nickname", lambda n: {"public_id": f"Usr-{n}", "nickname": f"Nick-{n}"}),
    (models.InSchema, "id", lambda n: {}),
    (models.InQuotes, "id", lambda n: {}),
    (models.Holder, "pk", lambda n: {"person": models.Person.objects.create(code=f"p{n}")}),
    (models.Holder, "person_id", lambda n: {"person": models.Person.objects.create(code=f"q{n}")}),
    (models.Wearer, "badge_id", lambda n: {"badge": models.Badge.objects.create(id=n)}),
    (models.AlwaysActive, "id", lambda n: {}),
    (models.Computed, "id", lambda n: {}),
    (models.SoftDeleted, "id", lambda n: {}),
]
if hasattr(models, "TwoColumns"):
    SHAPES += [
        (models.TwoColumns, "id", lambda n: {"site": 1, "id": n, "number": f"n{n}"}),
        (models.TwoColumns, "number", lambda n: {"site": 1, "id": n, "number": f"n{n}"}),
    ]


def all_of_them():
    wanted = [models.Person, models.Badge, models.Party, *(model for model, *_ in SHAPES)]
    with connection.schema_editor() as editor:
        for model in dict.fromkeys(model._meta.concrete_model for model in wanted):
            editor.create_model(model)
    return [printed(n, *shape) for n, shape in enumerate(SHAPES)]


def printed(n, model, field, values):
    tokens = {"nobody": token("nobody")}
    is_switched = any(own.name == "is_active" for own in model._meta.get_fields())
    for number, kind in enumerate(["active", "inactive"] if is_switched else ["active"], 2 * n + 1):
        switch = {"is_active": kind == "active"} if is_switched else {}
        user = model.objects.create(username=f"{kind}-{number}", password="!", **switch, **values(number))
        # As simplejwt writes the claim, and as it finds the user.
        claim = str(getattr(user, field))
        assert model.objects.get(**{field: claim}) == user
        tokens[kind] = token(claim)
    word = f"{model.__name__.lower()}-{field.replace('_', '-')}"
    out, lost = io.StringIO(), io.StringIO()
    with override_settings(AUTH_USER_MODEL=f"models_of_users.{model.__name__}", SIMPLE_JWT={"USER_ID_FIELD": field}):
        call_command("lockgate_config", tenant=word, stdout=out, stderr=lost)
    return {"name": word, "config": out.getvalue(), "lost": lost.getvalue(), "tokens": tokens}


def token(claim):
    made = AccessToken()
    made["user_id"] = claim
    return str(made)
