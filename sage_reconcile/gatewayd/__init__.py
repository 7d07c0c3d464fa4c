"""The life of the gateway's processes: start, find, stop, and what is still in flight behind a backend.

A gateway is found by the mark in its environment, never by a file; files in $SAGE_HOME/run/gateway are
observations. This package and the command line are the only ones that know both sage and the gateway.
"""

from sage_reconcile.gatewayd.drain import in_flight
from sage_reconcile.gatewayd.life import restart, run_foreground, start, stop
from sage_reconcile.gatewayd.options import GatewayOptions, log_file, recorded_options
from sage_reconcile.gatewayd.processes import GatewayProcess, find
from sage_reconcile.gatewayd.reach import is_healthy

__all__ = [
    "GatewayOptions",
    "GatewayProcess",
    "find",
    "in_flight",
    "is_healthy",
    "log_file",
    "recorded_options",
    "restart",
    "run_foreground",
    "start",
    "stop",
]
