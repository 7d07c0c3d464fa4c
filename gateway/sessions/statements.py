"""What the database is asked, made once: to put a statement together costs more than to run it."""

from typing import Any

from sqlalchemy import (
    Boolean,
    Double,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

from gateway.sessions.tables import SessionRow, TurnRow

# How long a session is held by whoever has its turn, unless that renews it, seconds.
HOLD_S = 30.0


class Now(ColumnElement[float]):
    """The database's time: the same for all gateways that share it."""

    inherit_cache = True
    type = Double()


@compiles(Now, "postgresql")
def _of_postgresql(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(Now, "sqlite")
def _of_sqlite(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def _given(name: str) -> Any:
    return bindparam(f"the_{name}")


_ROW, _TURN = SessionRow, TurnRow
_NOW = Now()
# Who may know of a session.
_MAY_SEE = or_(bindparam("the_viewer_sees_all", type_=Boolean()), _ROW.owner == _given("owner"))
_VISIBLE = and_(_ROW.id == _given("session"), _MAY_SEE)
_MINE = and_(_ROW.id == _given("session"), _ROW.holder == _given("holder"))
_IS_FREE = or_(_ROW.holder == "", _ROW.held_until < _NOW)
_NOBODYS = {"holder": "", "held_until": 0.0}
_SHOWN = (_ROW.id, _ROW.owner_name, _ROW.title, _ROW.created_at, _ROW.updated_at, _ROW.turns)
_OF_TURN = (_TURN.number, _TURN.request, _TURN.reply)
_OF_SESSION = _TURN.session_id == _given("session")

CREATE = (
    insert(_ROW)
    .values(
        id=_given("session"),
        owner=_given("owner"),
        owner_name=_given("name"),
        title=_given("title"),
        created_at=_NOW,
        updated_at=_NOW,
        turns=0,
        size=0,
        instructions="",
        **_NOBODYS,
    )
    .returning(*_SHOWN)
)
FIND = select(*_SHOWN, _ROW.instructions).where(_VISIBLE)
_NEWEST_FIRST = (
    select(*_SHOWN)
    .where(_MAY_SEE)
    .order_by(_ROW.created_at.desc(), _ROW.id.desc())
    .limit(bindparam("the_limit"))
)
PAGE = _NEWEST_FIRST
PAGE_AFTER = _NEWEST_FIRST.where(
    tuple_(_ROW.created_at, _ROW.id) < tuple_(_given("created_at"), _given("last"))
)
SAID = (
    select(*_OF_TURN)
    .where(_OF_SESSION, _TURN.number < _given("before"))
    .order_by(_TURN.number.desc())
    .limit(bindparam("the_limit"))
)
SET_TITLE = update(_ROW).where(_VISIBLE).values(title=_given("title")).returning(*_SHOWN)
CLEAR = (
    update(_ROW)
    .where(_VISIBLE)
    .values(turns=0, size=0, instructions="", updated_at=_NOW, **_NOBODYS)
    .returning(*_SHOWN)
)
DELETE = delete(_ROW).where(_VISIBLE).returning(_ROW.id)
DELETE_TURNS = delete(_TURN).where(_OF_SESSION)
OLD = select(_ROW.id).where(_MAY_SEE, _IS_FREE, _ROW.updated_at < _NOW - _given("age")).with_for_update()
DELETE_SOME = delete(_ROW).where(_ROW.id.in_(bindparam("the_sessions", expanding=True)))
DELETE_TURNS_OF_SOME = delete(_TURN).where(_TURN.session_id.in_(bindparam("the_sessions", expanding=True)))

# Of a turn.
_HOLD = {"holder": _given("holder"), "held_until": _NOW + HOLD_S}
_TAKEN = (_ROW.turns, _ROW.size, _ROW.instructions)
TAKE = update(_ROW).where(_VISIBLE, _IS_FREE).values(**_HOLD).returning(*_TAKEN)
TAKE_FROM = update(_ROW).where(_VISIBLE, _ROW.holder == _given("former")).values(**_HOLD).returning(*_TAKEN)
HOLDER = select(_ROW.holder).where(_VISIBLE)
RENEW = (
    update(_ROW)
    .where(_ROW.holder.in_(bindparam("the_holders", expanding=True)))
    .values(held_until=_NOW + HOLD_S)
)
GIVE_UP = update(_ROW).where(_MINE).values(**_NOBODYS)
HISTORY = select(*_OF_TURN).where(_OF_SESSION, _TURN.number >= _given("first")).order_by(_TURN.number)
SIZES = (
    select(_TURN.number, _TURN.size)
    .where(_OF_SESSION)
    .order_by(_TURN.number.desc())
    .limit(bindparam("the_limit"))
)
COUNT = (
    update(_ROW)
    .where(_MINE)
    .values(
        turns=_ROW.turns + 1,
        size=_ROW.size + _given("size"),
        updated_at=_NOW,
        title=case((_ROW.title == "", _given("title")), else_=_ROW.title),
        instructions=func.coalesce(func.nullif(_given("instructions"), ""), _ROW.instructions),
        **_NOBODYS,
    )
    .returning(_ROW.turns)
)
KEEP = insert(_TURN).values(
    session_id=_given("session"),
    number=_given("number"),
    model=_given("model"),
    request=_given("request"),
    reply=_given("reply"),
    size=_given("size"),
    created_at=_NOW,
)
