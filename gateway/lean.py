"""How the web framework is imported without what it would bring along unasked."""

import importlib
import sys


def import_litestar() -> None:
    """Imports it as if advanced-alchemy were not installed, which it would load for the sake of one type.

    That takes 27 MiB in every worker; sessions load it, in the workers where there are any.
    """
    name = "advanced_alchemy"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]  # whoever imports it finds that it is not there
    try:
        importlib.import_module("litestar.pagination")
    finally:
        del sys.modules[name]
