"""The control plane as one class: engines, GPUs and policies of one SAGE_HOME."""

import asyncio
import contextlib
from typing import Unpack

from sage_reconcile import adhoc, gatewayd
from sage_reconcile.control import edits
from sage_reconcile.control.engines import EngineLifecycleManager
from sage_reconcile.control.entries import EngineOptions, EntryOptions
from sage_reconcile.control.facts import status
from sage_reconcile.control.gpus import GPUResourceManager
from sage_reconcile.control.keeping import Keeping
from sage_reconcile.control.looking import all_engines, blocking, look
from sage_reconcile.control.registering import external_fields, require_model
from sage_reconcile.converge import Host, local_host
from sage_reconcile.home import Home
from sage_reconcile.model.management import EngineInfo, Json, Status
from sage_reconcile.watch import Watcher

Kept = tuple[Watcher, "asyncio.Task[int]"]


class ControlPlaneManager:
    """What the `sage` command and the management API do, as methods. `engines` and `gpus` are its parts.

    `start`, `stop` and `stop_engine_gracefully` are asynchronous, the rest is synchronous. Engines outlive
    this object, and the program: their supervisors restart them by the settings that are given here and that
    go into each entry of adhoc.yaml. `health_check_interval` in seconds; backoff is 1, 2, 4 s and so on.
    """

    def __init__(
        self,
        home: Home | None = None,
        host: Host | None = None,
        *,
        auto_restart: bool = True,
        max_restart_attempts: int = 3,
        health_check_interval: float = 10.0,
        consecutive_failures_threshold: int = 3,
    ) -> None:
        self._host = host or local_host((home or Home.from_environ()).claim())
        self.engines = EngineLifecycleManager(host=self._host)
        self.gpus = GPUResourceManager(host=self._host)
        self.auto_restart = auto_restart
        self.max_restart_attempts = max_restart_attempts
        self.health_check_interval = health_check_interval
        self.consecutive_failures_threshold = consecutive_failures_threshold
        self._kept: Kept | None = None

    async def start(self) -> None:
        """Begins to keep what adhoc.yaml says, as `sage watch` does: engines that should run are started,
        also after a reboot or a killed supervisor. Without `auto_restart` nothing is begun. Twice is once.
        """
        if not self.auto_restart or self._kept is not None:
            return
        watcher = Watcher([self._host.home.adhoc_file], Keeping(self._host), self.health_check_interval)
        self._kept = watcher, asyncio.create_task(watcher.run())

    async def stop(self) -> None:
        """Keeps nothing any more. Engines go on."""
        if self._kept is None:
            return
        watcher, running = self._kept
        self._kept = None
        watcher.stop.set()
        watcher.nudge()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    def request_engine_startup(
        self, model_id: str, name: str | None = None, *, wait: bool = False, **options: Unpack[EngineOptions]
    ) -> EngineInfo:
        """Starts an engine with the settings of this object; see EngineLifecycleManager.spawn_engine. The
        engine as it is then."""
        policy = "always" if self.auto_restart else "never"
        given: EngineOptions = {
            "restart": {"policy": policy, "max_attempts": max(1, self.max_restart_attempts), "backoff": "1s"},
            "health": {
                "interval": f"{self.health_check_interval:g}s",
                "failures": self.consecutive_failures_threshold,
            },
            **options,
        }
        return self.engines.get_engine_status(self.engines.spawn_engine(model_id, name, wait=wait, **given))

    def request_engine_shutdown(self, engine_id: str, drain: bool = True) -> EngineInfo | None:
        """Stops an engine, see EngineLifecycleManager.stop_engine. As it is then; None if its entry went."""
        self.engines.stop_engine(engine_id, drain)
        named = engine_id.partition("#")[0].rpartition("/")[2]
        left = [one for one in self.engines.list_engines() if one.engine_id == f"adhoc/{named}#0"]
        return left[0] if left else None

    async def stop_engine_gracefully(self, engine_id: str) -> bool:
        """Stops an engine once its requests in flight have ended, `rollout.drain` of its entry at most; False
        when nothing of it ran."""
        return await self.engines.end(engine_id, True, edits.Work())

    def register_engine(
        self, model_id: str, url: str, name: str | None = None, **options: Unpack[EngineOptions]
    ) -> EngineInfo:
        """Routes to an engine that runs elsewhere. It is probed and never started or stopped.

        Raises PermanentError for an address that is none, or where nothing answers as that model.
        """
        fields = external_fields(url, options)
        engine = blocking(self._register(model_id, name, fields))
        return self.engines.get_engine_status(engine)

    async def _register(self, model_id: str, name: str | None, fields: EntryOptions) -> str:
        await require_model(fields["url"], model_id)
        return await self.engines.start(model_id, name, fields, edits.Work(), may_replace=True)

    def get_cluster_status(self) -> Status:
        """Engines, GPUs, what is reserved, and what cannot be seen: GET /v1/management/status."""
        return blocking(self.look())

    async def look(self) -> Status:
        """As `get_cluster_status`."""
        observed = await look(self._host)
        infos = all_engines(self._host, observed)
        fault = adhoc.entries_or_fault(self._host.home)[1]
        return status(observed, infos, str(self._host.home.root), fault)

    def update_policy(self, policy: str) -> Json:
        """Sets who of the waiting is next, for all models; "stack" gives that back to the stack files.

        Raises PermanentError for a policy that there is not. Counts until the gateway is stopped.
        """
        gatewayd.set_queue_policy(self._host.home, policy)
        return {"policy": policy}
