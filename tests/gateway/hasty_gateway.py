"""A gateway that, told to end, gives requests a moment, where the product gives them 25 s."""

import sys

from gateway import master
from gateway.__main__ import main

master.DRAIN_S = 0.2

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
