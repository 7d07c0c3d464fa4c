"""Where sessions are kept: two tables, the same in SQLite and PostgreSQL. Times are Unix time in seconds."""

from advanced_alchemy.base import DefaultBase
from sqlalchemy import BigInteger, Double, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column


class SessionRow(DefaultBase):
    """A session. `owner` is the SHA-256 of the key that made it, "" where there were no keys.

    `holder` names whose turn it is, "" if nobody's, and until `held_until` nobody else's. `size` counts the
    bytes of all turns; `instructions` is a JSON list of messages, or "".
    """

    __tablename__ = "sage_session"
    __table_args__ = (Index("sage_session_of_owner", "owner", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    owner_name: Mapped[str] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double, index=True)
    turns: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    instructions: Mapped[str] = mapped_column(Text)
    holder: Mapped[str] = mapped_column(Text)
    held_until: Mapped[float] = mapped_column(Double)


class TurnRow(DefaultBase):
    """One turn: a JSON list of the messages that were new, and the message that answered them."""

    __tablename__ = "sage_turn"

    session_id: Mapped[str] = mapped_column(
        ForeignKey("sage_session.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(Text)
    request: Mapped[str] = mapped_column(Text)
    reply: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Double)
