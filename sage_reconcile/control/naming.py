"""Names of engines that nobody named."""

import re


def name_of(model: str) -> str:
    """An engine's name from its model's: the last part in small letters, what is not allowed as hyphens."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:63]
    return name or "engine"
