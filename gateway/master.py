"""The parent of a gateway's workers: it owns the sockets, keeps the workers running, and hands over.

It serves nothing itself and imports nothing of what does, so that it stays small.
"""

import argparse
import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gateway import events, handover, listening
from gateway.handover import Place
from gateway.settings import LOG_LEVELS, MARK, POLICY_FILE
from gateway.workers import Worker, Workers

# What ends a gateway, unless it was ignored when this process began (nohup, a background job).
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long requests in flight may go on when the gateway is told to end. Shorter than the grace that
# `sage gateway stop` gives.
DRAIN_S = 25.0
# And when another gateway serves in its place: nobody waits for its end, and generations are long.
REPLACED_DRAIN_S = 600.0
# What workers get to end in after that, before they are killed.
KILL_AFTER_S = 3.0
KILL_AGAIN_S = 0.5


def serve(options: argparse.Namespace) -> int:
    """Serves until a signal, a successor, or workers that cannot start end it; the exit status.

    Raises BlockedError and OSError, in words for the user, if it cannot have the sockets.
    """
    place = Place(os.environ[MARK], options.host, options.port)
    predecessor = handover.connect(options.take_over) if options.take_over else None
    sockets = handover.take(predecessor, place) if predecessor is not None else []
    sockets = sockets or listening.listen(options.host, options.port)
    if predecessor is None:
        # What an administrator has set lasts as long as the gateway, restarts included.
        Path(place.home, POLICY_FILE).unlink(missing_ok=True)
    log = _Log(options.log_level)

    def warn(text: str) -> None:
        log.warning(text)
        events.append(place.home, "worker", text)

    workers = Workers(_worker_command(options.log_level, sockets), options.workers, warn)
    return Master(place, sockets, workers, log, predecessor).run()


class Master:
    """Everything happens in one thread, when the selector says so; nothing is polled for."""

    def __init__(
        self,
        place: Place,
        sockets: list[socket.socket],
        workers: Workers,
        log: "_Log",
        predecessor: socket.socket | None,
    ) -> None:
        self._place = place
        self._sockets = sockets
        self._workers = workers
        self._log = log
        self._predecessor = predecessor
        self._selector = selectors.DefaultSelector()
        self._offer: socket.socket | None = None
        self._successor: socket.socket | None = None
        self._is_announced = False
        self._signals: list[int] = []
        self._handlers: dict[int, Any] = {}
        # When the workers are not to wait for requests any more, and when they are killed.
        self._hurry_at: float | None = None
        self._kill_at: float | None = None

    def run(self) -> int:
        """Returns when every worker has ended; by SIGTERM and SIGHUP this process ends itself then."""
        self._handle_signals()
        if self._predecessor is None:
            self._make_offer()
        while self._workers.living or self._kill_at is None:
            for worker in self._workers.fill():
                self._watch(worker.channel, partial(self._hear, worker))
            for key, _ in self._selector.select(self._patience()):
                key.data()
            for worker in self._workers.reap():
                self._forget(worker.channel)
                self._remove_record(worker)
            if self._workers.fault and self._kill_at is None:
                self._log.error(f"{self._workers.fault}; the gateway ends")
                self._end(DRAIN_S)
            self._end_what_lasts()
        return self._status()

    def _handle_signals(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        self._signal_ends = (ours, theirs)
        self._watch(ours, self._on_signals)
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, _note)
        signal.signal(signal.SIGCHLD, _note)

    def _on_signals(self) -> None:
        for number in self._signal_ends[0].recv(256):
            if number == signal.SIGCHLD:
                continue
            self._signals.append(number)
            self._end(DRAIN_S if len(self._signals) == 1 else 0.0)

    def _hear(self, worker: Worker) -> None:
        if not self._workers.hear(worker):
            self._forget(worker.channel)
        elif self._workers.serving >= self._workers.wanted and not self._is_announced:
            self._announce()

    def _announce(self) -> None:
        """All workers serve for the first time: the predecessor may go."""
        if self._kill_at is not None:
            return
        self._is_announced = True
        self._log.info(f"Gateway running on {_url(self._place)} with {_count(self._workers.wanted)}")
        if self._predecessor is not None:
            handover.let_drain(self._predecessor)
            self._predecessor = None
            self._make_offer()

    def _make_offer(self) -> None:
        """A successor may come."""
        self._offer = handover.offer()
        if self._offer is None:
            self._log.warning("the name of this process is taken: a restart has to stop it first")
        else:
            self._watch(self._offer, self._on_offer)

    def _on_offer(self) -> None:
        assert self._offer is not None
        caller = handover.accept(self._offer)
        if caller is not None:
            self._watch(caller, partial(self._on_caller, caller))

    def _on_caller(self, caller: socket.socket) -> None:
        told = handover.receive(caller)
        if not told:
            self._forget(caller)
            self._successor = None if caller is self._successor else self._successor
        elif self._kill_at is not None or self._successor not in (None, caller):
            handover.send(caller, handover.BUSY)
        elif told == handover.DRAIN:
            handover.send(caller, handover.DRAIN)
            self._log.info("Another gateway serves in this one's place: it finishes what is in flight")
            self._end(REPLACED_DRAIN_S)
        else:
            self._successor = caller
            handover.answer(caller, told, self._place, self._sockets)

    def _end(self, drain: float) -> None:
        """Takes no more connections and lets the workers finish, within `drain` seconds."""
        hurry_at = time.monotonic() + drain
        if self._kill_at is None or hurry_at + KILL_AFTER_S < self._kill_at:
            self._hurry_at, self._kill_at = hurry_at, hurry_at + KILL_AFTER_S
        self._workers.wanted = 0
        # Else the kernel would go on taking connections that nobody serves.
        listening.close(self._sockets)
        if self._offer is not None:
            self._forget(self._offer)
        self._workers.send(signal.SIGTERM)
        self._end_what_lasts()

    def _end_what_lasts(self) -> None:
        now = time.monotonic()
        if self._hurry_at is not None and now >= self._hurry_at:
            # uvicorn waits for requests in flight once, and no longer when it is interrupted after that.
            self._workers.send(signal.SIGINT)
            self._hurry_at = None
        if self._kill_at is not None and now >= self._kill_at:
            self._workers.send(signal.SIGKILL)

    def _patience(self) -> float | None:
        if self._kill_at is None:
            return self._workers.patience()
        return max(KILL_AGAIN_S, (self._hurry_at or self._kill_at) - time.monotonic())

    def _remove_record(self, worker: Worker) -> None:
        """A worker that was killed has left its record; see gateway/record.py."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._place.home}/run/gateway/{worker.pid}.json")

    def _status(self) -> int:
        if self._workers.fault:
            return self._workers.fault_code
        if self._signals and self._signals[0] != signal.SIGINT:
            # As it would have ended without our handler, so that whoever waits for it sees why.
            signal.signal(self._signals[0], self._handlers[self._signals[0]])
            signal.raise_signal(self._signals[0])
        return 0

    def _watch(self, end: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(end, selectors.EVENT_READ, act)

    def _forget(self, end: socket.socket) -> None:
        """Closes one end, unless that has happened."""
        if end.fileno() >= 0:
            self._selector.unregister(end)
            end.close()


class _Log:
    """Lines as the workers write them, without what their logging needs of memory."""

    def __init__(self, level: str) -> None:
        self._least = LOG_LEVELS.index(level)

    def info(self, text: str) -> None:
        self._write("info", text)

    def warning(self, text: str) -> None:
        self._write("warning", text)

    def error(self, text: str) -> None:
        self._write("error", text)

    def _write(self, level: str, text: str) -> None:
        if LOG_LEVELS.index(level) > self._least:
            return
        now = time.time()
        moment = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now * 1000) % 1000:03d}"
        # A full disk, or a terminal that is gone, is no reason to end.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{moment} [{os.getpid()}] {level.upper() + ':':<9} {text}\n")
            sys.stderr.flush()


def _worker_command(log_level: str, sockets: list[socket.socket]) -> list[str]:
    """The command that is a worker, but for its last word: by the same Python, found in the same places."""
    python = [sys.executable, *sys.orig_argv[1 : sys.orig_argv.index("-m")]]
    listen = [word for one in sockets for word in ("--listen", str(one.fileno()))]
    return [*python, "-m", "gateway.worker", "--log-level", log_level, *listen]


def _url(place: Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"http://{host}:{place.port}"


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _note(number: int, frame: object) -> None:
    """Signals are acted on where the selector tells of them; see set_wakeup_fd."""
