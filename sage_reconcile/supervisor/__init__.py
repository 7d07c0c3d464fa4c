"""The process that owns one launch: starts the engine, watches it, ends all of it. Standard library only."""
