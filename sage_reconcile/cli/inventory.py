"""`sage inventory`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def inventory(
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="The file to write; the terminal when left out.")
    ] = None,
    hardware: Annotated[
        bool,
        Parameter(negative="", help="Only what the host has, not the memory and ports that others use now."),
    ] = False,
) -> int:
    """Describe this host and its GPUs as JSON, for `sage plan --inventory FILE` where there is no GPU.

    What engines of this SAGE_HOME use counts as free. A GPU or a driver that cannot be seen is an error.

    Example: sage inventory -o host.json
    """
    import asyncio
    import json
    import os
    import sys

    from sage_reconcile.cli.files import write_text
    from sage_reconcile.home import Home
    from sage_reconcile.observe.describe import inventory_of
    from sage_reconcile.observe.look import LocalEyes

    observed = asyncio.run(LocalEyes(Home.from_environ()).look())
    described = inventory_of(observed, hardware)
    text = json.dumps(described, indent=2) + "\n"
    if any(gpu.is_mock for gpu in observed.gpus):
        print("note: these GPUs are pretended (SAGE_GPU_MOCK_COUNT is set), not this host's", file=sys.stderr)
    elif not observed.gpus:
        why = "SAGE_DISABLE_NVML is set" if os.environ.get("SAGE_DISABLE_NVML") else "there is no driver"
        print(f"note: no GPU was described: {why}", file=sys.stderr)
    if output is None:
        print(text, end="")
        return 0
    write_text(output, text)
    node = observed.nodes[0]
    print(f"{output}: {node.name}, {len(node.gpus)} GPUs; sage plan --inventory {output}")
    return 0
