"""`sage service`: the gateway and its stack, started by systemd at boot."""
