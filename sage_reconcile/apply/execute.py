"""Walks a plan: independent steps at once, each step's actions in order, rollback within the step."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import Protocol

from sage_reconcile.apply.adapting import load_adapter, unload_adapter
from sage_reconcile.apply.hands import Hands, LaunchFailed, Started
from sage_reconcile.apply.routes import Routes
from sage_reconcile.apply.run import Run
from sage_reconcile.errors import ReconcileError, TransientError
from sage_reconcile.model.actions import (
    Action,
    AwaitReady,
    Drain,
    Launch,
    LoadLora,
    Outcome,
    Plan,
    Reap,
    Reroute,
    Result,
    Sleep,
    Step,
    Stop,
    UnloadLora,
    UpdateLive,
    Verdict,
    Wake,
    Withdraw,
)
from sage_reconcile.model.observed import ObservedLaunch


class Progress(Protocol):
    """Is told what happens, as it happens. Must not raise."""

    def started(self, step: Step) -> None: ...

    def acting(self, step: Step, doing: str, launch: Started | ObservedLaunch | None) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """`wait`: whether engines are waited for. `timeout`: seconds for each engine, None for its own.
    `rollback`: whether a failed replacement brings the old launch back."""

    wait: bool = True
    timeout: float | None = None
    rollback: bool = True


_DEFAULT = Options()


class Executor:
    """One execution of one plan. `cancel()` starts no new step and lets running ones come to a safe end."""

    def __init__(self, hands: Hands, routes: Routes, progress: Progress, options: Options = _DEFAULT) -> None:
        self._hands = hands
        self._routes = routes
        self._progress = progress
        self._options = options
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Ctrl-C: nothing new is begun; engines that are being waited for go on loading by themselves."""
        self._cancelled.set()

    async def execute(self, plan: Plan) -> tuple[Outcome, ...]:
        """Outcomes in the order of the plan's steps. Never raises for what an engine or host does."""
        done: dict[str, asyncio.Future[Outcome]] = {}
        loop = asyncio.get_running_loop()
        for step in plan.steps:
            done[step.id] = loop.create_future()
        async with asyncio.TaskGroup() as group:
            for step in plan.steps:
                group.create_task(self._after(step, done))
        return tuple(done[step.id].result() for step in plan.steps)

    async def _after(self, step: Step, done: dict[str, "asyncio.Future[Outcome]"]) -> None:
        for name in step.behind:
            await done[name]
        before = [await done[name] for name in step.after if name in done]
        failed = next((outcome for outcome in before if outcome.result is not Result.DONE), None)
        if failed is not None:
            reason = f"waits for {failed.step.verdict} {failed.step.replica.short}, which "
            reason += "failed" if failed.result is Result.FAILED else "was not done"
            outcome = Outcome(step, Result.SKIPPED, reason)
        elif self._cancelled.is_set():
            outcome = Outcome(step, Result.SKIPPED, "interrupted before it began")
        else:
            outcome = await self._step(step)
        self._progress.ended(outcome)
        done[step.id].set_result(outcome)

    async def _step(self, step: Step) -> Outcome:
        self._progress.started(step)
        run = Run(step)
        begin = time.monotonic()
        try:
            # Before anything is stopped for it: what cannot start replaces nothing.
            for launch in (action for action in step.actions if isinstance(action, Launch)):
                await self._hands.prepare(launch)
            for action in step.actions:
                await self._act(run, action)
        except ReconcileError as error:
            rolled_back, note = await self._roll_back(run)
            reason = "; ".join(part for part in (str(error), note) if part)
            took = time.monotonic() - begin
            outcome = Outcome(step, Result.FAILED, reason, took, rolled_back=rolled_back)
            if isinstance(error, LaunchFailed):
                return replace(outcome, tail=error.tail, cause=error.cause, said=error.said)
            return outcome
        except _InterruptedError:
            return Outcome(step, Result.SKIPPED, "interrupted; the engine goes on loading", 0.0)
        if run.complaints:
            return Outcome(step, Result.FAILED, "; ".join(run.complaints), time.monotonic() - begin)
        return Outcome(step, Result.DONE, "", time.monotonic() - begin)

    async def _act(self, run: Run, action: Action) -> None:
        match action:
            case Launch():
                self._say(run, "starting")
                run.started = await self._hands.launch(action)
            case AwaitReady():
                await self._await_ready(run, action)
            case Reroute(launch):
                await (self._routes.admit(launch) if launch else self._routes.publish())
            case Withdraw(launch):
                await self._withdraw(run, launch)
            case UpdateLive(launch, live):
                await self._hands.update_live(launch, live)
            case Reap(orphan):
                self._say(run, "ending leftovers")
                await self._hands.reap(orphan)
            case Sleep(launch):
                await self._sleep(run, launch)
            case LoadLora(adapter, launch):
                self._say(run, f"loading adapter {adapter.name}", launch)
                await load_adapter(self._hands, run, action)
            case UnloadLora(launch, adapter):
                self._say(run, f"unloading adapter {adapter.name}", launch)
                await unload_adapter(self._hands, run, action)
            case Drain() | Stop() | Wake():
                await self._leave_or_come(run, action)

    async def _withdraw(self, run: Run, launch: ObservedLaunch) -> None:
        run.withdrawn.append(launch)
        try:
            await self._routes.withdraw(launch)
        except TransientError:
            # What is to end must end, also on a full disk; what is to be replaced rather goes on serving.
            if run.step.verdict is not Verdict.STOP:
                raise

    async def _leave_or_come(self, run: Run, action: Drain | Stop | Wake) -> None:
        launch = action.launch
        match action:
            case Drain(_, timeout, is_required):
                self._say(run, "draining", launch)
                if not await self._hands.drain(launch, timeout) and is_required:
                    run.is_busy = True
                    raise TransientError(f"it still has requests in flight after {timeout:g} s")
            case Stop(_, drain):
                if launch in run.stopped:
                    return
                self._say(run, "stopping", launch)
                run.is_ending = True
                await self._hands.stop(launch, drain)
                run.stopped.append(launch)
            case Wake():
                self._say(run, "waking", launch)
                await self._hands.wake(launch)

    async def _sleep(self, run: Run, launch: ObservedLaunch | None) -> None:
        if launch is not None and run.step.verdict is Verdict.REPLACE:
            await self._put_aside(run, launch)
            return
        target = launch or run.started
        is_awaited = any(isinstance(action, AwaitReady) for action in run.step.actions)
        if target is None or (is_awaited and not run.is_ready):
            return  # nobody waited for it (--no-wait), and an engine that loads cannot sleep
        self._say(run, "putting to sleep", target)
        await self._hands.sleep(target)

    async def _put_aside(self, run: Run, old: ObservedLaunch) -> None:
        """Lets the old one sleep until the new one is there; one that does not free its memory is stopped."""
        self._say(run, "putting to sleep", old)
        try:
            await self._hands.sleep(old)
        except ReconcileError:
            await self._leave_or_come(run, Stop(old, 0.0))
        else:
            run.asleep.append(old)

    def _say(self, run: Run, doing: str, launch: Started | ObservedLaunch | None = None) -> None:
        self._progress.acting(run.step, doing, launch)

    async def _await_ready(self, run: Run, action: AwaitReady) -> None:
        is_replacement = run.step.verdict is Verdict.REPLACE
        if not self._options.wait and not is_replacement:
            return
        launch = run.started or action.launch
        if launch is None:
            return
        self._say(run, "waiting until it answers", launch)
        timeout = self._options.timeout or action.timeout
        ready = asyncio.ensure_future(self._hands.await_ready(launch, timeout))
        if is_replacement:
            # A replacement that is left halfway would serve nothing: it is brought to its end.
            await ready
            run.is_ready = True
            return
        stop = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise _InterruptedError
            ready.result()
            run.is_ready = True
        finally:
            for task in (ready, stop):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ReconcileError):
                    await task

    async def _roll_back(self, run: Run) -> tuple[bool, str]:
        """Undoes a failed step: the new launch is ended, the old one serves again. (done, what in words)"""
        if run.started is not None and run.is_ready:
            return False, "the new engine is ready and goes on"
        try:
            if run.started is not None:
                self._say(run, "ending what failed", run.started)
                await self._hands.stop(run.started, 0.0)
            if run.is_busy:
                return await self._restore(run)
            if run.step.verdict is not Verdict.REPLACE:
                return False, ""
            old = next(action.launch for action in run.step.actions if isinstance(action, Stop))
            if old in run.stopped:
                return await self._start_again(run, old)
            if run.is_ending:
                return False, "the old one is half stopped; apply again"
            if old in run.asleep:
                return await self._wake_again(run, old)
            return await self._restore(run)
        except ReconcileError as error:
            return False, f"rolling back failed too: {error}"

    async def _restore(self, run: Run) -> tuple[bool, str]:
        for launch in run.withdrawn:
            await self._routes.restore(launch)
        which = "the old one" if run.step.verdict is Verdict.REPLACE else "it"
        return True, f"{which} goes on serving"

    async def _wake_again(self, run: Run, old: ObservedLaunch) -> tuple[bool, str]:
        """Wakes the old one; if that fails it is started again."""
        self._say(run, "rolling back: waking the old one", old)
        try:
            await self._hands.wake(old)
        except ReconcileError as error:
            await self._hands.stop(old, 0.0)
            done, note = await self._start_again(run, old)
            return done, f"the old one did not wake ({error}); {note}"
        for launch in run.withdrawn:
            await self._routes.restore(launch)
        return True, "the old one was woken and serves again"

    async def _start_again(self, run: Run, old: ObservedLaunch) -> tuple[bool, str]:
        """Starts the old launch spec, which the old launch carried with it."""
        if not self._options.rollback:
            return False, "the old one was stopped and --no-rollback was given"
        self._say(run, "rolling back")
        wanted = next(action for action in run.step.actions if isinstance(action, Launch))
        mark = old.mark
        counted = max((mib for _, mib in old.gpu_mib), default=None) if wanted.counted_mib else None
        live = old.live or wanted.live
        order = Launch(mark.replica, mark.spec, mark.fingerprint, mark.placement, live, counted)
        again = await self._hands.launch(order)
        self._say(run, "rolling back: waiting until the old one answers", again)
        await self._hands.await_ready(again, order.live.health.startup_timeout)
        for adapter in old.adapters or ():
            await self._hands.load_adapter(again, adapter)
        await self._routes.publish()
        return True, "rolled back to what ran before"


class _InterruptedError(Exception):
    """The user interrupted while an engine was being waited for."""
