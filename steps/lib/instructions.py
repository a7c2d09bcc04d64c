"""Verifiable instructions: 25 rules that a program checks, in Chinese and English, strict and loose.

Source: Zhou et al. 2023, 2311.07911, table 1 (rules) and section 2.2 (strict and loose). An own implementation; deviations:
  1. A sentence and a word are told by our own patterns, which know Chinese, and not by nltk (``instruction_words``).
  2. A language is told by its script, and among Latin alphabets by the packaged fasttext model, not by langdetect, whose answer
     changes from call to call and calls short Chinese Korean.
  3. Keywords are looked for as they stand, not as patterns; JSON must have neither NaN nor a key twice.
  4. Rules of letter case do not apply in Chinese: None, neither kept nor broken.
  5. A fixed answer of ``constrained_response`` must be the only one of its kind; a postscript and a repeated request need words
     behind them; bullet points may be •; ``two_responses`` takes runs of exactly six asterisks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.lib.instruction_forms import FORM_RULES
from steps.lib.instruction_words import RELATIONS, WORD_RULES
from steps.lib.rows import Lang

RULES: dict[str, Any] = {**WORD_RULES, **FORM_RULES}
"""Name -> function of (text, lang) and the rule's own arguments."""
RULES_VERSION = "1"


@dataclass(frozen=True)
class Instruction:
    """One rule with its arguments."""

    name: str
    arguments: Mapping[str, Any]

    def problem(self) -> str | None:
        """Why it cannot be checked, or None."""
        rule = RULES.get(self.name)
        if rule is None:
            return f"rule {self.name!r} is unknown"
        wanted = set(inspect.signature(rule).parameters) - {"text", "lang"}
        if wanted != set(self.arguments):
            return f"rule {self.name} takes {sorted(wanted)}, got {sorted(self.arguments)}"
        odd = [value for name, value in self.arguments.items() if "relation" in name and value not in RELATIONS]
        return f"rule {self.name} has relation {odd[0]!r}, known are {', '.join(RELATIONS)}" if odd else None

    def strict(self, text: str, lang: Lang) -> bool | None:
        """Whether the text keeps it; an empty text keeps none; None where it does not apply."""
        kept = RULES[self.name](text, lang, **self.arguments)
        return kept if kept is None else bool(text.strip()) and bool(kept)

    def loose(self, text: str, lang: Lang) -> bool | None:
        """``strict`` of any of eight versions: without the first line, the last one, or both; each with and without asterisks."""
        lines = text.split("\n")
        bodies = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
        kept = [self.strict(one, lang) for body in bodies for one in (body, body.replace("*", ""))]
        return None if kept[0] is None else any(kept)


def instruction(name: str, arguments: Mapping[str, Any]) -> Instruction:
    """A rule as data sets name it; arguments that are null (some give every rule all names) are left out."""
    return Instruction(name, {key: value for key, value in arguments.items() if value is not None})
