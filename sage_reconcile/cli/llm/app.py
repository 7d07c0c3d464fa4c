"""`sage llm`: engines started, stopped and looked at by single commands."""

import cyclopts

BELOW = "sage_reconcile.cli.llm"

app = cyclopts.App(
    name="llm",
    help="Serve models by single commands; what they start stands in $SAGE_HOME/stacks/adhoc.yaml.\n\n"
    "Example: sage llm serve -m Qwen/Qwen2.5-7B-Instruct",
)
for _name, _module in (
    ("serve", "serve:serve"),
    ("status", "serve:status"),
    ("stop", "serve:stop"),
    ("restart", "serve:restart"),
    ("logs", "look:logs"),
    ("gpu", "look:gpu"),
    ("export", "look:export"),
    ("engine", "engine:app"),
    ("preset", "presets:app"),
    ("model", "models:app"),
):
    app.command(f"{BELOW}.{_module}", name=_name)
