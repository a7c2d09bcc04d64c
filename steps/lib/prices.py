"""What tokens cost, and budgets that are never passed.

A budget is reserved before a request is sent, at the most that it can cost: every byte of what is sent as a token, and as many
tokens of answer as it may have. When the answer is there, the reservation becomes what was really used. What does not fit waits for
requests in flight to give back what they did not use; when none is in flight, the budget is spent.

An endpoint that bills more tokens than it was allowed to generate can pass a budget; nothing on this side can keep it from that.
"""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from steps.lib.config import Section
from steps.lib.errors import BudgetSpent
from steps.lib.ledger import Spent
from steps.lib.rules import read_values

MILLION = 1e6
FEW_DOLLARS = 1e-9
"""US dollars by which sums of floats may differ."""


class Price(Section):
    """What a million tokens cost."""

    input: float = Field(ge=0)
    """US dollars for a million tokens of prompt."""
    output: float = Field(ge=0)
    """US dollars for a million tokens of answer, thoughts included."""
    batch_share: float = Field(default=0.5, ge=0, le=1)
    """Share (0 to 1) of these prices that the same tokens cost in a batch file."""

    def of(self, tokens_in: int, tokens_out: int, *, batch: bool = False) -> float:
        """US dollars for so many tokens."""
        whole = (tokens_in * self.input + tokens_out * self.output) / MILLION
        return whole * self.batch_share if batch else whole


class DatedPrice(Price):
    """A price of the table."""

    seen: datetime.date
    """Day on which it was looked up."""


class PriceTable(Section):
    """Prices by model name (configs/prices.yaml)."""

    models: dict[str, DatedPrice]
    """Model name, as endpoints know it -> its price."""

    @classmethod
    def read(cls, path: Path) -> PriceTable:
        """Read and check a table.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        return read_values(cls, path)


def price_of(model: str, own: Price | None, table: Path) -> Price | None:
    """The price of a model: its teacher's own, or that of the table; None: nobody knows it.

    Raises:
        ConfigError: the table is there and wrong.
    """
    if own is not None:
        return own
    return PriceTable.read(table).models.get(model) if table.is_file() else None


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one or more requests."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    """US dollars."""

    @property
    def tokens(self) -> int:
        """Tokens in both directions."""
        return self.tokens_in + self.tokens_out

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out, self.cost + other.cost)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.tokens_in - other.tokens_in, self.tokens_out - other.tokens_out, self.cost - other.cost)

    def __bool__(self) -> bool:
        return bool(self.tokens or self.cost)


class Budget:
    """Tokens and US dollars that one teacher may use, over all runs of one ledger.

    Args:
        name: the teacher's, for messages.
        usd, tokens: the caps; None: none.
        spent: what was used before.
    """

    def __init__(self, name: str, usd: float | None, tokens: int | None, spent: Spent) -> None:
        self._name, self._usd, self._tokens = name, usd, tokens
        self.used = Usage(spent.tokens, 0, spent.usd)
        """Used for certain."""
        self._reserved: dict[int, Usage] = {}
        self._held = Usage()
        """Sum of what is reserved."""
        self._number = 0
        self._changed = asyncio.Event()
        self.spent = False
        """Whether something did not fit: nothing new is sent any more."""

    async def reserve(self, most: Usage) -> int:
        """Set aside the most that a request can use, as soon as that fits; the number is for ``settle``.

        Raises:
            BudgetSpent: it does not fit, and nothing in flight could give anything back.
        """
        while not self.fits(most):
            if self.spent or not self._reserved:
                self.spent = True
                raise self.error(most)
            await self._changed.wait()
        if self.spent:
            raise self.error(most)
        return self.take(most)

    def fits(self, more: Usage) -> bool:
        """Whether so much can be set aside now."""
        if self._usd is None and self._tokens is None:
            return True
        whole = self.used + self._held + more
        money = self._usd is None or whole.cost <= self._usd + FEW_DOLLARS
        return money and (self._tokens is None or whole.tokens <= self._tokens)

    def take(self, most: Usage) -> int:
        """Set aside, whether it fits or not: what was sent already."""
        self._number += 1
        self._reserved[self._number] = most
        self._held += most
        return self._number

    def settle(self, number: int, used: Usage) -> None:
        """Put what a request really used in the place of what was set aside for it."""
        most = self._reserved.pop(number)
        self._held = self._held - most if self._reserved else Usage()  # no rest of rounding stays
        self.used += used
        self._changed.set()
        self._changed = asyncio.Event()

    def error(self, most: Usage) -> BudgetSpent:
        """What to tell a person."""
        parts, caps = [], []
        if self._usd is not None:
            parts.append(f"{self.used.cost:.4f} of {self._usd:g} USD")
            caps.append("budget_usd")
        if self._tokens is not None:
            parts.append(f"{self.used.tokens} of {self._tokens} tokens")
            caps.append("budget_tokens")
        need = f"{most.tokens} tokens" + (f" or {most.cost:.4f} USD" if self._usd is not None else "")
        return BudgetSpent(
            f"budget of teacher {self._name} is spent: got {' and '.join(parts)} used, because the next request may take "
            f"up to {need}; raise {' or '.join(caps)} and run the same command again: answers received so far are kept "
            "and not paid for again"
        )


def most_tokens(payload: bytes) -> int:
    """An upper bound of the tokens of a request: no tokenizer of a language model makes more tokens than UTF-8 bytes.

    The settings in the JSON, its braces and names (over 64 bytes) stand for what a chat template adds.
    """
    return len(payload)


def likely_tokens(sent: bytes) -> int:
    """A careful guess at the tokens of what is sent or comes back: a third of its bytes."""
    return len(sent) // 3 + 1
