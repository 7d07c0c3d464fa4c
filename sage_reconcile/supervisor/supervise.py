"""The life of one launch: attempts, restarts between them, the stop, and the records of all that."""

import os
import signal
import time
from pathlib import Path

from sage_reconcile.supervisor import engine as engines
from sage_reconcile.supervisor import journal, tree
from sage_reconcile.supervisor.events import Events
from sage_reconcile.supervisor.exits import GAVE_UP, End, exit_record, judge
from sage_reconcile.supervisor.livefile import LiveFile
from sage_reconcile.supervisor.logfile import EngineLog
from sage_reconcile.supervisor.order import Order
from sage_reconcile.supervisor.prober import Prober
from sage_reconcile.supervisor.records import Records
from sage_reconcile.supervisor.redact import Redactor
from sage_reconcile.supervisor.restarts import Restarts
from sage_reconcile.supervisor.verdicts import Verdict
from sage_reconcile.supervisor.watcher import Watcher

# Between two looks at live.json, records and log: what happens to the engine wakes a supervisor by itself.
TICK = 1.0
GRACE = 2.0
STUCK = 10.0
# Output of an ended engine that may still be in the pipe, and far more.
LAST_CHUNKS = 1024


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
        named = [*order.env.items(), *order.target.headers.items()]
        self.redactor = Redactor(named, order.argv, order.secrets)
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
            "since_up": tree.uptime(),
            "boot": tree.boot_id(),
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
            hint = "this is a fault of sage: please report what supervisor.log says"
            fault = Verdict(f"the supervisor failed: {error!r}", hint)
            self._record_exit(End("exited", self.was_ever_ready), fault)
            raise

    def _live(self) -> int:
        header = f"launch {self.order.launch} of {self.order.name}, supervisor {self.pid}"
        while True:
            end = self._attempt(header)
            self._clean_up(end)
            if self.events.stops:
                return self._leave_stopped(end)
            known = judge(end, self.log.tail())
            delay, why = self._next(end)
            self._record_exit(end, known._replace(hint=f"{known.hint}; {why}"))
            if delay is None:
                self._tell(state="exited", message=f"{known.cause or end.summary}; {why}")
                return 1
            self._back_off(delay, f"{end.summary}; {why}")
            if self.events.stops:
                return self._leave_stopped(end)
            number = self.restarts.total + 1
            header = f"attempt {number} of launch {self.order.launch}: the last one {end.summary}"

    def _attempt(self, header: str) -> End:
        """Starts the engine and follows it to its end; children of it may be left."""
        self.log.begin(header)
        try:
            self.engine = engines.start(self.order, self.events.output)
        except OSError as error:
            return End("refused", False, message=f"cannot start: {error}")
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
            if watcher.is_over:
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
        message = "stopped" if reason == "stopped" else ""
        if refusal := engine.start_error():
            reason, message = "refused", refusal
        elif reason == "late":
            timeout = self.live_file.live.health.startup_timeout
            message = f"not ready within {timeout:g} s; its last probe: {watcher.message}"
        elif reason == "robbed":
            message = f"{watcher.stranger} listens on its port {self.order.target.port}"
        elif reason == "wrong":
            message = watcher.message
        elif reason == "hung":
            message = f"no answer and no progress; its last probe: {watcher.message}"
        end = End(reason, watcher.was_ready, engine.pid, message=self.redactor.clean(message))
        return end.with_status(self.events.main_status)

    def _clean_up(self, end: End) -> None:
        """Nothing of the attempt is left afterwards, but its output."""
        if not self.events.stops:
            # What it had been routed for, it cannot serve now, even before its last process is gone.
            state = "failing" if end.was_ready else "starting"
            self._tell(state=state, ready_at=None, message=end.summary)
        self._end_tree(GRACE)
        self.events.read_output(LAST_CHUNKS)
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        self._launch["engine"] = None

    def _next(self, end: End) -> tuple[float | None, str]:
        """Seconds to the next attempt, or None to leave; and why, in words."""
        restart = self.live_file.live.restart
        if not self.was_ever_ready:
            return None, "it ended before it was ever ready"
        if restart.policy == "never" or (restart.policy == "on-failure" and end.code == 0):
            return None, f"the restart policy is {restart.policy}"
        delay = self.restarts.next_delay(time.monotonic(), end.was_ready, restart)
        if delay is None:
            return None, f"{GAVE_UP} ({restart.max_attempts}) restarts used up"
        when = f"in {delay:.1f} s" if delay else "at once"
        return delay, f"restart {self.restarts.total} follows {when}"

    def _back_off(self, delay: float, message: str) -> None:
        """Returns after `delay` seconds, or when a stop came in between."""
        if not delay:
            self._tell(state="starting", message=message, restarts=self.restarts.total)
            return
        until = time.monotonic() + delay
        at = time.time() + delay
        self._tell(state="backoff", message=message, next_attempt_at=at, restarts=self.restarts.total)
        while (remaining := until - time.monotonic()) > 0 and not self.events.stops:
            self._wait(min(TICK, remaining))
        self._launch["next_attempt_at"] = None

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

    def _leave_stopped(self, end: End) -> int:
        self._record_exit(end, Verdict("stopped", self._stop_note))
        self._tell(state="exited", message="stopped")
        return 0

    def _record_exit(self, end: End, known: Verdict) -> None:
        record = exit_record(self.order.launch, end, known, self.log.tail(), self.redactor)
        self.records.put("exit.json", record)

    def _tell(self, **changes: object) -> None:
        """Changes launch.json; `since` moves with `state`. Writes nothing when nothing changed."""
        if "message" in changes:
            changes["message"] = self.redactor.clean(str(changes["message"]))
        if all(self._launch[name] == value for name, value in changes.items()):
            return
        if changes.get("state", self._launch["state"]) != self._launch["state"]:
            changes |= {"since": time.time(), "since_up": tree.uptime()}
            self._note(str(changes["state"]), str(changes.get("message", "")))
        self._launch |= changes
        self.records.put("launch.json", self._launch)

    def _note(self, kind: str, message: str) -> None:
        """Adds an event to the journal."""
        journal.append(str(self.order.mark.get("home", "")), kind, self.order.name, message)

    def _wait(self, timeout: float) -> None:
        """Everything that goes on whatever the launch is doing: signals, reaping, output, upkeep."""
        self.events.wait(timeout)
        now = time.monotonic()
        if now - self._kept_up < TICK:
            return
        self._kept_up = now
        self.log.upkeep()
        before = self.live_file.live
        if problem := self.live_file.poll():
            self.log.note(problem)
        if self.live_file.live is not before:
            self._tell(live=self.live_file.live.plain())
        self.records.upkeep()
        if reason := self.log.take_loss(now):
            self._note("log", f"output is lost: {reason}")
