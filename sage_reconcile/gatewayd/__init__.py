"""The life of the gateway's processes: start, find, stop, and what is still in flight behind a backend.

A gateway, and the watcher that `--stack` brings along, are found by the marks in their environment, never by
a file; files in $SAGE_HOME/run/gateway are observations. This package and the command line are the only ones
that know both sage and the gateway.
"""

from sage_reconcile.gatewayd.active import active_requests, set_queue_policy
from sage_reconcile.gatewayd.drain import in_flight
from sage_reconcile.gatewayd.life import is_outdated, run_foreground, start, start_all, stop
from sage_reconcile.gatewayd.options import GatewayOptions, log_file, queue_policy, recorded_options
from sage_reconcile.gatewayd.processes import GatewayProcess, WatcherProcess, find, find_watcher
from sage_reconcile.gatewayd.reach import is_healthy
from sage_reconcile.gatewayd.renewal import restart
from sage_reconcile.gatewayd.settle import Start, settle
from sage_reconcile.gatewayd.watcher import check_no_other, start_watcher

__all__ = [
    "GatewayOptions",
    "GatewayProcess",
    "Start",
    "WatcherProcess",
    "active_requests",
    "check_no_other",
    "find",
    "find_watcher",
    "in_flight",
    "is_healthy",
    "is_outdated",
    "log_file",
    "queue_policy",
    "recorded_options",
    "restart",
    "run_foreground",
    "set_queue_policy",
    "settle",
    "start",
    "start_all",
    "start_watcher",
    "stop",
]
