"""The door of the control process: a socket of its own, and a process behind it when somebody comes.

The control process knows sage; the gateway knows only how to start it. Nobody who manages nothing pays for
it: it is started by the first request for it, ends when it has not been asked for a while, and is started
again by the next one. The socket has an abstract name that nobody can guess: nothing lies in a file, nothing
is stale after a SIGKILL, and a gateway that takes over has another one. The process lets in only its own
user.
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

from gateway.settings import CONTROL, MARK

MODULE = "sage_reconcile.management"
# What the process sends once it serves.
READY = b"R"
# What only the gateway itself needs to know. Keys are named here anew: their module takes memory.
HIDDEN = (MARK, CONTROL, "SAGE_API_KEYS", "SAGE_ADMIN_API_KEYS", "SAGE_GATEWAY_KEYS")


class Door:
    """One listening socket, and at most one process behind it. `home` is an absolute SAGE_HOME."""

    def __init__(self, home: str, python: list[str], warn: Callable[[str], None]) -> None:
        self.pid = 0
        self._command = [*python, "-m", MODULE]
        self._home = home
        self._warn = warn
        self._channel: socket.socket | None = None
        self.listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"sage-control-{os.urandom(16).hex()}"
        try:
            self.listener.bind(f"\0{name}")
            self.listener.listen(64)
            self.listener.setblocking(False)
        except OSError as error:
            self.close()
            warn(f"the management API is not to be had: {error.strerror}")
            return
        # For the workers, which inherit it.
        os.environ[CONTROL] = name

    def answer(self) -> None:
        """Starts the process: somebody waits at the socket."""
        assert self.listener is not None
        ours, theirs = socket.socketpair()
        handles = [self.listener.fileno(), theirs.fileno()]
        environ = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        environ["SAGE_HOME"] = self._home
        command = [*self._command, *map(str, handles)]
        try:
            for handle in handles:
                os.set_inheritable(handle, True)
            self.pid = os.posix_spawn(sys.executable, command, environ, setpgroup=0, setsigmask=())
        except OSError as error:
            ours.close()
            self._turn_away(f"the control process cannot be started: {error.strerror}")
            return
        finally:
            theirs.close()
            os.set_inheritable(self.listener.fileno(), False)
        ours.setblocking(False)
        self._channel = ours

    def reap(self) -> bool:
        """Whether the process has ended since; then the next one who comes gets another one."""
        if not self.pid:
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        self.pid = 0
        has_served = self._has_served()
        code = os.waitstatus_to_exitcode(status)
        if self.listener is not None and (code or not has_served):
            what = f"the control process ended {f'with code {code}' if code >= 0 else f'by signal {-code}'}"
            if has_served:
                self._warn(f"{what}; the next request for it starts another one")
            else:
                self._turn_away(f"{what} at start")
        return True

    def close(self) -> None:
        """Lets nobody in any more, and tells the process to end."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """A signal to the process, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _has_served(self) -> bool:
        """Whether the one that has ended ever served: whoever waits would else wait for ever."""
        assert self._channel is not None
        with self._channel:
            try:
                return self._channel.recv(1) == READY
            except OSError:
                return False

    def _turn_away(self, why: str) -> None:
        """Those who wait would get no answer from the next one either; whoever comes later may."""
        self._warn(f"{why}; whoever waited for it is refused")
        with contextlib.suppress(OSError):
            while self.listener is not None:
                self.listener.accept()[0].close()
