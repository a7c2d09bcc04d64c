"""The kinds of rows that are trained on: their files, what is held out of them, and how many copies and how few rows may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from steps.lib.config import Added, Section
from steps.lib.rows import Chat, Pair, Prompt, Text, Thumb


@dataclass(frozen=True)
class Kind:
    """A kind of rows that is trained on."""

    name: str
    file: str
    """What is trained on; also its name among the limits below."""
    row: type[Any]
    held: str = ""
    """File that is held out; empty: nothing of this kind is, and its file is there only when it has a source."""
    held_row: type[Any] = Text


THUMBS = Kind("thumbs", "thumbs", Thumb)
"""Nothing of it is held out, because evaluation reads pairs."""
KINDS = (
    Kind("domain", "corpus", Text, "heldout_domain", Text),
    Kind("general", "general", Text, "heldout_general", Text),
    Kind("chats", "chats", Chat, "heldout_prompts", Prompt),
    Kind("pairs", "pairs", Pair, "heldout_pairs", Pair),
    THUMBS,
)
HELD = tuple(kind for kind in KINDS if kind.held)


class NearDuplicate(Section):
    """Jaccard similarity from which one of two rows is dropped, a kind; null keeps near-copies of that kind."""

    corpus: float | None = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of domain documents."""
    general: float | None = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of general documents."""
    chats: float | None = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and answers. At .7, short chats that differ by an order number would go."""
    pairs: float | None = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and both answers."""
    thumbs: Annotated[float | None, Added] = Field(default=0.9, gt=0, le=1)
    """Jaccard similarity of user turns and the answer, of thumbs with one verdict: what differs little and was judged differently
    says most."""

    def of(self, kind: Kind) -> float | None:
        """The limit of a kind."""
        limit: float | None = getattr(self, kind.file)
        return limit


class MinRows(Section):
    """Rows a kind must have after cleaning; null is 1 where the kind has an input, and 0 where it has none."""

    corpus: int | None = Field(default=None, ge=0)
    """Rows of the domain corpus."""
    general: int | None = Field(default=None, ge=0)
    """Rows of general text."""
    chats: int | None = Field(default=None, ge=0)
    """Rows of chats."""
    pairs: int | None = Field(default=None, ge=0)
    """Rows of imported pairs."""
    thumbs: Annotated[int | None, Added] = Field(default=None, ge=0)
    """Rows of imported thumbs."""

    def of(self, kind: Kind) -> int | None:
        """The least of a kind."""
        least: int | None = getattr(self, kind.file)
        return least
