"""The page at /docs: the OpenAPI description as one HTML document that loads nothing from anywhere."""

from collections.abc import Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #8884; }}
code {{ font-family: ui-monospace, monospace; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #ddd; }} a {{ color: #8bf; }} }}
</style></head><body>
<h1>{title} <small>{version}</small></h1>
<p>{description} Machine-readable: <a href="/schema/openapi.json">openapi.json</a>.</p>
<table><thead><tr><th>Method</th><th>Path</th><th>What it does</th></tr></thead>
<tbody>
{rows}
</tbody></table>
</body></html>
"""


def docs_page(schema: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI 3 document."""
    rows = [
        f"<tr><td>{escape(method.upper())}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('summary') or '')}</td></tr>"
        for path, operations in sorted(schema["paths"].items())
        for method, operation in operations.items()
        if isinstance(operation, dict)
    ]
    info = schema["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info.get("description") or ""),
        rows="\n".join(rows),
    )
