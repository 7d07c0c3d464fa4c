"""Driver, disks, home, clock, ports, hub: each on a host that a test describes."""

import asyncio
import os
from pathlib import Path

import pytest

from sage_reconcile.doctor.finding import Finding
from sage_reconcile.doctor.gpu import check_driver, check_wanted
from sage_reconcile.doctor.host import (
    check_clock,
    check_disks,
    check_home,
    check_kernel,
    check_shm,
    hub_cache,
)
from sage_reconcile.doctor.hub import check_cache, check_hub
from sage_reconcile.doctor.ports import check_ports
from sage_reconcile.home import Home
from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    Device,
    Kind,
    LaunchSpec,
    PlacementSpec,
    RouteSpec,
)
from sage_reconcile.model.observed import Gap, ObservedGpu, ObservedNode, ObservedState, PortHolder
from sage_reconcile.observe.gpus import Driver, read_driver
from tests.observe.scripted import scripted
from tests.observe.test_gpus import FakeError, FakeNvml
from tests.processes import free_port


class Versioned(FakeNvml):
    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010


def verdicts(found: list[Finding]) -> list[str]:
    return [str(one.verdict) for one in found]


def test_a_driver_that_works() -> None:
    driver = read_driver(Versioned())
    assert (driver.version, driver.cuda) == ("580.65", (13, 1))
    gpu = ObservedGpu("here", 0, "GPU-0", "L4", 23034)
    found = list(check_driver(driver, ((gpu,), ()), {}))
    assert [one.message for one in found] == [
        "NVIDIA driver 580.65, supports CUDA 13.1",
        "0: L4, 23,034 MiB",
    ]
    gap = Gap("here", "gpus", "GPU 1 cannot be read: lost")
    assert verdicts(list(check_driver(driver, ((gpu,), (gap,)), {}))) == ["ok", "ok", "fault"]


@pytest.mark.parametrize(
    ("code", "is_loaded", "word"),
    [
        (18, True, "different versions"),
        (12, True, "library is not there"),
        (999, True, "fails: code 999"),
    ],
)
def test_a_driver_that_fails(code: int, is_loaded: bool, word: str, tmp_path: Path) -> None:
    driver = read_driver(Versioned(init=FakeError(code)), tmp_path if is_loaded else tmp_path / "none")
    [found] = check_driver(driver, ((), (Gap("here", "gpus", "NVML does not start"),)), {}, tmp_path)
    assert (found.verdict, word in found.message, bool(found.next)) == ("fault", True, True)


def test_a_gpu_without_a_driver_is_told_from_a_host_without_gpus(tmp_path: Path) -> None:
    driver = Driver(code=12, fault="not found")
    assert verdicts(list(check_driver(driver, ((), ()), {}, tmp_path))) == ["ok"]
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    assert verdicts(list(check_driver(driver, ((), ()), {}, tmp_path))) == ["fault"]


def test_pretended_gpus_are_told() -> None:
    mock = ObservedGpu("here", 0, "GPU-mock-0", "Mock GPU", 10, is_mock=True)
    assert verdicts(list(check_driver(read_driver(Versioned()), ((mock,), ()), {}))) == ["ok", "warning"]


def engine(name: str, device: Device = Device.CPU, port: int | None = None, tp: int = 1) -> DesiredEngine:
    launch = LaunchSpec(Kind.LLM, "vllm", "m", device=device, tensor_parallel=tp)
    return DesiredEngine(name, launch, RouteSpec((name,)), PlacementSpec(port))


def test_engines_that_want_more_gpus_than_there_are() -> None:
    desired = DesiredState("s", (engine("big", Device.GPU, tp=2), engine("small")))
    gpu = ObservedGpu("here", 0, "GPU-0", "L4", 23034)
    [found] = check_wanted(desired, ((gpu,), ()))
    assert found.message == "big of the stack need up to 2, there are 1"
    assert list(check_wanted(desired, ((), (Gap("here", "gpus", "x"),)))) == []


def test_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert [one.message for one in check_home(home)] == [f"{home.root} is made on first use"]
    home.ensure()
    assert verdicts(list(check_home(home))) == ["ok"]
    home.root.chmod(0o755)
    [found] = check_home(home)
    assert (found.verdict, found.next) == ("warning", f"chmod 700 {home.root}")
    file = tmp_path / "file"
    file.write_text("")
    assert verdicts(list(check_home(Home(file)))) == ["fault"]
    assert verdicts(list(check_home(Home(file / "below")))) == ["fault"]


def test_disks_and_shared_memory(tmp_path: Path) -> None:
    found = list(check_disks(Home(tmp_path / "home"), {"HF_HOME": str(tmp_path / "hf")}))
    assert [one.about for one in found] == ["disk of SAGE_HOME, models, model cache"]
    assert verdicts(list(check_shm(0, tmp_path / "gone"))) == ["fault"]
    assert list(check_shm(0))


def test_this_kernel_has_what_sage_needs() -> None:
    assert verdicts(list(check_kernel())) == ["ok"]


def test_a_clock_that_is_behind() -> None:
    assert verdicts(list(check_clock(1e9, 2e9))) == ["fault"]
    assert "fault" not in verdicts(list(check_clock(2e9, 1e9)))


def test_where_the_hub_keeps_models() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    assert verdicts(list(check_cache({"HF_HOME": str(tmp_path)}))) == ["ok"]
    (tmp_path / "file").write_text("")
    assert verdicts(list(check_cache({"HF_HOME": str(tmp_path / "file")}))) == ["warning"]


def test_the_hub() -> None:
    def asked(**environ: str) -> list[str]:
        return verdicts(asyncio.run(check_hub(environ)))

    with scripted({}) as server:
        assert asked(HF_ENDPOINT=server.url) == ["ok"]
        assert asked(http_proxy=server.url, HF_ENDPOINT="http://hub.invalid") == ["ok"]
    assert asked(HF_ENDPOINT=server.url) == ["warning"]
    assert asked(HF_ENDPOINT="mirror.example") == ["fault"]
    assert asked(HF_ENDPOINT="http://a:b:c") == ["fault"]
    assert asked(HF_HUB_OFFLINE="1") == ["ok"]


def test_ports() -> None:
    port = free_port()
    holder = PortHolder(port, os.getpid(), "python")
    desired = DesiredState("s", (engine("chat", port=port),))

    def seen(*ports: PortHolder, gaps: tuple[Gap, ...] = ()) -> ObservedState:
        return ObservedState(0.0, (ObservedNode("here", (), ports),), gaps=gaps)

    found = list(check_ports(seen(holder, PortHolder(8000, 5, "nginx"), PortHolder(8905)), desired, 8000, ()))
    assert verdicts(found) == ["warning", "fault", "ok", "ok"]
    assert f"chat pins it, held by process {os.getpid()} (python)" in found[1].message
    assert "98 free for llm engines; others hold 8905 (a process of another user)" in found[2].message
    assert verdicts(list(check_ports(seen(PortHolder(8000, 5)), None, 8000, (5,)))) == ["ok", "ok", "ok"]
    full = tuple(PortHolder(number) for number in range(8901, 9000))
    assert "fault" in verdicts(list(check_ports(seen(*full), None, 8000, ())))
    assert verdicts(list(check_ports(seen(gaps=(Gap("here", "ports", "x"),)), None, 8000, ()))) == ["fault"]
