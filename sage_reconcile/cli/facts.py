"""`sage facts`."""

from typing import Annotated

from cyclopts import Parameter

from sage_reconcile import facts as kept
from sage_reconcile.cli.stackfile import Json
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.facts import Fact
from sage_reconcile.render.facts import facts_data, facts_view
from sage_reconcile.render.print import console, print_json


def facts(
    *engines: Annotated[str, Parameter(help="Only of these: an engine, `stack/engine`, or a fingerprint.")],
    json: Json = False,
    forget: Annotated[
        bool, Parameter(negative="", help="Delete them: plans estimate again until the next start.")
    ] = False,
    all: Annotated[bool, Parameter(negative="", help="With --forget: every fact.")] = False,
) -> int:
    """List what was measured of engines: memory, seconds to start, sleep, wake and stop.

    Plans count with it before they count with estimates.

    Example: sage facts chat --forget
    """
    if forget and not engines and not all:
        raise PermanentError("--forget needs the engines that are meant, or --all")
    if all and (engines or not forget):
        raise PermanentError("--all goes with --forget, and without engines")
    home = Home.from_environ()
    known = kept.read(home)
    for name in engines:
        if not any(_is_named(fact, name) for fact in known):
            names = sorted({fact.engine for fact in known})
            raise PermanentError(f"nothing was measured of {name}; there is: {', '.join(names) or 'nothing'}")
    chosen = tuple(fact for fact in known if not engines or any(_is_named(fact, name) for name in engines))
    if forget:
        kept.forget(home.claim(), lambda fact: fact in chosen)
        if not json:
            print(f"forgotten: {len(chosen)} fact{'' if len(chosen) == 1 else 's'}")
            return 0
    if json:
        print_json(facts_data(chosen))
        return 0
    console().print(facts_view(chosen), soft_wrap=False)
    return 0


def _is_named(fact: Fact, name: str) -> bool:
    return name in (fact.engine, fact.engine.partition("/")[2], fact.fingerprint)
