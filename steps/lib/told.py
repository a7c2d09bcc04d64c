"""What a judge is told: a system text, and a template in which everything it is to judge stands as fenced, tame material."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import jinja2
from pydantic import PrivateAttr, model_validator

from steps.lib.config import Section
from steps.lib.fences import fence_of, tame
from steps.lib.prompt_parts import ByLanguage, compile_template
from steps.lib.rows import messages
from steps.lib.rules import Language, language_of, read_values


class Told(Section):
    """A judge's prompt file."""

    system: ByLanguage
    """System text."""
    user: ByLanguage
    """Template; the variable fence is a mark that no material can know."""

    variables: ClassVar[frozenset[str]] = frozenset()
    """What the template may name."""
    field: ClassVar[str] = "verdict"
    """Field of the asked verdict: material that has it loses it."""
    _templates: dict[Language, jinja2.Template] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _compile(self) -> Self:
        self._templates = {lang: compile_template(self.user.of(lang), self.variables) for lang in ("zh", "en")}
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a judge's prompt file.

        Raises:
            ConfigError: naming the file and every wrong field.
        """
        return read_values(cls, path)

    def digest(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def turns(self, prompt: str, marked: Sequence[str], **material: str) -> list[dict[str, str]]:
        """The turns of one question, in the language of the prompt.

        Args:
            prompt: what the judged answer was given to.
            marked: the texts that the fence is made from, beside the prompt.
            material: the template's variables.
        """
        lang = language_of(prompt)
        shown = {name: tame(text, self.field) for name, text in {"prompt": prompt, **material}.items()}
        text = self._templates[lang].render(**shown, fence=fence_of(prompt, *marked))
        return messages(("system", self.system.of(lang)), ("user", text))
