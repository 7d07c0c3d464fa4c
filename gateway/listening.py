"""The sockets that a gateway listens on."""

import contextlib
import errno
import os
import socket

# Connections that wait for a worker: a burst of clients fits, also while workers are busy. The kernel's
# net.core.somaxconn may allow fewer.
BACKLOG = 4096
# What an address lacks that the machine does not have, as ::1 of localhost where IPv6 is off.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, inherited by whatever this process starts.

    An IPv6 one takes no IPv4. Raises OSError, in words for the user, if one of them is taken or none is of
    this machine.
    """
    sockets: list[socket.socket] = []
    absent = None
    for family, kind, protocol, _, address in _addresses(host, port):
        try:
            sockets.append(_listen(family, kind, protocol, address))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            absent = OSError(error.errno, f"cannot listen on {host} port {port}: {reason}")
            if error.errno not in _ABSENT:
                close(sockets)
                raise absent from error
    if not sockets and absent is not None:
        raise absent
    return sockets


def close(sockets: list[socket.socket]) -> None:
    """Closes and forgets them."""
    while sockets:
        sockets.pop().close()


def inherited(number: int) -> socket.socket:
    """The socket that the process which started this one left open under a number."""
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)


_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str | bytes | int, ...]]


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from error
    return list(dict.fromkeys(found))


def _listen(family: int, kind: int, protocol: int, address: tuple[str | bytes | int, ...]) -> socket.socket:
    with contextlib.ExitStack() as undo:
        made = undo.enter_context(socket.socket(family, kind, protocol))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
        made.set_inheritable(True)
        undo.pop_all()
        return made
