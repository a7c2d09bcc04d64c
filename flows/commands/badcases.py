"""``prefline badcases``: the store of bad cases, for people and scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.words import Json, print_json, table, terminal

if TYPE_CHECKING:
    from steps.lib.case_states import StoredCase
    from steps.lib.case_store import Ingested

QUARANTINED = 3
"""Exit code when something could not be taken: that of DataError."""

Store = Annotated[
    str, Parameter(help="The store: a SQLite file, or an address such as postgresql+psycopg://USER@HOST/NAME.")
]
By = Annotated[str | None, Parameter(help="Who is recorded; your login name without it.")]
Reason = Annotated[str, Parameter(help="Why, in one sentence; it stands in the log for ever.")]
DEFAULT = "data/badcases.sqlite"


def add(path: Path | None = None, *, source: str = "shell", store: Store = DEFAULT, json: Json = False) -> None:
    """Store events of badcase.v1: JSON, a list, or JSON a line.

    Parameters
    ----------
    path
        File of events; without it they come from standard input.
    source
        Name of where they come from.
    """
    from steps.lib.case_door import records_of
    from steps.lib.case_store import CaseStore
    from steps.lib.errors import DataError

    body = sys.stdin.buffer.read() if path is None else _bytes(path)
    try:
        records = records_of(body)
    except ValueError as error:
        raise DataError(
            f"{path or 'standard input'} holds no events: got {error}, because it is no JSON, no list and no JSON a line; "
            "other formats are taken by prefline badcases import"
        ) from None
    with CaseStore.open(store) as opened:
        _told(opened.ingest(records, source=source), json)


def import_(
    path: Path,
    *,
    format: Literal["badcase", "langfuse", "phoenix", "open_webui", "gradio", "openai", "label_studio"],
    name: str,
    model: str = "",
    tenant: str = "",
    store: Store = DEFAULT,
    json: Json = False,
) -> None:
    """Store an export of a feedback tool; what is there already is not stored again.

    Parameters
    ----------
    path
        File, or folder of files.
    format
        Which tool wrote it.
    name
        Name of the source; it stands before the ids of its cases.
    model
        Name of the production model, where the records have none.
    tenant
        Tenant, where the records have none.
    """
    from steps.lib.case_reading import CaseSource
    from steps.lib.case_store import CaseStore

    source = CaseSource(name=name, path=path, format=format, model=model, tenant=tenant)
    with CaseStore.open(store) as opened:
        _told(opened.bring(source), json)


def list_(
    *,
    state: str | None = None,
    severity: str | None = None,
    limit: int = 50,
    store: Store = DEFAULT,
    json: Json = False,
) -> None:
    """List cases, the newest first.

    Parameters
    ----------
    state
        Only cases in this state: new, triaged, accepted, rejected, quarantined, fixed, regressed.
    severity
        Only cases of this severity: critical, major, minor.
    limit
        Cases at most.
    """
    from typing import cast, get_args

    from steps.lib.case_states import State
    from steps.lib.case_store import CaseStore
    from steps.lib.errors import ConfigError

    if state is not None and state not in get_args(State):
        raise ConfigError(
            f"--state is wrong: got {state}, because there are only {', '.join(get_args(State))}; name one"
        )
    with CaseStore.open(store) as opened:
        cases = opened.cases(cast("State | None", state), severity, limit)
    if json:
        print_json([vars(case) for case in cases])
        return
    _cases(cases)


def show(case_id: str, *, store: Store = DEFAULT, json: Json = False) -> None:
    """Show a case: its events, and how its state moved."""
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        case, events, moves = opened.show(case_id)
    if json:
        print_json({**vars(case), "log": events, "moves": moves})
        return
    import json as codec

    console = terminal()
    _cases([case])
    for event in events:
        console.print(codec.dumps(event, ensure_ascii=False, indent=1), markup=False, highlight=False)
    for move in moves:
        console.print(
            f"{move['ts']}  {move['before']} -> {move['after']}  {move['by']}: {move['reason']}", markup=False
        )


def triage(
    case_id: str,
    state: Literal["triaged", "accepted", "rejected", "quarantined", "fixed", "regressed"],
    *,
    reason: Reason,
    by: By = None,
    store: Store = DEFAULT,
) -> None:
    """Move a case to another state."""
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        opened.set_state(case_id, state, reason=reason, by=by or _me())
    terminal().print(f"{case_id} is {state}", markup=False)


def delete(case_id: str, *, reason: Reason, by: By = None, store: Store = DEFAULT) -> None:
    """Delete the texts of a case. A tombstone stays, and what was trained on it is to be trained again."""
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        opened.delete(case_id, reason=reason, by=by or _me())
    terminal().print(f"{case_id} is deleted; it is flagged until the next training", markup=False)


def stats(*, store: Store = DEFAULT, json: Json = False) -> None:
    """Count cases by state, events, and flagged cases."""
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        counts = opened.stats()
    if json:
        print_json(counts)
        return
    grid = table("what", "count", right=("count",))
    for name, count in counts.items():
        grid.add_row(name, f"{count:,}")
    terminal().print(grid)


def export(path: Path, *, upto: int | None = None, store: Store = DEFAULT) -> None:
    """Write the log as JSONL.

    Parameters
    ----------
    path
        The new file.
    upto
        Number of the last event; without it all. The same number gives the same bytes.
    """
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        count = opened.export(path, upto)
    terminal(1000).print(f"{count} events -> {path}", markup=False)


def release(run: str, *, store: Store = DEFAULT) -> None:
    """Give back the cases that a run claimed: they are for the next one."""
    from steps.lib.case_store import CaseStore

    with CaseStore.open(store) as opened:
        opened.release(run)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_env: str = "PREFLINE_BADCASES_TOKEN",
    max_bytes: int = 1_000_000,
    per_minute: int = 600,
    store: Store = DEFAULT,
) -> None:
    """Serve POST /badcases until it is stopped.

    Parameters
    ----------
    host
        Address to listen at; only this machine without it.
    port
        Its port.
    token_env
        Environment variable with the token that senders show.
    max_bytes
        Bytes of a body.
    per_minute
        Events of one address.
    """
    import os

    import uvicorn

    from steps.lib.case_door import app

    door = app(store, token=os.environ.get(token_env, ""), max_bytes=max_bytes, per_minute=per_minute)
    terminal().print(f"POST http://{host}:{port}/badcases", markup=False)
    uvicorn.run(door, host=host, port=port, log_level="warning")


def _told(done: Ingested, json: bool) -> None:
    """What became of a batch; the process ends with 3 where something was set aside."""
    aside = [{"place": row.id, "reason": row.reason, "detail": row.detail} for row in done.quarantined]
    if json:
        print_json({"new": done.new, "same": done.same, "quarantined": aside})
    else:
        console = terminal()
        console.print(f"{done.new} new, {done.same} there already, {len(aside)} set aside", markup=False)
        for row in aside:
            console.print(f"  {row['place']}: {row['reason']}: {row['detail']}", markup=False)
    if aside:
        sys.exit(QUARANTINED)


def _cases(cases: list[StoredCase]) -> None:
    from rich.text import Text

    grid = table("case", "state", "severity", "tags", "source", "events", "first seen", "last seen", right=("events",))
    for case in cases:
        state = case.state + (" (deleted)" if case.flagged else "")
        days = (case.first_seen[:10], case.last_seen[:10])
        grid.add_row(
            *map(Text, (case.case_id, state, case.severity, ", ".join(case.tags), case.source, str(case.events), *days))
        )
    terminal().print(grid)


def _bytes(path: Path) -> bytes:
    from steps.lib.errors import DataError

    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: got {error.strerror}; name a file of events") from None


def _me() -> str:
    import getpass

    return getpass.getuser()
