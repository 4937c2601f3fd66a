"""The rollout rehearsal: rolls replicas with the numbers of the Deployment, under real clients behind a real proxy.

Replicas, surge, minReadySeconds, grace period, probe periods and the whole configuration are read from k8s/. One run with the
drain, one where each replica just dies (SIGKILL, as where there is no drain), side by side.
`broken` says what must hold.
"""

import argparse
import asyncio
import bisect
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

import stack as stacks
import swarm

PATH = "/ws/chat/rollout/"
GROUP = "chat_rollout"
EVENTS_PER_SECOND = 4
# An event that was sent this long before the client saw its close frame did not fall into the reconnect; how late our own loop
# was is added.
BEFORE_CLOSE = 1.0
# So many clients dial at the same time at the start, so that the start is not a storm.
TOGETHER = 50
# The seconds from the end of the named wait to the next 101, on a machine with free cores.
BACK_WITHIN = 2.0


class Numbers:
    """The numbers of the Deployment."""

    def __init__(self, deployed, hurry):
        spec = deployed.gateway["spec"]
        pod = spec["template"]["spec"]
        self.replicas = 2
        self.surge = spec["strategy"]["rollingUpdate"]["maxSurge"]
        self.unavailable = spec["strategy"]["rollingUpdate"]["maxUnavailable"]
        self.min_ready = spec.get("minReadySeconds", 0)
        self.grace = pod["terminationGracePeriodSeconds"]
        self.ready_period = pod["containers"][0]["readinessProbe"]["periodSeconds"]
        # What is skipped is waiting for nothing: after the drain before it is over, and the successor ready for this long.
        self.hurry = hurry

    def wait_after_ready(self):
        return min(self.min_ready, 6) if self.hurry else self.min_ready


async def rehearse(folder, proxy, clients, drain, hurry):
    """Rolls all replicas once and returns the report."""
    with stacks.stack(folder) as stack:
        numbers = Numbers(stack.deployed, hurry)
        assert (numbers.surge, numbers.unavailable) == (1, 0), "the rehearsal rolls with one more and none less"
        old = [stack.replica(f"old-{n}") for n in range(numbers.replicas)]
        # In a cluster the proxy learns the address of a new pod. Here each replica has its slot from the start.
        new = [Slot(stack, f"new-{n}") for n in range(numbers.replicas)]
        for replica in old:
            replica.ready()
        slots = [(r.name, r.port, r.admin) for r in [*old, *new]]
        port = getattr(stacks, proxy)(stack, slots)

        stop, first_open = asyncio.Event(), []
        people = []
        for n in range(clients):
            token = stack.token(1 + n % stacks.USERS)
            people.append(swarm.Client(port, stacks.HOST, PATH, token, lambda: first_open.append(time.monotonic())))
        tasks = []
        for at, client in enumerate(people):
            tasks.append(asyncio.ensure_future(client.run(stop)))
            if at % TOGETHER == TOGETHER - 1:
                await until("clients are open", lambda: len(first_open) >= at + 1 - sum(bool(p.history.failed) for p in people))
        await until("all clients are open", lambda: all(p.history.sessions for p in people))
        before = sum(len(p.history.failed) for p in people)
        assert before == 0, f"{before} handshakes failed before the rollout: {sorted(set(s for p in people for _, s in p.history.failed))}"
        say(f"{proxy}: {clients} clients are open")

        sent, publishing = {}, asyncio.Event()
        lag = Lag()
        publisher = asyncio.ensure_future(publish(stack, sent, publishing))
        await asyncio.sleep(1)
        began, rolls = time.monotonic(), []
        for index, leaving in enumerate(old):
            successor = new[index].start()
            await until(f"{successor.name} is ready", lambda: successor.get("/readyz")[0] == 200, numbers.ready_period, 60)
            await asyncio.sleep(numbers.wait_after_ready())
            at = time.monotonic()
            leaving.process.send_signal(signal.SIGTERM if drain else signal.SIGKILL)
            try:
                await until("the old replica is gone", lambda: leaving.process.poll() is not None, 0.05, numbers.grace)
                killed = False
            except TimeoutError:
                leaving.process.kill()
                killed = True
            rolls.append((at, time.monotonic(), killed, leaving.process.wait()))
            say(f"{proxy}: {leaving.name} left after {rolls[-1][1] - at:.1f} s")
            await until("all clients are back", lambda: all(p.history.sessions[-1].closed is None for p in people), 0.05, 60)
        took = time.monotonic() - began
        await asyncio.sleep(1.5)
        publishing.set()
        await publisher
        scrapes = "".join(replica.get("/metrics")[1] for replica in [r.replica for r in new])
        # Events arrive in order, so all have arrived when the last one has.
        last = max(sent)
        await until("the last event is everywhere", lambda: all(p.history.sessions[-1].last == last for p in people), 0.05, 10,
                    fail=False)
        for person in people:
            if person.history.sessions[-1].closed is None:
                person.history.sessions[-1].closed = float("inf")
        stop.set()
        await asyncio.gather(*tasks)
        report = evaluate(people, sent, rolls, took, lag)
        leaks = [f"{what} in {name}" for name, text in {**stack.logs(), "a scrape": scrapes.encode()}.items()
                 for what, secret in secrets_of(stack, people) if secret.encode() in text]
        # An empty log would pass the check for secrets, so it must have lines.
        report["handshakes in the proxy's log"] = stack.logs()[f"{proxy}.log"].count(PATH.encode())
        report["planted secrets found"] = len(leaks)
        report["leaks"] = leaks[:5]
        return report


class Lag:
    """Measures the delay of the clients' own loop, which on a busy machine is part of every figure."""

    def __init__(self):
        self.most, self.due = 0.0, time.monotonic()
        self.tick()

    def tick(self):
        now = time.monotonic()
        self.most, self.due = max(self.most, now - self.due), now + 0.05
        asyncio.get_running_loop().call_later(0.05, self.tick)


def say(text):
    print(f"  {text}", flush=True)


class Slot:
    """The slot of a replica that starts later, with its ports."""

    def __init__(self, stack, name):
        self.stack, self.name, self.port, self.admin, self.replica = stack, name, stacks.free_port(), stacks.free_port(), None

    def start(self):
        self.replica = self.stack.replica(self.name, (self.port, self.admin))
        return self.replica


async def publish(stack, sent, end):
    """Consecutive numbers, each with the time at which it was sent."""
    n, began = 0, time.monotonic()
    while not end.is_set():
        sent[n] = time.monotonic()
        stack.publish(GROUP, {"type": "x", "n": n})
        n += 1
        await asyncio.sleep(max(0, began + n / EVENTS_PER_SECOND - time.monotonic()))


async def until(what, fact, period=0.02, seconds=60, fail=True):
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            if not fail:
                return
            raise TimeoutError(f"{what}: not within {seconds} s")
        await asyncio.sleep(period)


def secrets_of(stack, people):
    yield from (("a planted secret", secret) for secret in stack.planted)
    for person in people[::50]:
        token = person.request.split(b"token=")[1].split(b" ")[0].decode()
        yield from (("a token", part) for part in token.split(".")[1:])


def evaluate(people, sent, rolls, took, lag):
    """The numbers of one rollout."""
    failed = [status for p in people for _, status in p.history.failed]
    pairs = [(a, b) for p in people for a, b in zip(p.history.sessions, p.history.sessions[1:])]
    gaps = sorted(b.opened - a.closed for a, b in pairs)
    over = sorted(b.opened - a.closed - (swarm.wait_named(a.reason) or 0) for a, b in pairs)
    peak, mean, burst = 0, 0.0, 0
    for at, gone, _, _ in rolls:
        back = sorted(b.opened for a, b in pairs if at <= a.closed <= gone + 5)
        if len(back) > 1:
            burst = max(burst, most_within(back, 0.1))
            peak, mean = max((peak, mean), (most_within(back, 1.0), len(back) / max(back[-1] - back[0], 1.0)))
    return {
        "failed handshakes": len(failed),
        "their statuses": sorted(set(failed)),
        "reconnects": len(pairs),
        "closed without a close frame": sum(a.code == 1006 for a, _ in pairs),
        "close codes": sorted({(a.code, a.reason.split(" ")[0]) for a, _ in pairs}),
        "clients closed more than once": sum(len(p.history.sessions) > 2 for p in people),
        "reconnects/s, peak": peak,
        "reconnects/s, mean": round(mean, 1),
        "reconnects within 100 ms, peak": burst,
        "peak / mean": round(peak / mean, 2) if mean else 0,
        "gap p50 ms": round(1000 * quantile(gaps, 0.5)),
        "gap p99 ms": round(1000 * quantile(gaps, 0.99)),
        "back after the named wait, p99 ms": round(1000 * quantile(over, 0.99)),
        "back after the named wait, max ms": round(1000 * over[-1]) if over else 0,
        "back after the named wait, bound ms": round(1000 * back_within(people, lag)),
        "events missed outside a reconnect": sum(missed(p.history.sessions, sent, BEFORE_CLOSE + lag.most) for p in people),
        "events sent": len(sent),
        "our own loop was late by, max ms": round(1000 * lag.most),
        "killed at the grace period": sum(killed for _, _, killed, _ in rolls),
        "exit codes": sorted({code for *_, code in rolls}),
        "rollout s": round(took, 1),
    }


def back_within(people, lag):
    """Returns the most seconds from the end of the named wait to the next 101.

    A busy machine stretches the handshakes of the start as well. There a client waits at most for those of its batch; after a
    replica has left, at most for those of all its clients, which are `crowd` times as many for each replica. Our own loop can
    be late twice: when it dials and when it reads the 101.
    """
    slowest = max(p.history.sessions[0].opened - p.history.sessions[0].dialled for p in people)
    crowd = len(people) / TOGETHER
    return max(BACK_WITHIN, crowd * slowest) + 2 * lag.most


def most_within(times, seconds):
    """Returns the largest number of these ordered times within so many seconds."""
    return max(bisect.bisect_left(times, at + seconds) - index for index, at in enumerate(times))


def missed(sessions, sent, before_close):
    """Counts the events that were sent while the client's socket was open and did not arrive."""
    lost = 0
    for session in sessions:
        expected = [n for n, at in sent.items() if session.opened < at < session.closed - before_close]
        if session.first is None:
            lost += len(expected)
            continue
        # The events that arrived must have no hole between them.
        lost += (session.last - session.first + 1) - session.received
        lost += sum(1 for n in expected if n < session.first or n > session.last)
    return lost


def quantile(ordered, q):
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def broken(report):
    """Returns the requirements for a rollout with a drain that this one did not meet."""
    bounds = [
        ("failed handshakes", lambda n: n == 0),
        ("closed without a close frame", lambda n: n == 0),
        ("peak / mean", lambda n: 0 < n <= 2),
        ("back after the named wait, max ms", lambda n: n <= report["back after the named wait, bound ms"]),
        ("events missed outside a reconnect", lambda n: n == 0),
        ("killed at the grace period", lambda n: n == 0),
        ("exit codes", lambda codes: codes == [0]),
        ("handshakes in the proxy's log", lambda n: n >= report["reconnects"] > 0),
        ("planted secrets found", lambda n: n == 0),
    ]
    return [f"{name}: {report[name]}" for name, holds in bounds if not holds(report[name])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--proxy", action="append", choices=["haproxy", "nginx"], help="default: both")
    parser.add_argument("--hurry", action="store_true", help="skip what is left of minReadySeconds six seconds after a replica is ready")
    parser.add_argument("--without-comparison", action="store_true", help="leave out the runs without a drain")
    arguments = parser.parse_args()
    runs = []
    for proxy in arguments.proxy or ["haproxy", "nginx"]:
        for drain in [True] if arguments.without_comparison else [True, False]:
            with tempfile.TemporaryDirectory(prefix="lockgate-rehearsal-") as folder:
                report = uvloop.run(rehearse(Path(folder), proxy, arguments.clients, drain, arguments.hurry))
            runs.append((f"{proxy}, {'drain' if drain else 'no drain'}", drain, report))
    width = max(len(name) for name in runs[0][2])
    print("\n" + " " * width + "".join(f"{title:>22}" for title, _, _ in runs))
    for name in runs[0][2]:
        values = ["+".join(f"{c} {r}".strip() for c, r in report[name]) if name == "close codes" else str(report[name])
                  for _, _, report in runs]
        print(f"{name:<{width}}" + "".join(f"{value:>22}" for value in values))
    wrong = [f"{title}: {what}" for title, drain, report in runs if drain for what in broken(report)]
    for what in wrong:
        print(f"MUST NOT BE: {what}")
    print(f"{len(runs)} rollouts of {arguments.clients} clients; what a drain must hold, {'did not' if wrong else 'held'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
