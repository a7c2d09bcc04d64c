"""What an evaluation found, and the report that follows from it: figures, paired differences, samples, lineage, fingerprint."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.lib import evals, figures, history, inference, model_files, models, preference, runtime
from steps.lib.artifact import MANIFEST, lineage
from steps.lib.digests import digest_text
from steps.lib.errors import DataError
from steps.lib.evals import Heldout
from steps.lib.figures import Comparison, Figure, Item, Measure
from steps.lib.incumbents import ANCHOR, CHAMPION
from steps.lib.judged import Judged
from steps.lib.measures import AGAINST_REFERENCE, MEASURES
from steps.lib.registry import Version
from steps.lib.report import (
    Case,
    Judging,
    ModelCard,
    Report,
    Sample,
    Speed,
    StepRows,
    funnels,
    nodes,
    report_costs,
)
from steps.lib.suite_cases import SuiteCases, case_states
from steps.lib.suites import Limits, Suite

ALIGNED = ("dpo", "kto", "rl")
COMPARED = (
    ("pretrained", "base"),
    ("sft", "pretrained"),
    *((name, old) for name in ALIGNED for old in ("sft", "base")),
)
BUILT_IN = ("domain", "general", "prompts", "pairs")
STEPS = ("generate", "clean", "base", "pretrain", "sft", "pairs", "reference", "dpo", "kto", "reward", "rl")
"""Steps whose rows are shown."""
TRAINED = ("base", "pretrain", "sft", "dpo", "kto", "reward", "rl")
"""Steps whose curves are shown."""
HIGHLIGHTS = (
    "domain_bits_per_byte",
    "general_bits_per_byte",
    "format_rate",
    "rule_score",
    "implicit_reward_accuracy",
    "labels",
    "cases_passed",
    "lc_win_rate",
)
"""Figures on the first screen, those that there are."""


@dataclass(frozen=True)
class Evaluated:
    """All that a report is made of."""

    title: str
    seed: int
    limit: int | None
    samples: int
    """Prompts that are shown."""
    precision: str
    limits: Limits
    heldout: Path
    chain: dict[str, Path]
    """Name -> folder of every model, the candidate last."""
    versions: dict[str, Version]
    """Those that are versions of a registry."""
    held: Heldout
    suites: Sequence[Suite]
    """Besides the built-in ones."""
    items: list[Item]
    reference: str | None
    """Model that the implicit reward and the divergences are against."""
    notes: list[str] = field(default_factory=list)
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    """Model -> how fast it answers."""
    judged: Judged = field(default_factory=Judged)
    """What a judge made of the answers."""
    cases: SuiteCases | None = None
    """Held-out bad cases, where there are any."""

    @property
    def candidate(self) -> str:
        """The model that is to be promoted."""
        return list(self.chain)[-1]

    @property
    def measures(self) -> list[Measure]:
        """The figures of the built-in suites, and those of the others."""
        return [*MEASURES, *(what for suite in self.suites for what in suite.measures)]

    def report(self) -> Report:
        """The report."""
        made_here = [folder for name, folder in self.chain.items() if name not in self.versions]
        behind = {m["key"]: m for folder in (*made_here, self.heldout) for m in lineage(folder)}
        manifests = {m["step"]: m for m in behind.values()}
        taken, compared, missing = self._figures()
        return Report(
            title=self.title,
            seed=self.seed,
            facts=self._facts(),
            models=[
                ModelCard(
                    name=name, digest=inference.identity(folder), chain=_stages(folder), policy=self._policy(name)
                )
                for name, folder in self.chain.items()
            ],
            figures=[*taken, *self.judged.figures],
            comparisons=[*compared, *self.judged.comparisons],
            slices=self._slices(),
            judging=[Judging.of(facts.model_dump(), self.judged.figures) for facts in self.judged.facts],
            cases=self._case_states(),
            highlights=list(HIGHLIGHTS),
            samples=self._samples(),
            rows=[
                StepRows.from_ledger(step, manifests[step]["rows"])
                for step in STEPS
                if step in manifests and manifests[step]["rows"]["in"]
            ],
            lineage=nodes(behind.values()),
            histories=_histories(self.heldout, manifests),
            teachers=[one["name"] for one in manifests.get("generate", {}).get("config", {}).get("teachers", [])],
            funnel=funnels(manifests.get("generate", {}).get("metrics", {})),
            costs=report_costs(behind.values()),
            speeds=[Speed.of(name, times) for name, times in self.times.items()],
            fingerprint=self._fingerprint(),
            notes=[*self._notes(), *missing],
            warnings=list(dict.fromkeys(told for one in self.judged.facts for told in (*one.problems, *one.warnings))),
        )

    def _case_states(self) -> list[Case]:
        """What became of each bad case since the champion; without one, since the stage before."""
        old = next((name for name in (CHAMPION, "sft", "pretrained", "base") if name in self.chain), None)
        if not self.cases or old in (None, self.candidate):
            return []
        expected = self.cases.expected()
        return [
            Case.of(state.model_dump(), expected[state.item_id])
            for state in case_states(self.items, self.candidate, str(old))
        ]

    def _policy(self, name: str) -> str:
        """Output digest of the artifact that a model is."""
        if name in self.versions:
            return str(self.versions[name].facts["policy"])
        manifest = self.chain[name] / MANIFEST
        return str(json.loads(manifest.read_text(encoding="utf-8")).get("digest", "")) if manifest.exists() else ""

    def _figures(self) -> tuple[list[Figure], list[Comparison], list[str]]:
        """Every measure that has items, of every model; the paired differences; and why some could not be taken."""
        taken: list[Figure] = []
        compared: list[Comparison] = []
        missing: list[str] = []
        pairs = (*COMPARED, *((self.candidate, old) for old in (CHAMPION, ANCHOR)))
        for what in self.measures:
            having = figures.models_with(self.items, what)
            against = self.reference if what.score in AGAINST_REFERENCE else None
            try:
                taken += [
                    figures.measure(self.items, what, name, against=against) for name in self.chain if name in having
                ]
                compared += [
                    figures.compare(self.items, what, new, old) for new, old in pairs if new in having and old in having
                ]
            except DataError as error:  # an item has an error: the gate says invalid, and a person reads why
                missing.append(f"{what.name} is incomplete: {error}")
        return taken, compared, missing

    def _slices(self) -> list[Figure]:
        """Every figure of every part of its suite (``lang=``, ``source=``), of suites with more than one part."""
        return [
            figure
            for what in self.measures
            for figure in figures.sliced(
                self.items,
                what,
                list(self.chain),
                against=self.reference if what.score in AGAINST_REFERENCE else None,
            )
        ]

    def _facts(self) -> dict[str, str]:
        counts = {name: len(getattr(self.held, name)) for name in BUILT_IN} | {s.name: len(s) for s in self.suites}
        facts = {
            "task": self.held.task.name if self.held.task else "none (no rules)",
            "held-out items": ", ".join(f"{count} {name}" for name, count in counts.items()),
            "answers": f"greedy, at most {self.limits.max_tokens} tokens",
        }
        if self.reference:
            facts["reference"] = f"{self.reference} (implicit reward, KL)"
        return facts | {name: f"version {version.folder.name}" for name, version in self.versions.items()}

    def _notes(self) -> list[str]:
        """What a reader must know of the items that were not scored, or in a way of their own."""
        notes = list(self.notes)
        if self.limit:
            notes.append(f"Only the first {self.limit} items of each suite were scored (evaluate.limit).")
        if self.cases and self.cases.unjudged:
            notes.append(
                f"{self.cases.unjudged} bad cases are left out: only a judge can tell whether they pass (evaluate.rubric)."
            )
        if long := len(self.held.pairs) - len({item.item_id for item in self.items if item.suite == "pairs"}):
            notes.append(
                f"{long} of {len(self.held.pairs)} pairs are longer than evaluate.window ({self.limits.window} tokens): not scored."
            )
        for score, what in (("raw_tie", "log p"), ("implicit_tie", "implicit reward")):
            for name, count in preference.ties(self.items, score).items():
                notes.append(f"{count} pairs are exact ties of {name} by {what}: counted as wrong.")
        if errors := [item for item in self.items if item.error]:
            first = errors[0]
            notes.append(
                f"{len(errors)} items could not be scored; the first is {first.item_id} of {first.suite} ({first.model}): "
                f"{first.error[:200]}"
            )
        return notes

    def _samples(self) -> list[Sample]:
        """The first prompts of each language, with every model's answer."""
        half = (self.samples + 1) // 2
        rows = self.held.prompts
        chosen = [row for lang in ("en", "zh", "other") for row in [r for r in rows if r.lang == lang][:half]]
        answers = {(item.model, item.item_id): item.output for item in self.items if item.suite == "prompts"}
        task = self.held.task
        shown: list[Sample] = []
        for row in chosen[: self.samples]:
            outputs = {name: answers[name, row.id] for name in self.chain}
            rules = {name: task.check(row.prompt, text) for name, text in outputs.items()} if task else {}
            shown.append(Sample(id=row.id, prompt=row.prompt, lang=row.lang, outputs=outputs, rules=rules))
        return shown

    def _fingerprint(self) -> dict[str, str]:
        """What two evaluations must share to be compared item by item."""
        ids = sorted({(item.suite, item.item_id) for item in self.items})
        templates = {model_files.template_digest(models.model_folder(folder))[:16] for folder in self.chain.values()}
        return {
            "suites": held_digest(self.held),
            **{f"suite {suite.name}": suite.digest()[:16] for suite in self.suites},
            "items": digest_text(json.dumps(ids))[:16],
            "task": digest_text(self.held.task.model_dump_json() if self.held.task else "")[:16],
            "template": ", ".join(sorted(templates)),
            "scorer": evals.SCORER_VERSION,
            "generation": (
                f"greedy, {self.limits.max_tokens} tokens, batch {self.limits.batch_size}, window {self.limits.window}"
            ),
            "precision": self.precision,
            "machine": f"{platform.machine()} {models.device()}",
            **{name: version for name, version in runtime.versions().items() if name in ("torch", "transformers")},
        }


def held_digest(held: Heldout) -> str:
    """16 hex digits of the rows of the built-in suites."""
    return digest_text("\n".join(row.model_dump_json() for name in BUILT_IN for row in getattr(held, name)))[:16]


def _stages(artifact: Path) -> list[str]:
    chain = models.Chain.read(artifact)
    return [
        f"base {chain.base[:12]}",
        *(f"{stage.step} ({stage.method}) on {stage.digest[:12]}" for stage in chain.stages),
    ]


def _histories(heldout: Path, manifests: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Loss curves of every training step that lies in the same store, thinned to what a plot can show."""
    root = heldout.resolve().parent.parent
    result: dict[str, list[dict[str, Any]]] = {}
    for step in TRAINED:
        path = root / manifests[step]["key"] / "record" / "history.jsonl" if step in manifests else None
        if path and path.exists():
            result[step] = history.thin(history.read(path))
    return result
