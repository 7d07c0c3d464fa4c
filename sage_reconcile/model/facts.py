"""What was measured of launches, as values: better than any estimate, and no word about what runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """What was measured of one launch spec on one model of GPU; `gpu` is "" for the CPU.

    Memory in MiB of one GPU, the fullest of the launch; times in seconds, `at` in epoch seconds. None where
    it was not measured. `engine` is `stack/engine` and `launch` the launch that was measured last; `versions`
    are those of the programs, as far as they are known.
    """

    fingerprint: str
    gpu: str
    gpu_total_mib: int
    engine: str
    model: str
    runtime: str
    at: float
    launch: str = ""
    held_mib: int | None = None
    asleep_mib: int | None = None
    start_seconds: float | None = None
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    stop_seconds: float | None = None
    versions: tuple[tuple[str, str], ...] = ()
    version: int = 1

    @property
    def key(self) -> tuple[str, str, int]:
        return self.fingerprint, self.gpu, self.gpu_total_mib
