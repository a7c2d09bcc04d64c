"""One turn of the loop: new bad cases -> the line with them -> what became of each case. No prefect here.

Which events belong to a run is one claim in the store of bad cases. A run that dies leaves its claim open, and the next one goes on
with the same events; what was built meanwhile is in the artifact store. So no case is lost, and none is used by two runs.

Source: EVALUATION.md section 7. Deviations: (1) a case on the training side is not measured, so it is told as trained_on and keeps
its state; (2) cases move to fixed or regressed only when the version that did it serves.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.engine import Engine, Outcome, Plan
from flows.line import AlignConfig
from steps import badcases
from steps.lib import report
from steps.lib.case_clusters import HOLDOUT
from steps.lib.case_pairs import SOURCE
from steps.lib.case_states import Outcome as Told
from steps.lib.case_states import Taken
from steps.lib.case_store import CaseStore
from steps.lib.config import layers_of, load
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.locks import hold, holder
from steps.lib.place import FolderPlace
from steps.lib.rows import BadCase, Dropped, Pair, read_parquet
from steps.lib.step import Spec

RECIPE = "configs/recipes/retrain.yaml"
"""What a turn has over a profile where nobody says otherwise."""
LOCK = "retrain"
CASES = "cases.parquet"
STATES: Mapping[str, Any] = {
    "fixed": "fixed",
    "regressed": "regressed",
    "known_fail": "still_failing",
    "still_pass": "still_passes",
    "flaky": "flaky",
    "error": "not_measured",
}
"""State of a case in a report -> what the store tells of it."""


@dataclass(frozen=True)
class Waiting:
    """What came since the last run."""

    events: int
    clusters: int = 0
    deleted: int = 0
    """Cases that may have been trained on, and were deleted."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: str
    version: str
    verdict: str
    promoted: bool
    outcomes: Mapping[str, Told]
    moved: Mapping[str, str]
    """Cases that moved to fixed or regressed."""

    def counts(self) -> dict[str, int]:
        """What became of the cases, and how many."""
        return dict(Counter(one.outcome for one in self.outcomes.values()).most_common())


@dataclass
class Turn:
    """A run with its events."""

    taken: Taken
    config: AlignConfig
    """The line's configuration, with the events of the store and the record of the run before."""
    folder: Path

    def finish(self, outcomes: Sequence[Outcome]) -> Result:
        """Write down what became of each case, close the claim, and keep the record for the next run.

        Raises:
            DataError: an artifact of the run cannot be read.
        """
        by_step = {one.step: one.artifact.path for one in outcomes}
        verdict = json.loads((by_step["promote"] / "verdict.json").read_text(encoding="utf-8"))
        registered = json.loads((by_step["promote"] / "record" / "registry.json").read_text(encoding="utf-8"))
        promoted = registered["champion"] == registered["version"]
        with CaseStore.open(self.config.retrain.feedback) as store:
            told = _told(by_step, store.claimed(self.taken))
            shutil.copyfile(by_step["badcases"] / CASES, self.folder / f"{CASES}.new")
            (self.folder / f"{CASES}.new").replace(self.folder / CASES)
            moved = store.done(self.taken.run, told, version=registered["version"], promoted=promoted)
        result = Result(self.taken.run, registered["version"], verdict["verdict"], promoted, told, moved)
        facts = {"verdict": result.verdict, "version": result.version, "promoted": promoted, **result.counts()}
        (self.folder / "result.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        _forget(self.folder)
        return result


@dataclass
class Retraining:
    """The loop of one configuration."""

    layers: Sequence[Path]
    overrides: Sequence[str]
    config: AlignConfig
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("prefline.retrain"))
    why: str = ""
    """Why there is nothing to do."""

    @classmethod
    def of(cls, profile: str, recipes: Sequence[str | Path], overrides: Sequence[str]) -> Retraining:
        """From the words of the command line, or of the form.

        Raises:
            ConfigError: every problem of the configuration; or it has no gate.
        """
        layers = layers_of(profile, [Path(recipe) for recipe in recipes])
        config = load(AlignConfig, layers, overrides).value
        if config.promote is None:
            raise ConfigError(
                "retraining has no gate: got promote: null, because a new model may only serve when it is better; set a section "
                "promote"
            )
        return cls(layers, list(overrides), config)

    def waiting(self) -> Waiting:
        """What came since the last run; while one goes on, only how many events came. The step badcases counts the clusters, and
        what it makes is in the store of artifacts then.

        Raises:
            PreflineError: of the step.
        """
        with CaseStore.open(self.config.retrain.feedback) as store:
            claims = store.claims()
            head, last = store.head(), max((one.last for one in claims), default=0)
            if head <= last or any(not one.done for one in claims):
                return Waiting(max(0, head - last))
            self.config.retrain.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".waiting-", dir=self.config.retrain.folder) as folder:
                config = self._with_cases(store, Path(folder), head, claims)
                engine = Engine(config, Plan(until="badcases"), group="waiting")
                engine.run()
        found = engine.outcomes[-1].artifact.manifest["metrics"]
        return Waiting(head - last, int(found["new_clusters"]), int(found["deleted_after_training"]))

    @contextmanager
    def turn(self) -> Iterator[Turn | None]:
        """Claim what is new and give it to the block; None with ``why`` where there is nothing to do.

        Only one run of the loop is going at a time; a second one ends at once.

        Raises:
            PreflineError: the store of bad cases or the record cannot be read.
        """
        settings = self.config.retrain
        place = FolderPlace(settings.folder)
        busy = holder(place, LOCK)
        if busy is not None and busy.alive:
            self.why = f"another retraining is going (process {busy.pid} on {busy.host}); it takes what came so far"
            yield None
            return
        with hold(place, LOCK, log=self.log):
            yield self._begun()

    def _begun(self) -> Turn | None:
        settings = self.config.retrain
        with CaseStore.open(settings.feedback) as store:
            going = [one for one in store.claims() if not one.done]
        if not going and settings.min_clusters:
            found = self.waiting()
            if found.clusters < settings.min_clusters and not found.deleted:
                self.why = (
                    f"{found.events} new events in {found.clusters} new clusters, and retrain.min_clusters is "
                    f"{settings.min_clusters}; nothing is trained"
                )
                return None
        with CaseStore.open(settings.feedback) as store:
            taken = store.take()
            if taken is None:
                self.why = f"no event came into {settings.feedback} since the last run; nothing is trained"
                return None
            folder = settings.folder / taken.run
            earlier = [one for one in store.claims() if one.run != taken.run]
            return Turn(taken, self._with_cases(store, folder, taken.last, earlier), folder)

    def _with_cases(self, store: CaseStore, folder: Path, upto: int, claims: Sequence[Taken]) -> AlignConfig:
        """The configuration with the store's log up to a number, and the record of the run before."""
        folder.mkdir(parents=True, exist_ok=True)
        events = folder / "events.jsonl"
        store.export(events, upto)
        own = self.config.badcases.model_dump(mode="json")["sources"] if self.config.badcases else []
        cases: dict[str, Any] = {"sources": [*own, {"name": "feedback", "path": str(events)}]}
        if record := self._record(claims):
            cases["record"] = str(record)
        if self.config.badcases is None and self.config.clean.task:
            cases["task"] = str(self.config.clean.task)
        values: dict[str, Any] = {"badcases": cases}
        if self.config.pairs is not None and not self.config.pairs.wants_badcases:
            sources = self.config.pairs.model_dump(mode="json", exclude_defaults=False)["sources"]
            values["pairs"] = {"sources": [*sources, {"kind": "badcases"}]}
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return load(AlignConfig, [*self.layers, recipe], self.overrides).value

    def _record(self, claims: Sequence[Taken]) -> Path | None:
        """The cases of the run before; of the first run those of the line as it is configured, where it ran.

        Raises:
            ArtifactError: the run before left none, so nobody knows which cases it held out.
        """
        if claims:
            path = self.config.retrain.folder / claims[-1].run / CASES
            if not path.exists():
                raise ArtifactError(
                    f"record of bad cases is not there: got no {path}, because run {claims[-1].run} ended elsewhere or somebody "
                    "removed it; bring it back (retrain.folder), so that held-out cases stay held out"
                )
            return path
        if self.config.badcases is None:
            return None
        engine = Engine(self.config)
        found = engine.store.find(Spec(badcases, self.config.badcases, {}, self.config.seed).key())
        return engine.store.fetch(found).path / CASES if found else None


def _told(by_step: Mapping[str, Path], claimed: Sequence[str]) -> dict[str, Told]:
    """What became of the cases of a claim, and of all that were held out."""
    place = by_step["badcases"]
    cases = {case.id: case for case in read_parquet(place / CASES, BadCase)}
    reasons = {row.id: row for row in read_parquet(place / "dropped.parquet", Dropped)}
    measured = {case.id: case.state for case in report.read(by_step["evaluate"]).cases}
    trained = _trained(by_step)
    found: dict[str, Told] = {}
    for name in dict.fromkeys([*claimed, *measured]):
        if name in measured:
            found[name] = Told(STATES[measured[name]])
        elif name in trained:
            found[name] = Told("trained_on")
        elif name in reasons:
            found[name] = Told("unused", f"{reasons[name].reason}: {reasons[name].detail}"[:500])
        elif name in cases and cases[name].split == HOLDOUT:
            found[name] = Told("not_measured", "held out; only a judge can tell, or evaluate.limit left it out")
        else:
            found[name] = Told("unused", "its pair was left out by the step pairs" if name in cases else "no such case")
    return found


def _trained(by_step: Mapping[str, Path]) -> set[str]:
    """Cases whose pairs, or verdicts, the policy was trained on."""
    found: set[str] = set()
    if "pairs" in by_step:
        rows = read_parquet(by_step["pairs"] / "pairs.parquet", Pair)
        found |= {json.loads(row.evidence)["case"] for row in rows if row.source == SOURCE}
    return found


def _forget(folder: Path) -> None:
    """Take away what a finished run needs no more: texts of cases that may be deleted one day lie in the store alone."""
    (folder / "events.jsonl").unlink(missing_ok=True)
    for older in folder.parent.glob(f"*/{CASES}"):
        if older.parent != folder:
            older.unlink()
