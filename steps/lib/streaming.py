"""The text of an answer while it is generated, piece by piece; no character is cut, and the pieces together are the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

CUT = "\ufffd"
"""What a decoder gives for the first bytes of a character whose last ones are not there yet."""


class Pieces:
    """Stands where transformers' ``generate`` takes a streamer; of one answer.

    What may still change is held back until it cannot: the first bytes of a character, and blanks, which some tokenizers take out
    before a mark. Where a tokenizer changes what was shown all the same, the answer is shown once more, on a line of its own.

    Args:
        tokenizer: of the model.
        ends: tokens that end an answer; they and what comes behind them are not shown.
        show: gets each new piece of text; "" where a token gave none, so that it can break off by raising.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], show: Callable[[str], None]) -> None:
        self._tokenizer, self._ends, self._show = tokenizer, frozenset(ends), show
        self._tokens: list[int] = []
        self._shown = ""
        self._asked = self._over = False

    def put(self, value: Any) -> None:
        """Take tokens: first those of the prompt, then each that is generated."""
        if not self._asked:
            self._asked = True
            return
        [token] = value.reshape(-1).tolist()  # the answer of one prompt
        self._over = self._over or token in self._ends
        if not self._over:
            self._tokens.append(token)
        text = self._text().rstrip(CUT).rstrip()
        self._give(text if text.startswith(self._shown) else self._shown)

    def end(self) -> None:
        """Show what was held back."""
        text = self._text()
        self._give(text if text.startswith(self._shown) else f"{self._shown}\n{text}")

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _give(self, text: str) -> None:
        new = text.removeprefix(self._shown)
        self._shown = text
        self._show(new)
