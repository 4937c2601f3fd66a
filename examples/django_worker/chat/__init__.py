"""A chat whose rules are Python, behind Lockgate."""
