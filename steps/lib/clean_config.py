"""The configuration of clean: where rows come from, what each is held to, how many may be alike, what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib import semantic
from steps.lib.config import Added, Neutral, Section
from steps.lib.content import Content
from steps.lib.digests import digest_file
from steps.lib.errors import DataError
from steps.lib.heldout import HeldoutConfig
from steps.lib.kinds import HELD, KINDS, Kind, MinRows, NearDuplicate
from steps.lib.mixing import Mix
from steps.lib.overlap import Decontaminate
from steps.lib.personal import Personal
from steps.lib.quality import Filters
from steps.lib.rows import Chat, Pair, Prompt, Text, Thumb
from steps.lib.semantic import Semantic
from steps.lib.sources import Source, digest
from steps.lib.standards import Standards
from steps.lib.student import Student, student_identity
from steps.lib.toxicity import Toxicity, toxicity_identity


class CleanConfig(Section):
    """Where rows come from, and what is good enough to train on."""

    task: Annotated[Path | None, Neutral] = None
    """Task file: its short system line goes before every candidate, and its rules check the answers."""
    domain: list[Source] = []
    """Sources of domain documents, for continued pretraining."""
    general: list[Source] = []
    """Sources of general text, for replay."""
    chats: list[Source] = []
    """Sources of conversations, beside the candidates of ``generate``."""
    pairs: list[Source] = []
    """Sources of preference pairs."""
    thumbs: Annotated[list[Source], Added] = []
    """Sources of single answers with a thumb up or down, for kto."""
    heldout: HeldoutConfig = HeldoutConfig()
    """What is never trained on: its sources, or the share to split off."""
    personal: Personal = Personal()
    """What becomes of personal data."""
    filters: Filters = Filters()
    """Thresholds of the row filters."""
    content: Content = Content()
    """Rules of what a text says."""
    toxicity: Annotated[Toxicity, Added] = Toxicity()
    """Toxic words, and a classifier of your own."""
    student: Annotated[Student, Added] = Student()
    """Lengths in tokens of the model that is to be trained."""
    decontaminate: Decontaminate | None = Decontaminate()
    """How much of a benchmark or of a held-out row a row may hold; null looks for copies and near-copies only."""
    near_duplicate: NearDuplicate = NearDuplicate()
    """When two rows are one too many, for each kind."""
    near_heldout: float | None = Field(default=0.5, gt=0, le=1)
    """Jaccard similarity to a held-out row from which a row is dropped; null drops exact copies only."""
    near_case: Annotated[float, Added] = Field(default=0.3, gt=0, le=1)
    """Jaccard similarity of character n-grams to a held-out bad case from which a row is dropped."""
    semantic: Annotated[Semantic | None, Added] = None
    """When two rows that say the same in other words are one too many; null does not look."""
    answers_per_prompt: int | None = Field(default=4, ge=1)
    """Chats that may have the same prompt, the first ones stay; null keeps all."""
    mix: Annotated[dict[Literal["domain", "general", "chats", "pairs", "thumbs"], Mix], Added] = {}
    """Kind -> how much each of its sources gives; a kind that is not named keeps all its rows."""
    min_rows: MinRows = MinRows()
    """How few rows are too few, for each kind."""
    check_rules: list[str] = ["json_schema"]
    """Rules of the task that a candidate must keep to become a chat; a rule that does not apply is kept."""
    allowed_flags: list[str] = ["repaired", "same_answer"]
    """Flags of ``generate`` with which a candidate may still become a chat; any other drops it."""
    shard_rows: Annotated[int, Neutral] = Field(default=20_000, ge=1)
    """Rows that are read, repaired and judged at a time; a killed run repeats at most those that were being worked on."""
    workers: Annotated[int | None, Neutral] = Field(default=None, ge=1)
    """Processes that look at shards; null is one a core, once there are some thousand rows; 1 is none but the step's own."""
    warn_share: Annotated[float, Neutral] = Field(default=0.3, ge=0, le=1)
    """Share of the rows of a kind from which what a single reason drops is a warning."""
    max_dropped_share: Annotated[float | None, Added] = Field(default=None, ge=0, le=1)
    """Share of the rows of a kind that may be dropped, for all reasons together; more is an error. Null: any."""

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        twice = [name for name, count in Counter(source.name for _, source, _ in self.asked()).items() if count > 1]
        if twice:
            raise ValueError(f"source names {', '.join(twice)} stand twice; give each source its own name")
        return self

    def asked(self) -> list[tuple[str, Source, type[Any]]]:
        """(kind in the ledger, source, row type) of every source, held-out ones first."""
        groups: list[tuple[str, list[Source], type[Any]]] = [
            ("heldout_domain", self.heldout.domain, Text),
            ("heldout_general", self.heldout.general, Text),
            ("heldout_prompts", self.heldout.prompts, Prompt),
            ("heldout_pairs", self.heldout.pairs, Pair),
            ("domain", self.domain, Text),
            ("general", self.general, Text),
            ("chats", self.chats, Chat),
            ("pairs", self.pairs, Pair),
            ("thumbs", self.thumbs, Thumb),
        ]
        return [(name, source, kind) for name, sources, kind in groups for source in sources]

    def standards(self) -> Standards:
        """What each row is held to by itself."""
        own = self.model_copy(update={"semantic": None})
        models = tuple(sorted(models_of(own).items()))
        return Standards(self.filters, self.personal, self.content, self.toxicity, self.student, models)

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that there are."""
        return KINDS if self.thumbs else HELD


def externals(config: CleanConfig) -> dict[str, str]:
    """Content digests of every source, of the task file, and of what else is read.

    Raises:
        DataError: every file that is missing, in one message.
        ModelError: a model is not there.
    """
    asked: list[tuple[str, Callable[[], str]]] = [
        (f"{kind}/{source.name}", partial(digest, source)) for kind, source, _ in config.asked()
    ]
    if config.task:
        asked.append(("task", partial(digest_file, config.task)))
    if config.heldout.record:
        asked.append(("heldout_record", partial(digest_file, config.heldout.record)))
    for source in config.decontaminate.benchmarks if config.decontaminate else ():
        asked.append((f"benchmark/{source.name}", partial(digest, source)))
    digests, problems = {}, []
    for name, told in asked:
        try:
            digests[name] = told()
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return digests | models_of(config)


def models_of(config: CleanConfig) -> dict[str, str]:
    """Content of the models that clean asks: tokenizer of the student, classifier, embeddings.

    Raises:
        ModelError: one is not there.
    """
    found: dict[str, str] = {}
    if tokenizer := student_identity(config.student):
        found["student"] = tokenizer
    if config.toxicity.model:
        found["toxicity"] = toxicity_identity(config.toxicity.model)
    if config.semantic:
        found |= semantic.externals(config.semantic)
    return found
