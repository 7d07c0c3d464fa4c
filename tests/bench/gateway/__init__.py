"""The gateway beside its peers: a harness that measures OpenAI gateways against a fake model server.

`python -m tests.bench.gateway` measures, `.soak` runs for long, `.streams` compares every byte.
"""
