"""What a run would take, from what the same steps took before: rows, tokens, money, time, memory, disk. Nothing is run.

The measure is the nearest earlier artifact of the step, of this machine where there is one. Its time of training is scaled by the
sequences that are gone through, all else by the rows that come in; what teachers are asked for the step itself counts. What no
artifact tells is not known, and that is said.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from flows.engine import Plan
from flows.plan import Look, differing, short
from steps.lib.amounts import count, duration, money
from steps.lib.artifact import Artifact
from steps.lib.bill import Estimate
from steps.lib.errors import PreflineError
from steps.lib.store import Store
from steps.lib.training import TrainSettings, updates


@dataclass(frozen=True)
class Expected:
    """What one step would take. None: not known."""

    step: str
    rows: int | None = None
    """Rows that come out."""
    tokens: int | None = None
    """Tokens generated or trained on."""
    requests: int = 0
    """Requests to teachers that are still to be asked."""
    cost: float | None = None
    """US dollars."""
    most_cost: float | None = None
    """US dollars at the most."""
    seconds: float | None = None
    memory: int | None = None
    """Bytes of the host at the peak."""
    gpu: int | None = None
    """Bytes of the GPU at the peak."""
    disk: int | None = None
    """Bytes of the artifact."""
    basis: str = ""
    """What all this rests on, or why it is not known."""
    asked: Estimate | None = None
    """Line by line, where the step can tell what it asks teachers for."""


COLUMNS = ("rows", "tokens", "requests", "USD", "time", "memory", "disk")
"""Heads of what ``cells`` gives."""


def builds(look: Look, plan: Plan) -> bool:
    """Whether a run with the plan would build the step."""
    changed = plan.strict_code and look.state == "changed code"
    return not look.there or look.step in plan.force or changed


def forecast(looks: Sequence[Look], plan: Plan, store: Store) -> dict[str, Expected]:
    """Step -> what it would take, of the steps that a run with the plan would build."""
    return {look.step: expected(look, store) for look in looks if builds(look, plan)}


def expected(look: Look, store: Store) -> Expected:
    """What building one step would take."""
    asked, problem = _asked(look, store)
    then = _measure(look, store)
    if then is None:
        basis = problem or f"no {look.step} was built in this store before"
        if asked is None:
            return Expected(look.step, basis=basis)
        return _with_asked(Expected(look.step, basis=basis), asked)
    found = _like(look, then, store)
    return _with_asked(found, asked) if asked else found


@dataclass(frozen=True)
class Total:
    """All steps together: one runs after the other."""

    requests: int
    tokens: int
    cost: float
    most_cost: float
    seconds: float
    memory: int
    """Of the largest."""
    gpu: int
    disk: int
    unknown: tuple[str, ...]
    """Steps of which the time is not known: it is not in the sum."""


def total(steps: Sequence[Expected]) -> Total:
    """The sum of time, money and disk, and the largest memory."""
    return Total(
        requests=sum(one.requests for one in steps),
        tokens=sum(one.tokens or 0 for one in steps),
        cost=sum(one.cost or 0.0 for one in steps),
        most_cost=sum(one.most_cost or 0.0 for one in steps),
        seconds=sum(one.seconds or 0.0 for one in steps),
        memory=max((one.memory or 0 for one in steps), default=0),
        gpu=max((one.gpu or 0 for one in steps), default=0),
        disk=sum(one.disk or 0 for one in steps),
        unknown=tuple(one.step for one in steps if one.seconds is None),
    )


def _asked(look: Look, store: Store) -> tuple[Estimate | None, str]:
    """What the step would ask teachers for, and why that is not known."""
    give: Any = getattr(look.spec.module, "estimate", None) if look.spec else None
    if give is None or look.spec is None:
        return None, ""
    resume = store.partial(look.spec.key()) / ".resume"
    try:
        return give(look.spec.config, seed=look.spec.seed, resume=resume), ""
    except PreflineError as error:
        return None, str(error)


def _with_asked(one: Expected, asked: Estimate) -> Expected:
    """Requests and money as counted now; the time, too, where teachers are what takes it."""
    waits = any(line.missing and line.seconds != 0 for line in asked.lines)
    cost = asked.cost
    return Expected(
        one.step,
        rows=one.rows,
        tokens=sum(line.tokens_out for line in asked.lines),
        requests=sum(line.missing for line in asked.lines),
        cost=cost[0] if cost else None,
        most_cost=cost[1] if cost else None,
        seconds=asked.seconds if waits else one.seconds,
        memory=one.memory,
        gpu=one.gpu,
        disk=one.disk,
        basis=one.basis,
        asked=asked,
    )


def _measure(look: Look, store: Store) -> Artifact | None:
    """The artifact from which the figures are taken."""
    if look.artifact is not None:
        return look.artifact
    if look.parts and (found := differing(look, store)):
        near = found[0]
        if near.manifest.get("host") == platform.node():
            return near
    others = sorted(store.manifests(look.step), key=lambda one: str(one.manifest.get("finished", "")))
    here = [one for one in others if one.manifest.get("host") == platform.node()]
    return next(reversed(here or others), None)


def _like(look: Look, then: Artifact, store: Store) -> Expected:
    """As the other artifact took, scaled to what is to be done now."""
    facts = then.manifest
    grown, told = _growth(look, then, store)
    rows = sum(facts["rows"]["out"].values())
    training = float(facts["metrics"].get("train_seconds", 0.0))
    longer = grown
    config = look.spec.config if look.spec else look.config
    settings = config.model_dump(mode="json") if config else facts["config"]
    if training:
        longer = _sequences(settings, rows * grown) / max(1, _sequences(facts["config"], rows))
    rest = float(facts["seconds"]) - training
    seconds = training * longer + (rest if training else rest * grown)
    memory: Mapping[str, int] = facts.get("memory", {})
    host = str(facts.get("host", ""))
    changed = _memory_changed(settings, facts["config"])
    said = [f"as {short(then.key)}"]
    said += [f"{longer:.2g}x its training"] if training and round(longer, 2) != 1 else []
    said += [told] if told else []
    said += [f"on {host}, another machine"] if host != platform.node() else []
    said += [f"memory not known: {changed} differs"] if changed else []
    return Expected(
        look.step,
        rows=round(rows * grown),
        tokens=round(facts["tokens"] * grown),
        cost=float(facts["cost"]) * grown,
        most_cost=float(facts["cost"]) * grown,
        seconds=seconds,
        memory=None if changed else memory.get("host"),
        gpu=None if changed else memory.get("gpu"),
        disk=round(then.size * grown),
        basis=", ".join(said),
    )


def _growth(look: Look, then: Artifact, store: Store) -> tuple[float, str]:
    """How many times the rows come in now, and that in words."""
    if look.spec is None or not look.spec.inputs:
        return 1.0, "its inputs are not known yet: it may be Cached" if look.waits_for else ""
    before = [store.look(one["key"]) for one in then.manifest["inputs"].values()]
    if any(not isinstance(one, Artifact) for one in before):
        return 1.0, "what it read then is gone"
    now, past = _rows(look.spec.inputs.values()), _rows(one for one in before if isinstance(one, Artifact))
    if not now or not past or now == past:
        return 1.0, ""
    return now / past, f"{now / past:.2g}x its rows"


def _rows(inputs: Iterable[Artifact]) -> int:
    return sum(sum(one.manifest.get("rows", {}).get("out", {}).values()) for one in inputs)


def _sequences(config: Mapping[str, Any], rows: float) -> float:
    """Sequences that a training goes through."""
    train = TrainSettings.model_construct(**config.get("train", {}))
    return updates(max(1, round(rows)), train) * train.batch_size * train.accumulation


SIZES = (
    "method",
    "batch_size",
    "accumulation",
    "max_length",
    "tokens_per_pass",
    "precision",
    "gradient_checkpointing",
    "processes",
)
"""Fields that decide how much memory a step takes."""


def _memory_changed(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """The first field that decides on memory and differs; empty where none does."""
    for old, new in ((then, now), (then.get("train") or {}, now.get("train") or {})):
        for name in SIZES:
            if old.get(name) != new.get(name):
                return name
    return ""


def cells(one: Expected) -> list[str]:
    """A step's figures as people read them: rows, tokens, requests, money, time, memory, disk."""
    return [
        "?" if one.rows is None else f"{one.rows:,}",
        "?" if one.tokens is None else count(one.tokens),
        f"{one.requests:,}" if one.requests else "",
        "?" if one.cost is None else money(one.cost).removesuffix(" USD") if one.cost else "",
        "?" if one.seconds is None else duration(one.seconds),
        _memory(one.memory, one.gpu),
        "?" if one.disk is None else _bytes(one.disk),
    ]


def total_cells(whole: Total) -> list[str]:
    """The same of all steps together."""
    more = " and more" if whole.unknown else ""
    return [
        "",
        count(whole.tokens),
        f"{whole.requests:,}" if whole.requests else "",
        money(whole.cost).removesuffix(" USD") if whole.cost else "",
        f"{duration(whole.seconds)}{more}",
        _memory(whole.memory or None, whole.gpu or None),
        _bytes(whole.disk),
    ]


def unknown(steps: Sequence[str]) -> str:
    """Which steps are not in the sums, in words."""
    return f"without {', '.join(steps)}" if steps else ""


def _memory(host: int | None, gpu: int | None) -> str:
    text = "?" if host is None else _bytes(host)
    return f"{text} + {_bytes(gpu)} GPU" if gpu else text


def _bytes(size: int) -> str:
    return decimal(size)
