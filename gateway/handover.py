"""How a gateway hands its listening sockets to the one that takes its place, so that no client notices.

The one that serves offers itself under an abstract socket name made of its pid: nothing lies in a file, so
nothing is stale after a SIGKILL. Both sides check who the other is (SO_PEERCRED). In turn:

1. the new one sends {"home", "host", "port"}; the old one answers with its sockets, if they are these;
2. the new one, once its workers serve, sends DRAIN; the old one answers DRAIN, takes no more connections,
   finishes what is in flight, and ends.

A new one that goes away before DRAIN leaves the old one as it was.
"""

import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass

from sage_reconcile.errors import BlockedError

DRAIN, BUSY = b"drain", b"busy"
# How long the other side may take for an answer, seconds.
PATIENCE_S = 5.0
_SOCKETS, _OTHER_PLACE, _OTHER_HOME = b"sockets", b"other place", b"other home"
_MAX_BYTES = 8192
# One for each address of a host name.
_MAX_SOCKETS = 16
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway listens, as its options say it, and whose it is (an absolute SAGE_HOME)."""

    home: str
    host: str
    port: int


def offer() -> socket.socket | None:
    """Where a successor reaches this process. None if somebody else holds the name: then nobody can."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.bind(_name(os.getpid()))
        made.listen()
    except OSError:
        made.close()
        return None
    made.setblocking(False)
    return made


def connect(pid: int) -> socket.socket | None:
    """A connection to the gateway with this pid, or None if it offers none: an older one, or none at all."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        made.connect(_name(pid))
        # Anybody may bind an abstract name, so also a stranger that of a gateway to come.
        if _peer(made) == (pid, os.getuid()):
            return made
    made.close()
    return None


def is_offered(pid: int) -> bool:
    """Whether the gateway with this pid could be taken over from."""
    made = connect(pid)
    if made is not None:
        made.close()
    return made is not None


def take(predecessor: socket.socket, place: Place) -> list[socket.socket]:
    """The sockets of the gateway at the other end; none if it listens elsewhere.

    Raises BlockedError if it is being replaced already, is of another home, or does not answer.
    """
    request = {"home": place.home, "host": place.host, "port": place.port}
    try:
        predecessor.send(json.dumps(request).encode())
        told, numbers, _, _ = socket.recv_fds(predecessor, _MAX_BYTES, _MAX_SOCKETS)
    except OSError as error:
        raise BlockedError(f"the gateway that runs does not hand over: {error}") from error
    if told == BUSY:
        raise BlockedError("the gateway that runs ends, or is being replaced already")
    if told not in (_SOCKETS, _OTHER_PLACE):
        raise BlockedError(f"the gateway that runs does not hand over: it says {told.decode()!r}")
    for number in numbers:
        os.set_inheritable(number, True)
    return [socket.socket(fileno=number) for number in numbers]


def let_drain(predecessor: socket.socket) -> None:
    """Tells the gateway at the other end to finish and end; returns when it has begun to."""
    with contextlib.suppress(OSError):  # it was killed: then it has ended, too
        predecessor.send(DRAIN)
        predecessor.recv(_MAX_BYTES)
    predecessor.close()


def accept(offered: socket.socket) -> socket.socket | None:
    """Somebody who connected, or None if it left again or belongs to another user."""
    try:
        made, _ = offered.accept()
    except OSError:
        return None
    if _peer(made)[1] != os.getuid():
        made.close()
        return None
    made.setblocking(False)
    return made


def receive(caller: socket.socket) -> bytes:
    """What somebody at the offer says: DRAIN, or a request; b"" when it has gone away."""
    try:
        return caller.recv(_MAX_BYTES)
    except OSError:
        return b""


def send(caller: socket.socket, word: bytes) -> None:
    """Says one word, unless the other has gone away."""
    with contextlib.suppress(OSError):
        caller.send(word)


def answer(caller: socket.socket, request: bytes, place: Place, sockets: list[socket.socket]) -> None:
    """Answers a request: with the sockets, if it is for the place where these listen."""
    try:
        wanted = Place(**json.loads(request))
    except (ValueError, TypeError):
        wanted = Place("", "", 0)
    if wanted.home != place.home:
        send(caller, _OTHER_HOME)
    elif wanted != place:
        send(caller, _OTHER_PLACE)
    else:
        with contextlib.suppress(OSError):
            socket.send_fds(caller, [_SOCKETS], [one.fileno() for one in sockets])


def _name(pid: int) -> bytes:
    # Containers that share a network have pids of their own, and the same ones.
    return b"\0sage-gateway-%d-%d" % (os.stat("/proc/self/ns/pid").st_ino, pid)


def _peer(made: socket.socket) -> tuple[int, int]:
    """The pid and the user id of the other side, as the kernel tells them."""
    packed = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(packed)
    return pid, uid
