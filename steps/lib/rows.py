"""The rows that steps hand to each other, and how they lie on disk.

Parquet, one file a kind, Hub conventions, so ``datasets.load_dataset("parquet", data_files=...)`` reads them.
Nested fields are real Parquet lists and structs; free-form evidence is one JSON string column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib.errors import DataError

Lang = Literal["zh", "en", "other"]


class Row(BaseModel):
    """Base of every row: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Stable name of the row inside its source; survives cleaning."""
    lang: Lang = "other"
    """Main language of the row's text."""
    source: str = ""
    """Where the row came from: a source's name from the configuration, or a teacher's."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Row):
    """A prompt to be answered. ``facts`` are labels that only evaluation reads."""

    prompt: str = Field(min_length=1)
    facts: str = "{}"
    """JSON object of the remaining columns of the source (labels such as intent)."""


class Candidate(Row):
    """One teacher answer to one prompt."""

    prompt: str
    answer: str
    thought: str = ""
    """Chain of thought, where the prompt file asks for one and stores it apart."""
    teacher: str
    sample: int = 0
    """Index of the answer among the answers to the same prompt."""
    flags: list[str] = Field(default_factory=list)
    """Reason codes found while generating (steps/lib/marks.py)."""
    request: str = ""
    """Key of the request in the step's request ledger."""
    agreement: float | None = None
    """Mean similarity, 0 to 1, with the other answers to the same prompt; null: it is the only one."""
    provenance: str = "{}"
    """JSON object: teacher, model as asked and as answered, endpoint class, sampling, prompt file, licence note."""
    evidence: str = "{}"
    """JSON object: what the prompt was made from, and the stages of the recipe that it passed."""


class Chat(Row):
    """A conversation that ends with an assistant turn (TRL's conversational language-modelling layout)."""

    messages: list[Message]


class Pair(Row):
    """A preference pair (TRL's conversational preference layout)."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    """Score of chosen less score of rejected, in the scorer's own unit."""
    evidence: str = "{}"
    """JSON object: who scored what, and how."""


class PairLogps(Row):
    """Log-probabilities that a reference gives the answers of a pair: sums over tokens, in nats."""

    digest: str
    """Of the pair's tokens (``pair_rows.digest``)."""
    chosen: float
    chosen_tail: float
    """Part of the sum in tokens behind the length of the rejected answer; 0 where chosen is not the longer one."""
    chosen_tokens: int
    rejected: float
    rejected_tail: float
    """The same the other way round."""
    rejected_tokens: int


class Thumb(Row):
    """One answer with a verdict (TRL's conversational unpaired preference layout)."""

    prompt: list[Message]
    completion: list[Message]
    """The turns that were judged: one assistant turn, or several with what the user said between them."""
    label: bool
    """True: thumbs up, the answer is desirable. False: thumbs down."""
    evidence: str = "{}"
    """JSON object of the remaining columns of the source."""


class Text(Row):
    """A document."""

    text: str


class BadCase(Row):
    """A bad answer of production, folded from its events (steps/lib/case_events.py) and free of personal data."""

    prompt: list[Message]
    """What the model was asked; empty once the case is deleted."""
    response: str = ""
    """What the production model answered."""
    correction: str = ""
    """A better answer; empty when nobody gave one."""
    correction_by: str = ""
    """human_expert, human_user or teacher."""
    verified: bool = False
    """Whether somebody checked the correction."""
    expected: str = "{}"
    """JSON object of ``case_expected.Expected``."""
    model: str = ""
    """Name of the model that answered."""
    model_digest: str = ""
    template_digest: str = ""
    signals: list[str] = Field(default_factory=list)
    """kind/annotator of every signal."""
    tags: list[str] = Field(default_factory=list)
    severity: Literal["critical", "major", "minor"] = "minor"
    comment: str = ""
    user: str = ""
    """Keyed hash of the user; empty: not known."""
    tenant: str = ""
    first_seen: str = ""
    """Moment of the first event, UTC."""
    last_seen: str = ""
    events: list[str] = Field(default_factory=list)
    """Ids of its events, in the order of their moments."""
    copies: int = 0
    """Other cases that are near-copies of this one."""
    licence: str = ""
    redactions: str = "{}"
    """JSON object: type of personal data -> placeholders."""
    status: Literal["new", "triaged", "accepted", "rejected", "quarantined", "deleted"] = "new"
    cluster: str = ""
    """Id of the first case of its cluster."""
    split: str = ""
    """holdout or train, decided once for a cluster."""
    contaminated: bool = False
    """It was trained on, or is near to what was, before its cluster was held out: it leaves the statistics of the gate."""


class Dropped(Row):
    """A row that a step did not pass on, whole, with the reason."""

    step: str
    reason: str
    """Reason code, the same that the step's ledger counts."""
    detail: str = ""
    """What was seen; for near-copies the id of the row that stayed and the similarity."""
    row: str = "{}"
    """The row as JSON, unchanged."""


R = TypeVar("R", bound=Row)


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """``messages(("user", "hi"), ...)`` as the plain dicts that chat templates take."""
    return [{"role": role, "content": content} for role, content in turns]


ROW_GROUP = 2000
"""Rows in a row group of a file that is written as its rows come."""


class ParquetRows(Generic[R]):
    """Writes rows as they come, in row groups of ``ROW_GROUP``; holds no more than one, and the table that came last. The bytes
    depend on the rows only.

    Args:
        path: the file; an older one is written over. It is whole when the block ends without an error.
        kind: type of the rows.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        import pyarrow.parquet as pq

        self._schema, self._held = _schema(kind), list[R]()
        self._tables: list[Any] = []
        """Rows before those of ``_held``, less than a group."""
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self.count = 0
        """Rows so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and (self._pending or not self.count):
                self._flush()
        finally:
            self._file.close()

    def add(self, row: R) -> None:
        """Take one row."""
        self._held.append(row)
        self.count += 1
        if self._pending >= ROW_GROUP:
            self._flush()

    def extend(self, rows: Any) -> None:
        """Take a table (``to_table``) of rows."""
        self._settle()
        self._tables.append(rows)
        self.count += rows.num_rows
        while self._pending >= ROW_GROUP:
            self._flush()

    @property
    def _pending(self) -> int:
        return len(self._held) + sum(int(table.num_rows) for table in self._tables)

    def _settle(self) -> None:
        """Rows into a table."""
        if self._held:
            self._tables.append(_table(self._held, self._schema))
            self._held.clear()

    def _flush(self) -> None:
        """Write one group; what is more waits."""
        import pyarrow as pa

        self._settle()
        whole = pa.concat_tables([self._schema.empty_table(), *self._tables]).combine_chunks()
        self._file.write_table(whole.slice(0, ROW_GROUP))
        self._tables = [whole.slice(ROW_GROUP)] if whole.num_rows > ROW_GROUP else []


def to_table(rows: Sequence[R], kind: type[R]) -> Any:
    """Rows as an Arrow table."""
    return _table(rows, _schema(kind))


def write_parquet(path: Path, rows: Sequence[R], kind: type[R]) -> None:
    """Write rows (none is fine: the file then has the columns and no row). The bytes depend on the rows only."""
    import pyarrow.parquet as pq

    pq.write_table(_table(rows, _schema(kind)), path, compression="zstd")


def read_parquet(path: Path, kind: type[R]) -> list[R]:
    """Read rows back, checked.

    Raises:
        DataError: the file is missing, is not Parquet, or a row does not fit ``kind``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: got no file, because {kind.__name__} rows are expected there; "
            "rebuild the step that writes it"
        ) from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not readable as Parquet: got {error}; rebuild the step that writes it") from None
    rows: list[R] = []
    for number, record in enumerate(records):
        try:
            rows.append(kind.model_validate(record))
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{path} row {number}, field {'.'.join(map(str, first['loc']))}: {first['msg']}, "
                f"got {first['input']!r:.80}; rebuild the step that writes it"
            ) from None
    return rows


def _table(rows: Sequence[Row], schema: Any) -> Any:
    """Columns of rows; nested fields as plain values. (Row by row, ``Table.from_pylist`` takes four times as long.)"""
    import pyarrow as pa

    columns = []
    for name in schema.names:
        values = [row.__dict__[name] for row in rows]
        if (
            values
            and isinstance(values[0], list)
            and any(isinstance(one, BaseModel) for value in values for one in value)
        ):
            values = [[one.model_dump() for one in value] for value in values]
        columns.append(pa.array(values, schema.field(name).type))
    return pa.Table.from_arrays(columns, schema=schema)


def _schema(kind: type[Row]) -> Any:
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    types: dict[Any, Any] = {
        str: pa.string(),
        int: pa.int64(),
        bool: pa.bool_(),
        float: pa.float64(),
        float | None: pa.float64(),
        list[str]: pa.list_(pa.string()),
        list[Message]: pa.list_(turn),
    }
    return pa.schema([(name, types.get(field.annotation, pa.string())) for name, field in kind.model_fields.items()])


def by_id(rows: Iterable[R]) -> dict[str, R]:
    """Index rows by id.

    Raises:
        DataError: two rows have the same id.
    """
    index: dict[str, R] = {}
    for row in rows:
        if row.id in index:
            raise DataError(
                f"row id {row.id!r} stands twice, because two sources use the same ids; give each source its own name"
            )
        index[row.id] = row
    return index
