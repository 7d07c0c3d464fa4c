"""Random faults over a stack of fake engines under load. `make faults` runs it.

    python -m tests.faults --faults 200 --seed 7

Prints each fault as it ends, then a table; exits 1 if one was not mended, not told in `sage events`, or left
a process behind or a launch twice.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.bench.gateway.processes import end_on_sigterm
from tests.faults.load import Load
from tests.faults.run import Outcome, bring, draw, table
from tests.faults.stack import Fleet


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--engines", type=int, default=6)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    end_on_sigterm()
    print(f"seed {seed}, {options.faults} faults, {options.engines} engines", flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="sage-faults-") as folder:
        fleet = Fleet(Path(folder) / "work", options.engines)
        try:
            fleet.begin()
            load = Load(fleet.port, [fleet.entries[name]["model"] for name in fleet.names])
            try:
                for number, (kind, name) in enumerate(draw(seed, options.faults, fleet), 1):
                    outcome = bring(fleet, load, kind, name)
                    outcomes.append(outcome)
                    failed = {end: count for end, count in outcome.requests.items() if end != "ok"}
                    told = f"{failed or ''} {outcome.fault}"
                    print(f"{number:3} {outcome.seconds:5.1f} s  {kind:34} {name}  {told}", flush=True)
                    if outcome.fault:
                        break
            finally:
                load.end()
        finally:
            print(f"\n{table(outcomes)}", flush=True)
            fleet.tidy()
    return 1 if any(one.fault for one in outcomes) or len(outcomes) < options.faults else 0


if __name__ == "__main__":
    sys.exit(main())
