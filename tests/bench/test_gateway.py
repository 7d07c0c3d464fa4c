"""The gateway's harness: it parses, starts, loads and counts, and it sees what it is there to see."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.gateway import mock_replies, report, soak, streams
from tests.bench.gateway.client import Connection, Reply, ReplyError, chat
from tests.bench.gateway.processes import ROOT, Process, ask, free_port, python_module, seconds_to_ok
from tests.bench.gateway.targets import Places, Target, load_targets
from tests.bench.gateway.turn import Result

TARGETS = {target.name: target for target in load_targets()}
PLACES = Places(1, 2, (3, 4), Path("/folder"), "the-model", "the-key")


def run(tmp_path: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A module of the harness, whose temporary files lie below tmp_path."""
    command = [sys.executable, "-m", name, *arguments]
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[int]:
    """The port of a fake model server."""
    port = free_port()
    with Process(python_module("mock_upstream", "--port", str(port)), tmp_path / "upstream.log") as process:
        seconds_to_ok(process, lambda: ask(port, "/health"))
        yield port


def test_sage_and_its_peers_are_targets() -> None:
    assert TARGETS.keys() >= {"sage", "sage-2", "vllm-router", "sglang-router", "litellm", "nginx", "haproxy"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_a_target_is_whole(target: Target) -> None:
    texts = [target.cmd, *target.env.values(), *target.files.values()]
    assert [found for text in texts for found in re.findall(r"\{\w+\}", PLACES.fill(text))] == []
    assert target.package or target.version
    assert all("==" in package for package in target.packages)


def test_the_upstream_answers_and_counts(upstream: int) -> None:
    body = chat("hello")
    assert ask(upstream, "/v1/chat/completions", body) == (200, mock_replies.CHAT.partition(b"\r\n\r\n")[2])
    status, stream = ask(upstream, "/v1/chat/completions", chat("[mock chunks=3,delay=1]", is_stream=True))
    assert status == 200
    assert stream.count(b"data: ") == 4
    assert stream.endswith(mock_replies.DONE)
    assert len(re.findall(rb"t=\d{19} ", stream)) == 2
    counted = json.loads(ask(upstream, "/stats?reset=1")[1])
    assert (counted["requests"], counted["streams"], counted["chunks"]) == (2, 1, 3)
    assert json.loads(ask(upstream, "/stats")[1])["requests"] == 0


def test_a_stream_has_a_content_of_its_own_whatever_its_pace(upstream: int) -> None:
    slow, quick, other = (
        ask(upstream, "/v1/chat/completions", chat(prompt, is_stream=True))[1]
        for prompt in ("[mock id=7,chunks=5,delay=2]", "[mock id=7,chunks=5]", "[mock id=8,chunks=5]")
    )
    assert slow == quick == b"".join(mock_replies.own_events(True, 5, 7))
    assert other != quick


def test_the_client_tells_a_body_that_breaks_off() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        writer.close()

    async def ask_it() -> None:
        async with (
            await asyncio.start_server(serve, "127.0.0.1", 0) as server,
            Connection(server.sockets[0].getsockname()[1], {}) as connection,
        ):
            await connection.read(await connection.ask())

    with pytest.raises(ReplyError, match="broke off after 3 bytes"):
        asyncio.run(ask_it())


def test_a_foreign_event_and_a_changed_byte_are_seen() -> None:
    def reply(*events: bytes) -> Reply:
        return Reply(200, {}, bytearray(b"".join(events)), is_whole=True)

    one, two = (mock_replies.own_events(True, 4, number) for number in (1, 2))
    tally = streams.Tally()
    streams.compare(1, reply(*one), reply(*one), tally)
    assert tally.is_clean
    streams.compare(1, reply(one[0], two[1], *one[2:]), reply(*one), tally)
    assert (len(tally.mixed), len(tally.different)) == (1, 0)
    streams.compare(1, reply(*one[:-1]), reply(*one), tally)
    assert (len(tally.mixed), len(tally.different)) == (1, 1)


@pytest.mark.parametrize(("last", "is_flat"), [(60.0, True), (62.9, True), (63.1, False)])
def test_growth_is_seen(last: float, is_flat: bool) -> None:
    samples = [soak.Sample(0, rss, 9) for rss in [20.0] * 3 + [60.0] * 3 + [last] * 3]
    assert soak.is_flat(samples) == (is_flat, 60.0, last)


def result(cpu: float, rss: float = 50.0, failed: int = 0) -> Result:
    phase = {"cpu_us": cpu, "slowness": 1.0, "transit_ms": {"p50": 1.0, "p99": cpu}, "status_errors": failed}
    return {"json": phase, "stream": {**phase, "status_errors": 0}, "worker_rss_mib": rss}


@pytest.mark.parametrize(
    ("sage", "is_met"),
    [(result(8), False), (result(2), True), (result(2, rss=81.0), False), (result(2, failed=1), False)],
)
def test_a_missed_goal_is_told(sage: Result, is_met: bool) -> None:
    told, found = report.goals({"sage": sage, "vllm-router": result(10)})
    assert found == is_met
    assert ("MISSED" in told) != is_met
    assert "not measured  CPU per request at most 1/300 of litellm's" in told


def test_cpu_time_is_divided_by_how_slow_the_core_was() -> None:
    turns = {
        "direct": [{"json": {"cpu_us_raw": 10.0, "work_s": 4.0}}],
        "sage": [{"json": {"cpu_us_raw": 10.0, "work_s": 4.0}}],
    }
    report.normalise(turns, 2.0)
    assert turns["direct"][0]["json"]["cpu_us"] == 10.0
    assert turns["sage"][0]["json"]["cpu_us"] == 5.0


def test_the_harness_measures_the_gateway(tmp_path: Path) -> None:
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed; on Debian: apt-get install wrk")
    quick = "--repeats 1 --seconds 1 --warmup 0 --settle 0 --phases json,paced --streams 4 --delay-ms 5"
    path = tmp_path / "results.json"
    done = run(tmp_path, "tests.bench.gateway", "--only", "sage", *quick.split(), "--json", str(path))
    assert "| sage " in done.stdout, done.stdout + done.stderr
    [turn] = json.loads(path.read_text())["turns"]["sage"]
    assert turn["json"]["requests"] > 0
    assert turn["paced"]["completed"] > 0
    assert report.errors(turn) == 0
    assert min(turn["json"]["cpu_us"], turn["paced"]["cpu_us"], turn["worker_rss_mib"]) > 0


def test_streams_at_once_are_those_of_the_engine(tmp_path: Path) -> None:
    options = ("--streams", "40", "--events", "10", "--delay-ms", "50")
    done = run(tmp_path, "tests.bench.gateway.streams", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at most 40 open at once" in done.stdout


def test_a_soak_with_a_killed_engine_loses_nothing(tmp_path: Path) -> None:
    options = ("--seconds", "5", "--kill-every", "3", "--idle", "0")
    done = run(tmp_path, "tests.bench.gateway.soak", *options)
    assert "cut by 1 kills" in done.stdout, done.stdout + done.stderr
    assert "failed: 0" in done.stdout, done.stdout
