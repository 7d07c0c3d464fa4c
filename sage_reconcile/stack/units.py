"""Durations and sizes as people write them: `10m`, `500ms`, `20GiB`."""

import re

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_MIB = 2**20


def parse_duration(value: str | int | float) -> float:
    """Seconds of `90`, `30s`, `500ms`, `10m`, `1h30m`, `2d`. Raises ValueError."""
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ValueError(f"a duration cannot be {value}")
        return float(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(f'"{value}" is not a duration')
    return round(sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)), 6)


def parse_gpu_memory(value: str | int | float) -> str | int | float:
    """ "auto", MiB (int) of a size such as `20GiB`, or a fraction (float, 0 < x <= 1). Raises ValueError."""
    if isinstance(value, str):
        text = value.strip()
        if text == "auto":
            return "auto"
        if not _NUMBER.fullmatch(text):
            return _size_mib(text)
        value = float(text)
    if not value > 0:
        raise ValueError(f"GPU memory must be more than 0, is {value:g}")
    if value > 1:
        raise ValueError(f"{value:g} has no unit")
    return float(value)


def _size_mib(text: str) -> int:
    match = _SIZE.fullmatch(text)
    factor = _BYTES.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f'"{text}" is not a size')
    mib = int(float(match[1]) * factor) // _MIB
    if mib < 1:
        raise ValueError(f"{text} is less than 1MiB")
    return mib
