"""Whether the program of an engine is there in the version that the file pins."""

from sage_reconcile.model.desired import DesiredEngine
from sage_reconcile.model.observed import ObservedState


def missing_program(engine: DesiredEngine, observed: ObservedState) -> str:
    """What keeps the engine from being started, and what to run; "" where it is there or nobody looked."""
    spec = engine.launch
    if spec.program is None or observed.programs is None:
        return ""
    if spec.program.folder(spec.runtime) in observed.programs:
        return ""
    return (
        f"{spec.runtime} {spec.program.version} is not installed: run `sage runtime install {spec.runtime}`"
    )
