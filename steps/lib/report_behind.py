"""How the models of a report came to be: rows in and out, answers of teachers, lineage, time and money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from steps.lib.figures import Plain


class StepRows(Plain):
    """Rows in and out of a step, as its ledger counted them: kind -> rows, kind -> reason -> rows (none is 0)."""

    step: str
    rows_in: dict[str, int]
    rows_out: dict[str, int]
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict)

    @classmethod
    def from_ledger(cls, step: str, ledger: Mapping[str, Any]) -> StepRows:
        """From ``RowLedger.dump()``, which is also what a manifest holds as ``rows``."""
        dropped = {kind: {reason: n for reason, n in why.items() if n} for kind, why in ledger["dropped"].items()}
        return cls(
            step=step,
            rows_in=ledger["in"],
            rows_out=ledger["out"],
            dropped={kind: why for kind, why in dropped.items() if why},
        )


class Funnel(Plain):
    """What became of the requests of one stage of generate to one teacher: asked = answered + failed, answered = kept + dropped."""

    stage: str
    teacher: str
    """Empty: what was lost before a teacher was asked."""
    asked: int = 0
    answered: int = 0
    parsed: int = 0
    """Answers in the asked form."""
    kept: int = 0
    failed: dict[str, int] = Field(default_factory=dict)
    """Reason -> requests without an answer."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Flag -> answers that it kept back."""

    @property
    def lost(self) -> dict[str, int]:
        """Reason -> requests that came to nothing, the most frequent first."""
        both = {**self.failed, **self.dropped}
        return dict(sorted(both.items(), key=lambda pair: (-pair[1], pair[0])))


class Node(Plain):
    """One artifact behind the models. Its key is made of content, so it names no place and no time."""

    step: str
    key: str
    """``<step>/<12 digits>``: enough for ``prefline show``."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Kind -> rows that came out."""
    inputs: list[str] = Field(default_factory=list)
    """Keys of what it was made from, as far as they are nodes, too."""


class Cost(Plain):
    """What one artifact took to make, the once that it was made."""

    step: str
    key: str
    """``<step>/<12 digits>``."""
    seconds: float
    """Wall time."""
    tokens: int = 0
    """Generated or trained on."""
    dollars: float = 0.0
    """US dollars paid to teachers and judges."""
    host: str = ""
    """Machine."""


class Speed(Plain):
    """How fast a model answered, in this run and on this machine."""

    model: str
    p50_s: float
    """Seconds an answer, median."""
    p95_s: float
    """Seconds an answer, of 95 in 100 at most."""
    tokens_per_s: float
    """Tokens a second over the whole batch."""
    first_token_s: float | None = None
    """Seconds to the first token, median; None where it was not measured."""
    peak_mib: float | None = None
    """MiB of memory at the most; None where it was not measured."""

    @classmethod
    def of(cls, model: str, times: Mapping[str, float]) -> Speed:
        """From what evaluate measured of a model (``record/latency.json``).

        Args:
            model: its name in the report.
            times: p50_s, p95_s, tokens_per_s, and where they were measured first_p50_s and peak_mib.
        """
        return cls(
            model=model,
            p50_s=times["p50_s"],
            p95_s=times["p95_s"],
            tokens_per_s=times["tokens_per_s"],
            first_token_s=times.get("first_p50_s"),
            peak_mib=times.get("peak_mib"),
        )


def nodes(manifests: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Nodes of a lineage, each once, and after those that it was made from.

    Args:
        manifests: of the artifacts, in any order (``steps.lib.store.lineage``).
    """
    known = {str(manifest["key"]): manifest for manifest in manifests}
    above = {
        key: sorted({entry["key"] for entry in manifest["inputs"].values()} & known.keys())
        for key, manifest in known.items()
    }
    depths: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in depths:
            depths[key] = 1 + max((depth(one) for one in above[key]), default=-1)
        return depths[key]

    return [
        Node(
            step=known[key]["step"],
            key=_short(key),
            rows=known[key]["rows"]["out"],
            inputs=list(map(_short, above[key])),
        )
        for key in sorted(known, key=lambda key: (depth(key), key))
    ]


def funnels(metrics: Mapping[str, Any]) -> list[Funnel]:
    """The funnel in the metrics of generate: ``funnel/STAGE/TEACHER/WHAT``, where WHAT is asked, answered, parsed, kept,
    failed:REASON or dropped:REASON."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, value in metrics.items():
        if not name.startswith("funnel/"):
            continue
        stage, _, rest = name.removeprefix("funnel/").partition("/")
        teacher, _, what = rest.rpartition("/")
        entry = found.setdefault((stage, teacher), {"failed": {}, "dropped": {}})
        kind, colon, reason = what.partition(":")
        if colon:
            entry[kind][reason] = int(value)
        else:
            entry[kind] = int(value)
    return [Funnel(stage=stage, teacher=teacher, **entry) for (stage, teacher), entry in found.items()]


def report_costs(manifests: Iterable[Mapping[str, Any]]) -> list[Cost]:
    """Time and money of every artifact behind a report, each once, and after those that it was made from.

    An artifact that was found in the store was paid for when it was made; so the sum is what the models cost, not what the last
    run cost.

    Args:
        manifests: of the artifacts, in any order (``steps.lib.artifact.lineage``).
    """
    known = {_short(str(manifest["key"])): manifest for manifest in manifests}
    return [
        Cost(
            step=node.step,
            key=node.key,
            seconds=float(known[node.key].get("seconds", 0.0)),
            tokens=int(known[node.key].get("tokens", 0)),
            dollars=float(known[node.key].get("cost", 0.0)),
            host=str(known[node.key].get("host", "")),
        )
        for node in nodes(known.values())
    ]


def _short(key: str) -> str:
    step, _, digest = key.partition("/")
    return f"{step}/{digest[:12]}"
