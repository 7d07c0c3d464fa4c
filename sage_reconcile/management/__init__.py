"""The management API: a process of its own beside the gateway, which passes requests on to it."""
