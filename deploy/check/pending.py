"""THE SWITCH: metric families of the contract that rules and dashboards speak of already and this binary may not have yet.

A family leaves this list by itself: as soon as `src/metrics.rs` describes it, every check demands it like any other, and
the line here is only told to be superfluous.
"""

import re

from tools import ROOT

NOT_YET = {
    "lockgate_revocations_total",
    "lockgate_revocation_propagation_seconds",
    "lockgate_denylist_at_risk",
}


def described():
    """The families that the gateway describes."""
    source = (ROOT / "src/metrics.rs").read_text()
    return set(re.findall(r'describe_\w+!\(\s*"(\w+)"', source))


def tolerated(exposed=()):
    """Families whose absence from a scrape is no mistake."""
    # The reload gauges are described, and have no value before the first reload.
    without_value = {name for name in described() if name.startswith("lockgate_config_reload_")} - set(exposed)
    return (NOT_YET - described()) | without_value
