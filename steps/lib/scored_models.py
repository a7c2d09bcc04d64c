"""Every model of an evaluation on every suite: batch by batch, each model loaded once, what is finished kept in a ledger.

A batch is kept under the digests of weights, adapter, tokenizer and chat template, what it asks, how it is drawn, and what else its
numbers depend on: one byte of any of them is another batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.lib import drift, evals, evaluated, inference, latency, models, pairwise_facts, preference
from steps.lib.evals import Heldout
from steps.lib.evaluated import ALIGNED
from steps.lib.figures import Item
from steps.lib.models import Precision
from steps.lib.stages import Stages
from steps.lib.step import Context
from steps.lib.suites import Limits, Scored, Suite
from steps.lib.work_ledger import WorkLedger

GROWN = ("base", "pretrained", "sft")
"""Models in the order in which one grows from another."""


@dataclass(frozen=True)
class Scoring:
    """The models, the suites, and how the ones are scored on the others."""

    chain: dict[str, Path]
    """Name -> folder of every model, the candidate last."""
    held: Heldout
    suites: Sequence[Suite]
    """Besides the built-in ones."""
    limits: Limits
    precision: Precision
    wanted: str
    """Name of the model that the others are to be held against."""
    kl_tokens: int
    """Tokens of the longest answer that is drawn to measure drift; 0: none."""
    latency: int
    """Prompts whose times are taken; 0: none."""
    context: Context

    def scored(self, ledger: WorkLedger) -> tuple[list[Item], dict[str, dict[str, float]]]:
        """The items of every model, batch by batch, and its times."""
        load = Stages(self.precision)
        items: list[Item] = []
        times: dict[str, dict[str, float]] = {}
        for name, artifact in self.context.progress(self.chain.items(), "models", len(self.chain)):
            kept = ledger.kept
            who = self._who(name, load, ledger)
            new = evals.score_model(
                name, who.model, who.tokenizer, self.held, self.limits, seed=who.seed, recall=who.recall
            )
            for suite in self.suites:
                new += suite.score(who)
            if self.latency and self.held.prompts:
                times[name] = self._times(who, artifact)
            self.context.log.info(
                "%s scored on %d items; %d batches were done before", name, len(new), ledger.kept - kept
            )
            items += new
        return items, times

    def _who(self, name: str, load: Stages, ledger: WorkLedger) -> Scored:
        artifact = self.chain[name]
        return Scored(
            name=name,
            model=inference.Later(partial(load, artifact)),
            tokenizer=models.load_tokenizer(models.model_folder(artifact)),
            limits=self.limits,
            seed=self.context.seed,
            recall=ledger.about(model=inference.identity(artifact), **inference.conditions(self.precision)),
        )

    def _times(self, who: Scored, artifact: Path) -> dict[str, float]:
        prompts = evals.asked_of(who.tokenizer, self.held).prompts[: self.latency]
        assert who.recall is not None
        content = {"kind": "latency", "prompts": prompts, "max_tokens": self.limits.max_tokens}
        found: dict[str, float] = who.recall(
            content, lambda: latency.taken(who.model, who.tokenizer, prompts, max_tokens=self.limits.max_tokens)
        )
        return found

    @property
    def reference(self) -> str | None:
        """The model that others are held against: as configured, or sft, or none."""
        return next((name for name in (self.wanted, "sft") if name in self.chain), None)

    def against_reference(self, items: list[Item], ledger: WorkLedger) -> tuple[list[Item], list[str]]:
        """The items with implicit rewards, and items of drift; and what a reader must know."""
        name, notes = self.reference, list[str]()
        if name != self.wanted and any(one in self.chain for one in ALIGNED):
            instead = f"{name} stands in its place" if name else "there are no implicit rewards and no divergences"
            notes.append(f"The reference {self.wanted} is not among the models: {instead}.")
        if name is None:
            return items, notes
        earlier = GROWN[: GROWN.index(name) + 1] if name in GROWN else (*GROWN, name)
        load = Stages(self.precision, bases=2)
        for other in (one for one in self.chain if one not in earlier):
            items = preference.add_implicit(items, other, name)
            who = self._who(other, load, ledger)
            against = self._who(name, load, ledger)
            if who.tokenizer.get_vocab() != against.tokenizer.get_vocab():
                notes.append(f"{other} and {name} have different vocabularies: no divergence between them.")
                continue
            assert who.recall is not None
            items = items + drift.score(
                other,
                drift.Two(who.model.load, against.model.load),
                who.tokenizer,
                self._drift_rows(who.tokenizer),
                window=self.limits.window,
                batch_size=self.limits.batch_size,
                sampled=self.kl_tokens,
                seed=self.context.seed,
                recall=ledger.about(
                    model=inference.identity(self.chain[other]),
                    reference=inference.identity(self.chain[name]),
                    **inference.conditions(self.precision),
                ),
            )
        return items, notes

    def _drift_rows(self, tokenizer: Any) -> list[drift.Row]:
        """Held-out pairs with their chosen answers, prompts with their reference answers, and prompts for answers of its own."""
        asked, prompts = evals.asked_of(tokenizer, self.held), self.held.prompts
        rows = [
            drift.Row(f"pair:{pair.id}", pair.lang, pair.source, *two[0])
            for pair, two in zip(self.held.pairs, preference.encoded(tokenizer, self.held.pairs), strict=True)
        ]
        for place, (_, prompt, answer) in asked.references.items():
            one = prompts[place]
            rows.append(drift.Row(f"reference:{one.id}", one.lang, one.source, prompt, answer))
        for one, ids in zip(prompts if self.kl_tokens else [], asked.prompts, strict=bool(self.kl_tokens)):
            rows.append(drift.Row(f"prompt:{one.id}", one.lang, one.source, ids))
        return rows

    def stamped(self, items: list[Item], judged: str) -> list[Item]:
        """The items with the digests of their model and suite, and the scorer's version.

        Args:
            items: of any suite; those of a judge are of the suite whose answers it compared.
            judged: that suite.
        """
        model = {name: inference.identity(folder)[:16] for name, folder in self.chain.items()}
        own = {suite.name: suite.digest()[:16] for suite in self.suites}
        built_in = evaluated.held_digest(self.held)
        return [
            item.model_copy(
                update={
                    "model_digest": model[item.model],
                    "suite_digest": own.get(
                        judged if item.suite.startswith(pairwise_facts.SUITE) else item.suite.partition(".")[0],
                        built_in,
                    ),
                    "scorer_version": evals.SCORER_VERSION,
                }
            )
            for item in items
        ]
