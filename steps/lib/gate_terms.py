"""What a gate asks, declared before anybody looks: figures that must get better, figures that must not get worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field

from steps.lib.config import Section

Spending = Literal["none", "quarter"]
Test = Literal["midp", "exact"]


class Primary(Section):
    """A figure that must get better."""

    figure: str = "rule_score"
    """Name of a figure of the report."""
    min_effect: float = Field(default=0.0, ge=0)
    """Figure's unit (percent for bits per byte): the lower bound of the improvement must be above it."""
    noise_floor: float = Field(default=0.0, ge=0)
    """Figure's unit: what one model differs from itself between two runs (a GPU does); it is added to min_effect."""


class Guard(Section):
    """A figure that must not get clearly worse."""

    figure: str
    """Name of a figure of the report."""
    margin: float = Field(ge=0)
    """Figure's unit (percent for bits per byte): loss that is allowed; the bound of the loss must be inside it."""
    noise_floor: float = Field(default=0.0, ge=0)
    """Figure's unit: what one model differs from itself between two runs (a GPU does); it is added to the margin."""


class Terms(Protocol):
    """What the verdict hangs on: promote's configuration."""

    @property
    def baseline(self) -> str:
        """Model of the report that the first champion must beat."""
        ...

    @property
    def primaries(self) -> Sequence[Primary]:
        """Figures of which one must get better, and none worse."""
        ...

    @property
    def guards(self) -> Sequence[Guard]:
        """Figures that must not get worse."""
        ...

    @property
    def confidence(self) -> float:
        """Share: one-sided confidence of every bound."""
        ...

    @property
    def mcnemar(self) -> Test:
        """Which test the primaries of few 0/1 items also pass."""
        ...

    @property
    def allow_template_change(self) -> bool:
        """Whether the chat template may be another one than the champion's."""
        ...

    @property
    def spending(self) -> Spending:
        """How looks at the same items share the level."""
        ...

    @property
    def max_looks(self) -> int:
        """Looks at the same items before they count as worn."""
        ...
