"""The tables of the store of bad cases, and the way to their database: SQLite or PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.lib.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine


def connect(url: str) -> Engine:
    """An engine; the folder of a SQLite file is made.

    Args:
        url: ``sqlite:///data/badcases.sqlite``, ``postgresql+psycopg://...``, or the path of a SQLite file.

    Raises:
        ConfigError: the address is wrong, no database answers there, or its driver is not installed.
    """
    import sqlalchemy as sa

    address = url if "://" in url else f"sqlite:///{url}"
    try:
        parsed = sa.make_url(address)
        lite = parsed.get_backend_name() == "sqlite"
        if lite and parsed.database:
            Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": 30} if lite else {})
        if lite:
            _prepare_sqlite(engine)
        with engine.connect():
            return engine
    except (sa.exc.ArgumentError, sa.exc.OperationalError, ModuleNotFoundError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"store of bad cases cannot be opened: got {said} for {_without_password(address)}, because the address, the driver "
            "or the server is wrong; give sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME with psycopg installed"
        ) from error


def tables() -> dict[str, Any]:
    """Tables by name, with a description of their own each time: nothing is made at import."""
    import sqlalchemy as sa

    meta, text = sa.MetaData(), sa.Text
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return {
        "events": sa.Table(
            "badcase_events",
            meta,
            sa.Column("seq", number, primary_key=True, autoincrement=True),
            sa.Column("event_id", text, nullable=False, unique=True),
            sa.Column("case_id", text, nullable=False, index=True),
            *(
                sa.Column(name, text, nullable=False)
                for name in ("ts", "ingest_ts", "source", "severity", "state", "tags", "digest", "body")
            ),
            sqlite_autoincrement=True,
        ),
        "cases": sa.Table(
            "badcases",
            meta,
            sa.Column("case_id", text, primary_key=True),
            sa.Column("state", text, nullable=False, index=True),
            *(
                sa.Column(name, text, nullable=False)
                for name in ("severity", "tags", "source", "first_seen", "last_seen")
            ),
            sa.Column("events", sa.Integer, nullable=False),
            sa.Column("flagged", sa.Boolean, nullable=False),
            sa.Column("last_seq", number, nullable=False, index=True),
        ),
        "moves": sa.Table(
            "badcase_moves",
            meta,
            sa.Column("id", number, primary_key=True, autoincrement=True),
            sa.Column("case_id", text, nullable=False, index=True),
            *(sa.Column(name, text, nullable=False) for name in ("before", "after", "reason", "by", "ts")),
        ),
        "claims": sa.Table(
            "badcase_claims",
            meta,
            sa.Column("run", text, primary_key=True),
            sa.Column("first", number, nullable=False),
            sa.Column("last", number, nullable=False),
            sa.Column("done", sa.Boolean, nullable=False),
        ),
        "outcomes": sa.Table(
            "badcase_outcomes",
            meta,
            sa.Column("case_id", text, primary_key=True),
            sa.Column("run", text, primary_key=True),
            *(sa.Column(name, text, nullable=False) for name in ("outcome", "detail", "version", "ts")),
        ),
    }


def _prepare_sqlite(engine: Engine) -> None:
    """A writer waits for another one at its beginning, and readers never wait."""
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3's own transactions begin too late
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _without_password(address: str) -> str:
    return re.sub(r"://([^:/@\s]+):[^@\s]*@", r"://\1:***@", address)
