"""Parses the queries of rules and dashboards as far as the checks need it."""

import json
import re

import yaml

from tools import ROOT

DEPLOY = ROOT / "deploy"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
RULE_FILES = [DEPLOY / "prometheus/rules.yaml", DEPLOY / "prometheus/alerts.yaml"]
# The metrics of Prometheus itself and of its process collector.
FOREIGN = re.compile(r"up|process_\w+|scrape_\w+|ALERTS")
WORDS = {
    "sum", "rate", "increase", "by", "on", "or", "and", "unless", "vector", "histogram_quantile", "max", "min", "avg", "count",
    "changes", "absent", "avg_over_time", "offset", "time", "without", "le",
}


def rules():
    """Yields every rule with its name."""
    for file in RULE_FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("record") or rule["alert"], rule


def panels():
    """Yields every panel with data: board, title, queries, and the value of its `expect`."""
    for file in BOARDS:
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield board["title"], panel["title"], [t["expr"] for t in panel["targets"]], panel.get("expect")


def plain(expression, rate_interval="30s"):
    """Returns a dashboard's query with values for its variables."""
    for name, value in (("$__rate_interval", rate_interval), ("$instance", ".*"), ("$tenant", ".*")):
        expression = expression.replace(name, value)
    return expression


def selectors(expression):
    """Returns the vector selectors of an expression, with matchers and without ranges."""
    text = re.sub(r"\b(?:by|on|without)\s*\([^)]*\)", "", expression)
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?", re.sub(r"\[[^\]]*\]|\b\d[\w.]*\b", "", strip_text(text))):
        if name not in WORDS:
            yield name + restore(matchers)


_texts = []


def strip_text(text):
    """Replaces quoted texts, which contain no names."""
    def aside(found):
        _texts.append(found[0])
        return f"@t{len(_texts) - 1}t@"

    return re.sub(r'"[^"]*"', aside, text)


def restore(text):
    return re.sub(r"@t(\d+)t@", lambda found: _texts[int(found[1])], text)


def family(selector):
    """Returns the metric family of a selector."""
    return re.sub(r"_(bucket|count|sum)$", "", selector.partition("{")[0])
