"""The gateway seen over the network: its health, and who else holds its port."""

import contextlib
import errno
import http.client
import json
import socket

import psutil

from gateway import settings
from sage_reconcile.errors import BlockedError
from sage_reconcile.gatewayd.options import GatewayOptions
from sage_reconcile.gatewayd.processes import GatewayProcess, environ_of

HEALTH_TIMEOUT_S = 2.0


def is_healthy(running: GatewayProcess) -> bool:
    """Whether it answers /health now."""
    return health_pid(running.options) is not None


def health_pid(options: GatewayOptions) -> int | None:
    """The pid of the gateway worker that answers /health there, or None."""
    connection = http.client.HTTPConnection(options.reachable_host, options.port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        told = json.loads(response.read())
        return int(told["pid"]) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def check_port(options: GatewayOptions) -> None:
    """Raises BlockedError if the gateway could not listen; names the process that holds the port."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    place = f"{options.host} port {options.port}"
    try:
        socket.create_server((options.host, options.port), family=family).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise BlockedError(f"the gateway cannot listen on {place}: {error.strerror or error}") from error
        raise BlockedError(
            f"the gateway cannot listen on {place}: it is held by {_holder(options.port)}; "
            "stop that or choose another --port"
        ) from error


def _holder(port: int) -> str:
    for connection in psutil.net_connections("tcp"):
        is_listening = connection.status == psutil.CONN_LISTEN
        if is_listening and getattr(connection.laddr, "port", 0) == port and connection.pid:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                home = environ_of(process).get(settings.MARK)
                what = f", the gateway of SAGE_HOME {home}" if home else ""
                return f"process {process.pid} ({process.name()}{what})"
    return "a process of another user"
