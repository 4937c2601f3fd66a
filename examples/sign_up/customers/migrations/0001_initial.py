import django.core.validators
from django.db import migrations, models

import customers.models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        max_length=40,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[a-z0-9]+(-[a-z0-9]+)*$", "Small letters, digits and single hyphens."
                            )
                        ],
                    ),
                ),
                ("signing_key", models.CharField(default=customers.models.new_key, max_length=64)),
                ("previous_key", models.CharField(blank=True, max_length=64)),
            ],
        ),
    ]
