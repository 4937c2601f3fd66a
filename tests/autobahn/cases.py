#!/usr/bin/env python3
"""The cases of the Autobahn test suite, groups 1-7 and 10, played by a client of our own.

    tests/autobahn/cases.py 'ws://127.0.0.1:8000/echo/?token=...' [CASE...]

The suite (https://github.com/crossbario/autobahn-testsuite) runs only on CPython 2.7; this needs Python 3 and nothing
else. Numbers, inputs and expectations are the suite's: what must come back, who closes, and with which code. It is
stricter in one thing: where the suite also takes a connection that is cut without a close frame, this does not.
Outcomes that the suite calls non-strict pass and are named; its informational cases (7.1.6, 7.13.*) need only end.

The route's consumer is `echo`, its `message_size` at least 256 KiB, and `messages_per_second` is 0. Prints the cases
that failed and `N passed, N failed`; exit 0 if all passed, 1 if not, 2 for wrong usage.
"""

import itertools
import os
import socket
import sys
import time
from urllib.parse import urlsplit

# How long an answer may take; the suite waits 1 to 10 seconds.
PATIENCE = 10.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HELLO = b"Hello, world!"
# "kosme" as the suite spells it, with U+1F79: one letter of three bytes.
KOSME = "κ\u1f79σμε".encode()


# ---------------------------------------------------------------- what a client sends


def frame(opcode, payload=b"", fin=True, rsv=0):
    """One masked frame in the shortest form; `rsv` as the suite has it: 4 is RSV1, 1 is RSV3."""
    mask = os.urandom(4)
    head = bytes([fin << 7 | rsv << 4 | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + mask + masked(mask, payload)


def masked(mask, payload):
    key = int.from_bytes(mask * (len(payload) // 4 + 1), "big") >> 8 * (4 - len(payload) % 4)
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


def closing(code=None, reason=b""):
    return frame(CLOSE, (b"" if code is None else code.to_bytes(2, "big")) + reason)


def fragmented(payload, size, opcode=TEXT):
    """A message in frames of `size` bytes."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    last = len(parts) - 1
    return [frame(opcode if at == 0 else 0, part, fin=at == last) for at, part in enumerate(parts)]


# ---------------------------------------------------------------- what a case is


class Case:
    """Steps to take, and what must come of them.

    A step is bytes, which go out at once, or a number: seconds during which nothing may end. `events` are the messages
    and pongs that come back; `non_strict` is the outcome that the suite takes less gladly. With `closes` "us" we send
    1000 once everything came back, with "sent" the steps have sent a close frame, with "peer" the gateway closes.
    """

    def __init__(self, name, steps, events=(), closes="us", codes=(1000,), non_strict=None, free=False):
        self.name, self.steps, self.closes, self.codes, self.free = name, steps, closes, codes, free
        self.outcomes = [list(events)] + ([] if non_strict is None else [list(non_strict)])

    def run(self, url):
        """None if it passed, "non-strict", or what went wrong."""
        with Client(url) as client:
            for number, step in enumerate(self.steps):
                if isinstance(step, bytes):
                    client.send(step)
                    continue
                client.read(lambda: False, step)
                if not client.ended and client.close is None:
                    client.events.append(("open", number))
            if self.closes == "us":
                client.read(lambda: client.events in self.outcomes, PATIENCE)
                if client.close is not None or client.ended:
                    return f"closed by the gateway with {client.close}, after {client.shown()}"
                client.send(closing(1000))
            client.read(lambda: False, PATIENCE)
            return self.judge(client)

    def judge(self, client):
        if not client.ended:
            return f"the connection stays, after {client.shown()}"
        if self.free:
            return None
        if client.close is None:
            return f"cut without a close frame, after {client.shown()}"
        code = client.close[0]
        # The answer to a close frame may be an empty one.
        if code not in self.codes and not (code is None and self.closes != "peer"):
            return f"close code {code}, not {' or '.join(map(str, self.codes))}"
        if client.events == self.outcomes[0]:
            return None
        return "non-strict" if client.events in self.outcomes else f"came back: {client.shown()}"


class Client:
    """One socket, and what came over it. Pings of the gateway are answered and not counted."""

    def __init__(self, url):
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
        self.buffer, self.events, self.close, self.ended, self.partial = b"", [], None, False, None
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = parts.path + ("?" + parts.query if parts.query else "")
        self.socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            data = self.socket.recv(4096)
            if not data:
                raise OSError("the handshake was cut")
            self.buffer += data
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise OSError(head.split(b"\r\n", 1)[0].decode("latin-1"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """Sends; a gateway that has closed already shows in what is read."""
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def read(self, enough, seconds):
        """Takes what comes until it is enough, the connection ends, or the time is over."""
        deadline = time.monotonic() + seconds
        while not self.ended and not enough():
            if self.take_frame():
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return
            except OSError:
                data = b""
            self.buffer += data
            self.ended = not data

    def take_frame(self):
        """The first whole frame of the buffer; False if there is none."""
        if len(self.buffer) < 2:
            return False
        first, size, at = self.buffer[0], self.buffer[1], 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            if len(self.buffer) < 2 + wide:
                return False
            size, at = int.from_bytes(self.buffer[2 : 2 + wide], "big"), 2 + wide
        if len(self.buffer) < at + size:
            return False
        payload, self.buffer = self.buffer[at : at + size], self.buffer[at + size :]
        self.take(first >> 7, first >> 4 & 7, first & 15, payload)
        return True

    def take(self, fin, rsv, opcode, payload):
        if self.close is not None:
            self.events.append(("a frame after the close frame", opcode))
        elif rsv:
            self.events.append(("reserved bits", rsv))
        elif opcode == PING:
            self.send(frame(PONG, payload))
        elif opcode == PONG:
            self.events.append(("pong", payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
            self.close = (code, payload[2:])
            self.send(closing(code))
        elif opcode in (0, TEXT, BINARY):
            kind, begun = self.partial if opcode == 0 and self.partial else (opcode, b"")
            self.partial = None if fin else (kind, begun + payload)
            if fin:
                self.events.append(("message", begun + payload, kind == BINARY))
        else:
            self.events.append(("opcode", opcode))

    def shown(self):
        return ", ".join(repr(event)[:80] for event in self.events) or "nothing"


# ---------------------------------------------------------------- the cases


def message(payload, binary=False):
    return ("message", payload, binary)


def pong(payload):
    return ("pong", payload)


def bytewise(data):
    return [bytes([byte]) for byte in data]


def broken(name, steps, before=None):
    """The gateway fails the connection with 1002; an echo from before the fault may or may not come."""
    outcomes = {} if before is None else {"events": [before], "non_strict": []}
    return Case(name, steps, closes="peer", codes=(1002,), **outcomes)


def group_1():
    """Framing: lengths around the borders of the three forms."""
    for group, opcode, byte in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        sizes = (0, 125, 126, 127, 128, 65535, 65536, 65536)
        for number, size in enumerate(sizes, 1):
            payload = byte * size
            data = frame(opcode, payload)
            chop = 997 if number == 8 else len(data)
            steps = [data[at : at + chop] for at in range(0, len(data), chop)]
            yield Case(f"1.{group}.{number}", steps, [message(payload, opcode == BINARY)])


def group_2():
    """Pings and pongs."""
    odd = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    for number, payload in enumerate((b"", HELLO, odd, b"\xfe" * 125), 1):
        yield Case(f"2.{number}", [frame(PING, payload)], [pong(payload)])
    yield broken("2.5", [frame(PING, b"\xfe" * 126)])
    yield Case("2.6", bytewise(frame(PING, b"\xfe" * 125)), [pong(b"\xfe" * 125)])
    unasked = b"unsolicited pong payload"
    yield Case("2.7", [frame(PONG) + closing(1000)], closes="sent")
    yield Case("2.8", [frame(PONG, unasked) + closing(1000)], closes="sent")
    yield Case("2.9", [frame(PONG, unasked) + frame(PING, b"ping payload")], [pong(b"ping payload")])
    payloads = [b"payload-%d" % number for number in range(10)]
    pings = b"".join(frame(PING, payload) for payload in payloads)
    yield Case("2.10", [pings], [pong(payload) for payload in payloads])
    yield Case("2.11", bytewise(pings), [pong(payload) for payload in payloads])


def group_3():
    """Reserved bits."""
    odd = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    yield broken("3.1", [frame(TEXT, HELLO, rsv=1)])
    for number in (2, 3, 4):
        frames = [frame(TEXT, HELLO), frame(TEXT, HELLO, rsv=number), frame(PING)]
        steps = {2: [b"".join(frames)], 3: frames, 4: bytewise(b"".join(frames))}[number]
        yield broken(f"3.{number}", steps, message(HELLO))
    yield broken("3.5", [frame(BINARY, odd, rsv=5)])
    yield broken("3.6", [frame(BINARY, HELLO, rsv=6)])
    yield broken("3.7", [frame(CLOSE, rsv=7)])


def group_4():
    """Reserved opcodes."""
    for group, first in ((1, 3), (2, 11)):
        yield broken(f"4.{group}.1", [frame(first)])
        yield broken(f"4.{group}.2", [frame(first + 1, b"reserved opcode payload")])
        for number, payload in ((3, b""), (4, HELLO), (5, HELLO)):
            frames = frame(TEXT, HELLO) + frame(first + number - 1, payload) + frame(PING)
            steps = bytewise(frames) if number == 5 else [frames]
            yield broken(f"4.{group}.{number}", steps, message(HELLO))


def three_ways(numbers, frames):
    """The same frames together, one by one, and byte by byte."""
    whole = b"".join(frames)
    return zip(numbers, ([whole], frames, bytewise(whole)))


def group_5():
    """Fragments."""
    one, two, three, four, five = (b"fragment%d" % number for number in range(1, 6))
    yield broken("5.1", [frame(PING, one, fin=False) + frame(0, two)])
    yield broken("5.2", [frame(PONG, one, fin=False) + frame(0, two)])
    begin, end = frame(TEXT, one, fin=False), frame(0, two)
    for number, steps in three_ways((3, 4, 5), [begin, end]):
        yield Case(f"5.{number}", steps, [message(one + two)])
    ping = b"ping payload"
    for number, steps in three_ways((6, 7, 8), [begin, frame(PING, ping), end]):
        yield Case(f"5.{number}", steps, [pong(ping), message(one + two)])
    stray = b"non-continuation payload"
    for numbers, fin in (((9, 10, 11), True), ((12, 13, 14), False)):
        for number, steps in three_ways(numbers, [frame(0, stray, fin=fin), frame(TEXT, HELLO)]):
            yield broken(f"5.{number}", steps)
    frames = begin + end + frame(0, three, fin=False) + frame(TEXT, four)
    yield broken("5.15", [frames], message(one + two))
    for number, fin in ((16, False), (17, True)):
        frames = frame(0, one, fin=fin) + frame(TEXT, two, fin=False) + frame(0, three)
        yield broken(f"5.{number}", [frames * 2])
    yield broken("5.18", [begin + frame(TEXT, two)])
    first = [begin, frame(0, two, fin=False), frame(PING, b"pongme 1!")]
    second = [frame(0, three, fin=False), frame(0, four, fin=False), frame(PING, b"pongme 2!"), frame(0, five)]
    # The wait shows that the first pong does not wait for the end of the message.
    events = [pong(b"pongme 1!"), None, pong(b"pongme 2!"), message(one + two + three + four + five)]
    for number, steps in ((19, [b"".join(first), 1, b"".join(second)]), (20, [*first, 1, *second])):
        events[1] = ("open", steps.index(1))
        yield Case(f"5.{number}", steps, list(events))


def group_6():
    """UTF-8."""
    yield Case("6.1.1", [frame(TEXT)], [message(b"")])
    yield Case("6.1.2", [frame(TEXT, fin=False) + frame(0, fin=False) + frame(0)], [message(b"")])
    middle = b"middle frame payload"
    yield Case("6.1.3", [frame(TEXT, fin=False) + frame(0, middle, fin=False) + frame(0)], [message(middle)])
    first, second = "Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()
    valid = "κόσμε".encode()
    yield Case("6.2.1", [frame(TEXT, first + second)], [message(first + second)])
    yield Case("6.2.2", [frame(TEXT, first, fin=False) + frame(0, second)], [message(first + second)])
    yield Case("6.2.3", [b"".join(fragmented(first + second, 1))], [message(first + second)])
    yield Case("6.2.4", [b"".join(fragmented(KOSME, 1))], [message(KOSME)])
    surrogate = KOSME + b"\xed\xa0\x80" + b"edited"
    yield not_utf8("6.3.1", [frame(TEXT, surrogate)])
    yield not_utf8("6.3.2", [b"".join(fragmented(surrogate, 1))])
    yield from fail_fast()
    for group, texts in enumerate(utf8_texts(), 5):
        for number, text in enumerate(texts, 1):
            steps, name = [frame(TEXT, text)], f"6.{group}.{number}"
            yield Case(name, steps, [message(text)]) if is_utf8(text) else not_utf8(name, steps)


def not_utf8(name, steps):
    return Case(name, steps, closes="peer", codes=(1007,))


def is_utf8(text):
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def fail_fast():
    """A text that turns bad in its middle: the close comes then, or (non-strict) at its end."""
    bad = KOSME + b"\xf4\x90\x80\x80" + b"edited"
    whole = frame(TEXT, bad)
    head = len(whole) - len(bad)
    for number, cuts in ((1, (len(KOSME), len(KOSME) + 4)), (2, (12, 13))):
        parts = bad[: cuts[0]], bad[cuts[0] : cuts[1]], bad[cuts[1] :]
        frames = [frame(TEXT, parts[0], fin=False), frame(0, parts[1], fin=False), frame(0, parts[2])]
        yield late_or_early(f"6.4.{number}", frames)
        chops = [whole[: head + cuts[0]], whole[head + cuts[0] : head + cuts[1]], whole[head + cuts[1] :]]
        yield late_or_early(f"6.4.{number + 2}", chops)


def late_or_early(name, parts):
    steps = [parts[0], 1, parts[1], 1, parts[2]]
    early, late = [("open", 1)], [("open", 1), ("open", 3)]
    return Case(name, steps, early, closes="peer", codes=(1007,), non_strict=late)


def utf8_texts():
    """The texts of groups 6.5 on, most of them from Markus Kuhn's UTF-8 decoder stress test."""
    lonely = [(0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD)]
    cut = ["c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"]
    plain = [text.encode() for text in ("hello$world", "hello¢world", "hello€world", "hello\U00024b62world")]
    continuations = [bytes(itertools.islice(itertools.cycle(b"\x80\xbf"), size)) for size in range(2, 7)]
    non_characters = "efbfbe efbfbf " + " ".join(
        f"{first}{second}bf{third}"
        for first, second, third in itertools.product(
            ("f0", "f1", "f2", "f3", "f4"), ("8f", "9f", "af", "bf"), ("be", "bf")
        )
        if (first, second) != ("f0", "8f") and (first != "f4" or second == "8f")
    )
    return [
        [*plain, KOSME],
        [KOSME[:size] for size in range(1, len(KOSME) + 1)],
        texts("00 c280 e0a080 f0908080"),
        texts("f888808080 fc8480808080"),
        texts("7f dfbf efbfbf f48fbfbf"),
        texts("f7bfbfbf fbbfbfbfbf fdbfbfbfbfbf"),
        texts("ed9fbf ee8080 efbfbd f48fbfbf f4908080"),
        [b"\x80", b"\xbf", *continuations, bytes(range(0x80, 0xBF))],
        [b"".join(bytes([byte]) + b" " for byte in range(first, last)) for first, last in lonely],
        texts(" ".join(cut)),
        [bytes.fromhex("".join(cut))],
        texts("fe ff fefeffff"),
        texts("c0af e080af f08080af f8808080af fc80808080af"),
        texts("c1bf e09fbf f08fbfbf f887bfbfbf fc83bfbfbfbf"),
        texts("c080 e08080 f0808080 f880808080 fc8080808080"),
        texts("eda080 edadbf edae80 edafbf edb080 edbe80 edbfbf"),
        [high + low for high in texts("eda080 edadbf edae80 edafbf") for low in texts("edb080 edbfbf")],
        texts(non_characters),
        texts("efbfb9 efbfba efbfbb efbfbc efbfbd efbfbe efbfbf"),
    ]


def texts(hexadecimal):
    return [bytes.fromhex(text) for text in hexadecimal.split()]


def group_7():
    """Closing."""
    payload = b"Hello World!"
    close = closing(1000)
    yield Case("7.1.1", [frame(TEXT, payload)], [message(payload)])
    yield Case("7.1.2", [close + frame(CLOSE)], closes="sent")
    yield Case("7.1.3", [close + frame(PING)], closes="sent")
    yield Case("7.1.4", [close + frame(TEXT, payload)], closes="sent")
    frames = frame(TEXT, b"fragment1", fin=False) + close + frame(0, b"fragment2")
    yield Case("7.1.5", [frames], closes="sent")
    large = (b"BAsd7&jh23" * (1 << 15))[: 1 << 18]
    yield Case("7.1.6", [frame(TEXT, large) + frame(TEXT, payload) + close + frame(PING)], closes="sent", free=True)
    yield Case("7.3.1", [closing()], closes="sent")
    yield Case("7.3.2", [frame(CLOSE, b"a")], closes="peer", codes=(1002,))
    yield Case("7.3.3", [close], closes="sent")
    yield Case("7.3.4", [closing(1000, payload)], closes="sent")
    yield Case("7.3.5", [closing(1000, b"*" * 123)], closes="sent")
    yield Case("7.3.6", [closing(1000, b"*" * 124)], closes="peer", codes=(1002,))
    reason = KOSME + b"\xed\xa0\x80edited"
    yield Case("7.5.1", [closing(1000, reason)], closes="peer", codes=(1002, 1007))
    valid = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for number, code in enumerate(valid, 1):
        yield Case(f"7.7.{number}", [closing(code)], closes="sent", codes=(1000, code))
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield Case(f"7.9.{number}", [closing(code)], closes="peer", codes=(1002,))
    for number, code in enumerate((5000, 65535), 1):
        yield Case(f"7.13.{number}", [closing(code)], closes="sent", free=True)


def group_10():
    """A message in many fragments."""
    payload = b"*" * 65536
    yield Case("10.1.1", [b"".join(fragmented(payload, 1300))], [message(payload)])


def cases():
    groups = (group_1, group_2, group_3, group_4, group_5, group_6, group_7, group_10)
    return [case for group in groups for case in group()]


def main():
    if len(sys.argv) < 2 or not sys.argv[1].startswith("ws://"):
        print(__doc__)
        return 2
    passed = failed = 0
    for case in cases():
        if sys.argv[2:] and case.name not in sys.argv[2:]:
            continue
        try:
            problem = case.run(sys.argv[1])
        except OSError as error:
            problem = f"no socket: {error}"
        if problem:
            print(f"{case.name}: {problem}")
        if problem in (None, "non-strict"):
            passed += 1
        else:
            failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
