"""Run as `python -m sage_reconcile.supervisor`, or as a file with -I -S, which needs no site."""

import sys
from pathlib import Path

# Where this package lies, last: the standard library goes first whatever else is installed there.
sys.path.append(str(Path(__file__).resolve().parents[2]))
# Engines listen on loopback without TLS, and OpenSSL would be a third of a supervisor's memory.
sys.modules["ssl"] = None  # type: ignore[assignment]

from sage_reconcile.supervisor.main import main  # noqa: E402

if __name__ == "__main__":
    main()
