"""A worker that finds a silent engine in less than a second, where the product takes its time."""

import sys

from gateway import member, timeouts, worker

timeouts.LOOK_S = 0.1
timeouts.SILENT_S = 0.5
timeouts.PROBE_S = 0.5
member.EJECT_S = 0.25

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
