"""Items of an evaluation, and the figures that follow from them.

``items.parquet`` has one row a model, suite and item; report and gate both derive their figures from it, here. A
``Measure`` says how: the mean of one score, or, with a ``weight``, the sum of the score over the sum of the weight
(bits per byte).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steps.lib import stats
from steps.lib.errors import DataError
from steps.lib.stats import Interval


class Plain(BaseModel):
    """Base of the models of a report: an unknown field is an error, and no number is NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Item(Plain):
    """What one model did on one item of one suite."""

    model: str
    suite: str
    item_id: str
    repeat: int = 0
    """Which of several answers to the same item; 0 where there is one."""
    cluster_id: str
    """Items of one cluster are not independent: one prompt, one document, one source."""
    lang: str = "other"
    slices: list[str] = Field(default_factory=list)
    scores: dict[str, float | None] = Field(default_factory=dict)
    """Score -> value; None, or no entry, where the score does not apply to the item."""
    output: str = ""
    n_in: int = 0
    """Tokens of the prompt or document."""
    n_out: int = 0
    """Tokens of the answer."""
    latency_s: float = 0.0
    """Seconds."""
    error: str = ""
    """Why the item could not be scored; empty when it was."""
    judge: str = ""
    """What a judge said, of judged items: judge, digest of its prompt, orders and verdicts, as JSON."""
    model_digest: str = ""
    """Of base, adapter, tokenizer and chat template (16 hex digits, as the others here)."""
    suite_digest: str = ""
    """Of the suite's rows, settings and scorer."""
    prompt_digest: str = ""
    """Of what was asked."""
    scorer_version: str = ""


class Measure(Plain):
    """A figure before it is taken: which score of which suite, and how it reads."""

    name: str
    label_en: str
    label_zh: str
    unit: str
    """``share`` (shown in percent), or a unit such as ``bits/byte``."""
    better: Literal["higher", "lower"] = "higher"
    suite: str
    score: str
    """Key in the items' scores."""
    weight: str = ""
    """Key of the denominator; then the figure is sum(score) / sum(weight), and its changes are relative, in percent."""
    method: str = ""
    """How the score is made, in a few words."""


class Figure(Measure):
    """A measure of one model, with its interval."""

    model: str
    against: str | None = None
    """Reference model inside the score itself (implicit reward, KL); None for ordinary scores."""
    slice: str = ""
    """Part of the suite's items that it is of, ``lang=zh`` or ``source=NAME``; empty: all."""
    interval: Interval


class Comparison(Measure):
    """The paired difference of two models on the same items; positive where ``model`` scores higher."""

    model: str
    against: str
    interval: Interval
    """Difference in the figure's unit; where ``weight`` is set: relative change in percent."""

    @property
    def outcome(self) -> Literal["better", "worse", "unclear"]:
        """What the interval shows: ``unclear`` while it contains zero."""
        interval = self.interval if self.better == "higher" else self.interval.negated()
        return "better" if interval.low > 0 else "worse" if interval.high < 0 else "unclear"


def measure(
    items: Sequence[Item], what: Measure, model: str, *, against: str | None = None, confidence: float = 0.95
) -> Figure:
    """Take a figure of one model. An item with an error counts as failed where that is possible.

    Raises:
        DataError: no item of the suite has the score, or an item of a ratio was not scored.
    """
    own = _scored(items, what, model)
    clusters = [item.cluster_id for item in own.values()]
    values = [_value(item, what) for item in own.values()]
    if what.weight:
        weights = [_weight(item, what) for item in own.values()]
        interval = stats.ratio_interval(values, weights, clusters, confidence=confidence)
    else:
        interval = stats.mean_interval(values, clusters, confidence=confidence)
    return Figure(**_fields(what), model=model, against=against, interval=interval)


def compare(
    items: Sequence[Item],
    what: Measure,
    model: str,
    against: str,
    *,
    others: Sequence[Item] | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two models item by item.

    Args:
        items: where the rows of ``model`` are.
        what: the measure.
        model: the model whose change is asked for.
        against: the model it changed from.
        others: where the rows of ``against`` are, when not in ``items``.
        confidence: share, two-sided.

    Raises:
        DataError: the two were not scored on the same items.
    """
    new, old = _scored(items, what, model), _scored(items if others is None else others, what, against)
    if new.keys() != old.keys():
        odd = sorted(new.keys() ^ old.keys())
        raise DataError(
            f"{what.name} of {model} and {against} is not paired: got {len(odd)} items of one model only "
            f"(first: {odd[0]!r}), because they were scored on different items; "
            f"score both on suite {what.suite!r} again"
        )
    clusters = [item.cluster_id for item in new.values()]
    a, b = ([_value(side[name], what) for name in new] for side in (new, old))
    if what.weight:
        weights_a, weights_b = ([_weight(side[name], what) for name in new] for side in (new, old))
        interval = stats.paired_ratio_change(a, weights_a, b, weights_b, clusters, confidence=confidence)
    else:
        interval = stats.paired_difference(a, b, clusters, confidence=confidence)
    return Comparison(**_fields(what), model=model, against=against, interval=interval)


def models_with(items: Iterable[Item], what: Measure) -> set[str]:
    """Models to which the measure applies: they have an item with the score, or one that could not be scored."""
    return {
        item.model
        for item in items
        if item.suite == what.suite and (item.error or item.scores.get(what.score) is not None)
    }


def sliced(items: Sequence[Item], what: Measure, models: Sequence[str], *, against: str | None = None) -> list[Figure]:
    """The figure of every part of its suite, where there are several: each language, and each ``source=`` of the slices.

    A part in which a figure cannot be taken (an item of a ratio has an error) is left out.
    """
    own = [item for item in items if item.suite == what.suite]
    parts: dict[str, list[Item]] = {}
    for item in own:
        for name in (f"lang={item.lang}", *(one for one in item.slices if one.startswith("source="))):
            parts.setdefault(name, []).append(item)
    found: list[Figure] = []
    for family in ("lang=", "source="):
        names = sorted(name for name in parts if name.startswith(family))
        for name in names if len(names) > 1 else ():
            having = models_with(parts[name], what)
            for model in (model for model in models if model in having):
                try:
                    figure = measure(parts[name], what, model, against=against)
                except DataError:
                    continue
                found.append(figure.model_copy(update={"slice": name}))
    return found


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as Parquet; ``scores`` is one JSON column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        [
            ("model", text),
            ("suite", text),
            ("item_id", text),
            ("repeat", number),
            ("cluster_id", text),
            ("lang", text),
            ("slices", pa.list_(text)),
            ("scores", text),
            ("output", text),
            ("n_in", number),
            ("n_out", number),
            ("latency_s", pa.float64()),
            ("error", text),
            ("judge", text),
            ("model_digest", text),
            ("suite_digest", text),
            ("prompt_digest", text),
            ("scorer_version", text),
        ]
    )
    records = [{**item.model_dump(), "scores": json.dumps(item.scores, sort_keys=True)} for item in items]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, compression="zstd")


def read_items(path: Path) -> list[Item]:
    """Read items back, checked.

    Raises:
        DataError: the file is missing, is not Parquet, or a row is not an item (a score that is no number, say).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: got no file, because the figures are derived from its items; rebuild the step evaluate"
        ) from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not readable as Parquet: got {error}; rebuild the step evaluate") from None
    return [_item(record, f"{path} row {place}") for place, record in enumerate(records)]


def _item(record: dict[str, Any], where: str) -> Item:
    try:
        return Item.model_validate({**record, "scores": json.loads(record["scores"])})
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("scores",), "msg": str(error)}
        raise DataError(
            f"{where}, field {'.'.join(map(str, first['loc']))} is wrong: {first['msg']}, because the item "
            "was not scored as it should; rebuild the step evaluate"
        ) from None


def _scored(items: Iterable[Item], what: Measure, model: str) -> dict[str, Item]:
    """Items of one model to which the measure applies, by id; an item with an error always counts."""
    own: dict[str, Item] = {}
    for item in items:
        if item.model == model and item.suite == what.suite and (item.scores.get(what.score) is not None or item.error):
            if item.item_id in own:
                raise DataError(
                    f"item {item.item_id!r} of suite {what.suite!r} stands twice for model {model!r}: got "
                    "two rows, because ids are not unique; give each item its own id"
                )
            own[item.item_id] = item
    if not own:
        raise DataError(
            f"{what.name} of {model} has no items: got none with score {what.score!r} in suite "
            f"{what.suite!r}, because the suite was not run or is empty; leave the figure out, or run it"
        )
    return own


def _value(item: Item, what: Measure) -> float:
    value = item.scores.get(what.score)
    if value is not None and not item.error:
        return value
    if what.better == "higher" and not what.weight:
        return 0.0
    raise DataError(
        f"item {item.item_id!r} of suite {what.suite!r} has no {what.score!r} for model {item.model!r}: "
        f"got error {item.error!r}; score the item again, a figure over fewer items is another figure"
    )


def _weight(item: Item, what: Measure) -> float:
    weight = item.scores.get(what.weight)
    if weight is None:
        raise DataError(
            f"item {item.item_id!r} of suite {what.suite!r} has no {what.weight!r} for {item.model!r}: got "
            f"scores {sorted(item.scores)}; write the denominator with each item"
        )
    return weight


def _fields(what: Measure) -> dict[str, Any]:
    return {name: getattr(what, name) for name in Measure.model_fields}
