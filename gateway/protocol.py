"""How a client's connection is read: uvicorn's way, and beside it the lane of requests to engines.

A request to an engine never becomes an ASGI request: it is an Exchange, which answers by itself. All others
go on to uvicorn and the application. Both keep the order of requests on a connection, for an Exchange stands
where uvicorn has the cycle of a request.
"""

import hmac
from time import monotonic
from typing import TYPE_CHECKING, Any

import httptools

from gateway import heads
from gateway.asked import Asked
from gateway.errors import RequestError
from gateway.exchange import Exchange
from gateway.limited import Deaf, LimitedProtocol
from gateway.paths import engine_target
from gateway.tunnel import AskedToSwitch, Tunnel, is_asked_for

if TYPE_CHECKING:
    from gateway.keys import Key
    from gateway.lane import Lane

# What is read and thrown away of a request that was refused before it was complete.
MAX_DISCARDED_BYTES = 64 << 20
# How long a kept connection may still begin a request when the server ends.
LAST_REQUEST_S = 2.0


class NoTunnelError(Exception):
    """What follows a CONNECT is for whom it names, and sage leads nowhere."""


class GatewayProtocol(LimitedProtocol):
    """One connection of a client. `tunnel` is there once a request has asked for a WebSocket to an engine.

    `idle_since` (monotonic) is since when no request is under way; 0.0 while one is, and before the first.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.lane: Lane = self.app_state["lane"]
        self.lane.connections = self.connections
        self.is_continue_awaited = False
        self._exchange: Exchange | None = None
        self.tunnel: Tunnel | None = None
        self._is_ending = self._was_upgrade = self._is_held_up = False
        self._knows_chunks: bool | None = None
        # What the last request's key was found by.
        self._credentials = b""
        self._key: Key | None = None
        self.idle_since = 0.0

    # Of the connection.

    def connection_lost(self, exc: Exception | None) -> None:
        for exchange in (self._exchange, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(exchange, Exchange):
                exchange.client_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.from_client(data)
            return
        self.kept_bytes += len(data)
        self.idle_since = 0.0
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._after_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("")
                break
        if self.transport.is_closing():
            return
        self.check_progress()

    def pause_writing(self) -> None:
        super().pause_writing()
        # The client reads more slowly than the engine writes: so does the gateway now, of both of them. In a
        # tunnel the two directions have nothing to do with each other.
        if self.tunnel is None:
            self.flow.pause_reading()
        if self._exchange is not None and self._exchange.attempt is not None:
            self._exchange.attempt.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._exchange is not None and self._exchange.attempt is not None:
            self._exchange.attempt.resume()
        if self._is_held_up:
            self._is_held_up = False
            self._take_next()
        elif not self.pipeline and self.tunnel is None:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server ends: what is in flight is answered, and what idle clients may just be sending, too."""
        self._is_ending = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._close_soon()
        elif not (isinstance(cycle, Exchange) and cycle.has_begun_to_answer):
            cycle.keep_alive = False

    # Of the parser.

    def on_message_begin(self) -> None:
        self.is_in_request = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.check_head()
        self.is_continue_awaited = self.expect_100_continue
        asked = self._asked()
        if asked is None:
            self._to_application()
            return
        if b"upgrade" in asked.seen and self.tunnel is None and self.parser.should_upgrade():
            self._was_upgrade = True
            return
        exchange = Exchange(self, asked)
        # What comes as a trailer is no header, and goes nowhere.
        self.headers = []
        if self._knows_chunks is None:
            # Asked once, as it takes a while; no client changes its version on a connection.
            self._knows_chunks = self.parser.get_http_version() == "1.1"
        if not (self._knows_chunks and self.parser.should_keep_alive()) or self._is_ending:
            exchange.keep_alive = False
            exchange.knows_chunks = self._knows_chunks
        if self.tunnel is not None:
            exchange.keep_alive = False
        before, self.cycle = self.cycle, exchange
        if before is None or before.response_complete:
            self._take_turn(exchange)
        else:
            # As uvicorn does with requests that came before the one in front of them was answered.
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def on_body(self, body: bytes) -> None:
        self.kept_bytes = 0
        self.body_bytes += len(body)
        cycle = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.add_body(body)
        elif self.body_bytes > MAX_DISCARDED_BYTES:
            self.transport.close()

    def on_message_complete(self) -> None:
        self.is_in_request = False
        if self._read_timer is not None:
            self.stop_read_timer()
        if self._was_upgrade:
            return
        cycle = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.complete()
        elif self.timeout_keep_alive_task is None and not self.transport.is_closing():
            # It had been refused at its head: only now the connection is idle.
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """Begins the next request that waits on the connection; only if there is none, more is read."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    # Of the exchange.

    def refuse(self, error: RequestError) -> None:
        """Answers in the place of an exchange that is under way, too, and ends the connection."""
        cycle = self.cycle
        if isinstance(cycle, Exchange) and cycle.is_complete and not cycle.response_complete:
            # The fault is in what came after it. It is answered; nothing more is read.
            self.stop_read_timer()
            cycle.keep_alive = False
            self.parser = Deaf()  # type: ignore[assignment]
            return
        exchange = self._exchange
        if exchange is not None and exchange is self.cycle and not exchange.has_begun_to_answer:
            exchange.keep_alive = False
            exchange.refuse(error)
        super().refuse(error)

    def send_continue(self) -> None:
        """Asks for the body, where the client waits to be asked."""
        if self.is_continue_awaited:
            self.is_continue_awaited = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def exchange_is_over(self, exchange: Exchange) -> None:
        """The reply is written. Reads the next request, or ends the connection."""
        self._exchange = None
        if not exchange.keep_alive:
            self.transport.close()
        elif self.pipeline or self.flow.read_paused or self._is_ending:
            # In the next turn of the loop: thousands that are answered at once would be nested as deep.
            self.loop.call_soon(self._take_next)
        else:
            # Instead of a timer for each request, the lane looks for idle connections now and then.
            self.idle_since = monotonic()

    def key_of(self, authorization: bytes, api_key: bytes) -> "Key | None":
        """Whose key this is. Most requests of a connection bring the same one."""
        # Both, as what is in the first may be for somebody else, and no key at all.
        given = b"%b\n%b" % (authorization, api_key) if api_key else authorization
        if self._key is None or not hmac.compare_digest(given, self._credentials):
            self._key = self.lane.keys.find(authorization, api_key)
            self._credentials = given
        return self._key

    def close_if_idle(self, before: float) -> None:
        """Ends the connection if no request is under way since `before` (monotonic)."""
        if 0 < self.idle_since < before:
            self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self._take_turn(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _take_turn(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.take_turn()

    def _take_next(self) -> None:
        if self.flow.write_paused:
            self._is_held_up = True
            return
        if self.pipeline or self.cycle.response_complete:
            self.on_response_complete()
        if self._is_ending and self.cycle.response_complete:
            self._close_soon()

    def _asked(self) -> Asked | None:
        """What an engine is asked by the request whose head is complete, None if it is not for one."""
        method = self.parser.get_method()
        if method == b"POST":
            found = engine_target(self.url)
            return Asked(*found, self.headers) if found is not None else None
        if method == b"GET" and self.parser.should_upgrade() and is_asked_for(self.url, self.headers):
            self.tunnel = Tunnel(self)
            return AskedToSwitch(self.url, self.headers)
        return None

    def _to_application(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise NoTunnelError
            self._was_upgrade = True
            return
        url, headers, is_awaited = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, is_awaited
        self.headers = self.scope["headers"] = headers
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def _after_upgrade(self, rest: bytes) -> bytes:
        """What is to be read after a head that asked for another protocol.

        If nobody switches to it, that is the same request without the wish: with its body, which the parser
        skips there, and would then take for requests.
        """
        if self.tunnel is not None:
            if rest:
                self.tunnel.from_client(rest)
            return b""
        head = heads.without_upgrade(self.parser.get_method(), self.url, self.headers)
        self._was_upgrade = False
        self.parser = httptools.HttpRequestParser(self)
        return head + rest

    def _close_soon(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(LAST_REQUEST_S, self.timeout_keep_alive_handler)
