"""Checks the form of the dashboards, for Grafana and for readers."""

import json

from promql import BOARDS


def findings():
    uids, found = set(), []
    for file in BOARDS:
        board = json.loads(file.read_text())
        name = file.name
        if board["uid"] in uids:
            found.append(f"{name}: the uid {board['uid']} is taken")
        uids.add(board["uid"])
        names = {variable["name"] for variable in board["templating"]["list"]}
        if "datasource" not in names:
            found.append(f"{name}: the data source is no variable")
        ids, taken = set(), {}
        for panel in board["panels"]:
            what = f"{name}: {panel['title']}"
            if panel["id"] in ids:
                found.append(f"{what}: its id is taken")
            ids.add(panel["id"])
            place = panel["gridPos"]
            if place["x"] + place["w"] > 24:
                found.append(f"{what}: wider than the grid")
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    if (x, y) in taken:
                        found.append(f"{what}: lies over {taken[x, y]}")
                        break
                    taken[x, y] = panel["title"]
                else:
                    continue
                break
            if panel["type"] == "row":
                continue
            if not panel["fieldConfig"]["defaults"].get("unit"):
                found.append(f"{what}: no unit")
            if not panel.get("description"):
                found.append(f"{what}: does not say what to see in it")
            if not panel["targets"] or any(not target["expr"] for target in panel["targets"]):
                found.append(f"{what}: no query")
            for target in panel["targets"]:
                if target["datasource"]["uid"] != "${datasource}":
                    found.append(f"{what}: names a data source of its own")
                for variable in ("$instance", "$tenant"):
                    if variable in target["expr"] and variable[1:] not in names:
                        found.append(f"{what}: {variable} is no variable of this board")
    return found
