"""The life of one launch: attempts, restarts between them, the stop, and the records of all that."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from sage_reconcile.supervisor import engine as engines
from sage_reconcile.supervisor import tree
from sage_reconcile.supervisor.events import Events
from sage_reconcile.supervisor.livefile import LiveFile
from sage_reconcile.supervisor.logfile import EngineLog
from sage_reconcile.supervisor.order import Order
from sage_reconcile.supervisor.prober import Prober
from sage_reconcile.supervisor.records import Records
from sage_reconcile.supervisor.redact import Redactor
from sage_reconcile.supervisor.restarts import Restarts
from sage_reconcile.supervisor.verdicts import Verdict, verdict
from sage_reconcile.supervisor.watcher import Watcher

TICK = 0.5
GRACE = 2.0
STUCK = 10.0
TAIL_LINES = 20


class End(NamedTuple):
    """How one attempt ended. `reason` is "exited", "hung", "late", "stopped" or "refused" (never ran)."""

    reason: str
    was_ready: bool
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    message: str = ""

    @property
    def summary(self) -> str:
        if self.reason == "exited":
            return f"killed by signal {self.signal}" if self.signal else f"exited with code {self.code}"
        return self.message


class Supervisor:
    """One launch. `run` returns when no process of the launch is left."""

    def __init__(self, order: Order) -> None:
        directory = Path(order.directory)
        self.order = order
        self.pid = os.getpid()
        self.log = EngineLog(directory, order.log_bytes, order.log_keep)
        self.records = Records(directory)
        self.live_file = LiveFile(directory / "live.json", order.live)
        self.events = Events(self.log.write)
        self.prober = Prober(order.target, self.events.wake)
        self.restarts = Restarts()
        self.redactor = Redactor([*order.env.items(), *order.target.headers.items()])
        self.engine: engines.Engine | None = None
        self.was_ever_ready = False
        self._kept_up = 0.0
        self._stop_note = ""
        self._launch: dict[str, object] = {
            "version": 1,
            "mark": order.mark,
            "supervisor": {"pid": self.pid, "started": tree.started(self.pid)},
            "engine": None,
            "state": "starting",
            "since": time.time(),
            "ready_at": None,
            "restarts": 0,
            "live": order.live.plain(),
            "message": "",
            "next_attempt_at": None,
        }

    def begin(self) -> None:
        """Makes the directory and its first record. Raises OSError."""
        self.records.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.records.put("launch.json", self._launch)

    def run(self) -> int:
        """Exit status: 0 after a stop, 1 when the launch ended otherwise.

        A fault of our own must not leave processes that nobody watches: it ends them, then shows.
        """
        try:
            return self._live()
        except BaseException as error:
            self._end_tree(0.0)
            fault = Verdict(
                f"the supervisor failed: {error!r}", "this is a fault of sage: see supervisor.log"
            )
            self._record_exit(End("exited", self.was_ever_ready), fault, "")
            raise

    def _live(self) -> int:
        header = f"launch {self.order.launch} of {self.order.name}, supervisor {self.pid}"
        while True:
            end = self._attempt(header)
            self._end_tree(GRACE)
            known = self._judge(end)
            if self.events.stops:
                return self._leave(end, known)
            delay, why = self._next(end)
            self._record_exit(end, known, why)
            self._forget_engine()
            if delay is None:
                return self._leave(end, known, why)
            if not self._back_off(delay, f"{end.summary}; {why}"):
                return self._leave(end, known)
            header = (
                f"attempt {self.restarts.total + 1} of launch {self.order.launch}: the last one {end.summary}"
            )

    def _attempt(self, header: str) -> End:
        """Starts the engine and follows it to its end; only its main process need be gone afterwards."""
        self.log.begin(header)
        try:
            self.engine = engines.start(self.order, self.events.output)
        except OSError as error:
            return End("refused", False, message=f"cannot start: {error.strerror}: {error.filename}")
        self.events.follow(self.engine.pid)
        watcher = Watcher(self.prober)
        plain = {"pid": self.engine.pid, "started": self.engine.started}
        self._tell(state="starting", engine=plain, ready_at=None, message=watcher.message)
        reason = self._follow(watcher)
        self.prober.cancel()
        if reason == "stopped":
            self._stop_engine()
        elif reason != "exited":
            self._end_tree(0.0)
        return self._end_of(self.engine, reason, watcher)

    def _follow(self, watcher: Watcher) -> str:
        """Until the attempt has to end; gives the End's reason."""
        while True:
            self._wait(min(TICK, watcher.next_at - time.monotonic()))
            if self.events.main_status is not None:
                return "exited"
            if self.events.stops:
                return "stopped"
            watcher.step(self.live_file.live)
            if watcher.state in ("late", "hung"):
                return watcher.state
            self._tell_health(watcher)

    def _tell_health(self, watcher: Watcher) -> None:
        ready_at = self._launch["ready_at"]
        if watcher.was_ready:
            self.was_ever_ready = True
            ready_at = ready_at or time.time()
        self._tell(state=watcher.state, ready_at=ready_at, message=watcher.message)
        since, window = watcher.ready_since, self.live_file.live.restart.window
        if since is not None and time.monotonic() - since >= window:
            self.restarts.forget()

    def _end_of(self, engine: engines.Engine, reason: str, watcher: Watcher) -> End:
        status = self.events.main_status
        how = os.waitstatus_to_exitcode(status) if status is not None else None
        message = ""
        if refusal := engine.start_error():
            reason, message = "refused", refusal
        elif reason == "late":
            timeout = self.live_file.live.health.startup_timeout
            message = f"not ready within {timeout:g} s; its last probe: {watcher.message}"
        elif reason == "hung":
            message = f"hung: no answer and no progress; its last probe: {watcher.message}"
        elif reason == "stopped":
            message = "stopped"
        return End(
            reason=reason,
            was_ready=watcher.was_ready,
            pid=engine.pid,
            code=how if how is not None and how >= 0 else None,
            signal=-how if how is not None and how < 0 else None,
            message=self.redactor.clean(message),
        )

    def _judge(self, end: End) -> Verdict:
        self.events.read_output(1 << 10)
        if end.reason == "refused":
            return Verdict(end.message, "check the command, cwd and the runtime's python in the stack file")
        if end.reason == "late":
            return Verdict(
                "not ready in time", f"{end.message}; raise health.startup_timeout or read the log"
            )
        if end.reason == "hung":
            return Verdict("hung", f"{end.message}; its log shows what it did last")
        return verdict(self.log.tail(), end.code, end.signal)

    def _next(self, end: End) -> tuple[float | None, str]:
        """Seconds to the next attempt, or None to leave; and why, in words."""
        restart = self.live_file.live.restart
        if not self.was_ever_ready:
            return None, "it ended before it was ever ready"
        if restart.policy == "never" or (restart.policy == "on-failure" and end.code == 0):
            return None, f"the restart policy is {restart.policy}"
        delay = self.restarts.next_delay(time.monotonic(), end.was_ready, restart)
        if delay is None:
            return None, f"gave up: max_attempts ({restart.max_attempts}) restarts used up"
        return delay, f"restart {self.restarts.total} follows in {delay:.1f} s"

    def _back_off(self, delay: float, message: str) -> bool:
        """False when a stop came in between."""
        until = time.monotonic() + delay
        at = time.time() + delay
        self._tell(
            state="backoff", message=message, ready_at=None, next_attempt_at=at, restarts=self.restarts.total
        )
        while (remaining := until - time.monotonic()) > 0 and not self.events.stops:
            self._wait(min(TICK, remaining))
        self._launch["next_attempt_at"] = None
        return not self.events.stops

    def _stop_engine(self) -> None:
        """SIGTERM, then as long as `drain` allows; a second stop cuts it short."""
        self._tell(state="stopping", message="waiting for the engine to finish its requests")
        begun = time.monotonic()
        assert self.engine is not None
        tree.send(self.engine.pid, signal.SIGTERM)
        while self.events.main_status is None and self.events.stops < 2:
            remaining = begun + self.live_file.live.drain - time.monotonic()
            if remaining <= 0:
                break
            self._wait(min(TICK, remaining))
        if self.events.main_status is None:
            elapsed = time.monotonic() - begun
            self._stop_note = f"it had not ended {elapsed:.1f} s after SIGTERM and was killed"
            self._end_tree(0.0)

    def _end_tree(self, grace: float) -> None:
        """Ends every process of the launch: SIGTERM, `grace` seconds, SIGKILL. Returns when none is left.

        A process that even SIGKILL does not end is stuck in the kernel (a GPU driver, a dead disk); it still
        holds what it holds, so the launch has not ended, and says so.
        """
        begun = time.monotonic()
        told: set[int] = set()
        while pids := tree.descendants(self.pid):
            elapsed = time.monotonic() - begun
            if elapsed >= grace or self.events.stops > 1:
                for pid in pids:
                    tree.send(pid, signal.SIGKILL)
            else:
                for pid in set(pids) - told:
                    tree.send(pid, signal.SIGTERM)
                told.update(pids)
            if elapsed >= grace + STUCK:
                stuck = ", ".join(str(pid) for pid in pids)
                self._tell(state="stopping", message=f"does not end even when killed: process {stuck}")
            self._wait(0.02 if elapsed < 1.0 else 0.2)

    def _leave(self, end: End, known: Verdict, why: str = "") -> int:
        self._forget_engine()
        if self.events.stops:
            self._record_exit(end, Verdict("stopped", self._stop_note), "")
            self._tell(state="exited", message="stopped")
            return 0
        self._tell(state="exited", message=f"{known.cause or end.summary}; {why}")
        return 1

    def _forget_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        self._launch["engine"] = None

    def _record_exit(self, end: End, known: Verdict, why: str) -> None:
        tail = [self.redactor.clean(line)[:1000] for line in self.log.tail()[-TAIL_LINES:]]
        record: dict[str, object] = {
            "version": 1,
            "at": time.time(),
            "launch": self.order.launch,
            "pid": end.pid,
            "code": end.code,
            "signal": end.signal,
            "was_ready": end.was_ready,
            "cause": self.redactor.clean(known.cause),
            "hint": self.redactor.clean("; ".join(text for text in (known.hint, why) if text)),
            "tail": tail,
        }
        self.records.put("exit.json", record)

    def _tell(self, **changes: object) -> None:
        """Changes launch.json; `since` moves with `state`. Writes nothing when nothing changed."""
        if "message" in changes:
            changes["message"] = self.redactor.clean(str(changes["message"]))
        if all(self._launch[name] == value for name, value in changes.items()):
            return
        if changes.get("state", self._launch["state"]) != self._launch["state"]:
            changes["since"] = time.time()
        self._launch |= changes
        self.records.put("launch.json", self._launch)

    def _wait(self, timeout: float) -> None:
        """Everything that goes on whatever the launch is doing: signals, reaping, output, upkeep."""
        self.events.wait(timeout)
        now = time.monotonic()
        if now - self._kept_up < TICK:
            return
        self._kept_up = now
        self.log.upkeep()
        if problem := self.live_file.poll():
            self.log.note(problem)
        self._tell(live=self.live_file.live.plain())
        self.records.upkeep()
