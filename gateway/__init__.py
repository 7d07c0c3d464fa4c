"""The gateway: OpenAI HTTP from whatever the routing table says is serving. Runs in its own processes."""
