"""Rows as the student reads them: how many tokens they have, and its own special tokens, which may stand in no text.

Characters say little about tokens: four of English are one token, a Chinese one is up to two. A conversation is counted with
the student's chat template around it, as sft will train on it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from steps.lib.config import Added, Section
from steps.lib.errors import ModelError
from steps.lib.quality import Finding
from steps.lib.rows import Chat, Message, Pair, Prompt, Row, Text, Thumb
from steps.lib.tokens import tokenizer_folder, tokenizer_identity


class Student(Section):
    """Lengths in tokens of the model that is to be trained; without a tokenizer none is counted."""

    tokenizer: Annotated[str | None, Added] = None
    """Folder or hub id of the student's tokenizer; its special tokens are looked for in every text, too."""
    text_min_tokens: Annotated[int | None, Added] = Field(default=None, ge=1)
    """Tokens a document has at least."""
    text_max_tokens: Annotated[int | None, Added] = Field(default=None, ge=1)
    """Tokens a document has at most."""
    chat_min_tokens: Annotated[int | None, Added] = Field(default=None, ge=1)
    """Tokens a conversation has at least, chat template included."""
    chat_max_tokens: Annotated[int | None, Added] = Field(default=None, ge=1)
    """Tokens a conversation has at most, chat template included; of a pair both conversations."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        limits = ("text_min_tokens", "text_max_tokens", "chat_min_tokens", "chat_max_tokens")
        given = [name for name in limits if getattr(self, name) is not None]
        if given and not self.tokenizer:
            raise ValueError(
                f"{', '.join(given)} cannot be kept without a tokenizer; give `tokenizer`, or take the limits out"
            )
        for kind in ("text", "chat"):
            least, most = getattr(self, f"{kind}_min_tokens"), getattr(self, f"{kind}_max_tokens")
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"{kind}_min_tokens {least} is more than {kind}_max_tokens {most}; no row can keep both"
                )
        return self


class Counts:
    """Counts with one tokenizer.

    Args:
        path_or_id: folder or hub id.

    Raises:
        ModelError: there is no such tokenizer.
    """

    def __init__(self, path_or_id: str) -> None:
        from transformers import AutoTokenizer

        folder = tokenizer_folder(path_or_id)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a file that is none raises anything, also from Rust
            raise ModelError(
                f"clean.student.tokenizer is wrong: got {path_or_id}, because {type(error).__name__} {error!s:.200}; give the "
                "folder of the model that is to be trained"
            ) from None
        self._fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._fast is not None:  # tokenizer.json may say to cut or to fill up
            self._fast.no_truncation()
            self._fast.no_padding()
        added = self._tokenizer.added_tokens_decoder.values()
        known = {*self._tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        self.special = tuple(sorted(token for token in known if len(token.strip()) > 1))
        """Special tokens, which the tokenizer reads as such wherever they stand."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with none added; all texts in one call of the tokenizer."""
        if self._fast is not None:
            return [len(one.ids) for one in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [len(ids) for ids in encoded]

    def conversations(self, chats: Sequence[Sequence[Message]]) -> list[int | str]:
        """Tokens of each conversation with its chat template; or why the template does not take it.

        Without a chat template, the tokens of the contents are counted.
        """
        from jinja2.exceptions import TemplateError

        texts, refused = [], dict[int, str]()
        for number, turns in enumerate(chats):
            if self._tokenizer.chat_template is None:
                texts.append("\n".join(turn.content for turn in turns))
                continue
            plain = [{"role": turn.role, "content": turn.content} for turn in turns]
            try:
                texts.append(self._tokenizer.apply_chat_template(plain, tokenize=False))
            except TemplateError as error:
                texts.append("")
                refused[number] = f"{error!s:.120}"
        return [refused.get(number, count) for number, count in enumerate(self.tokens(texts))]


@functools.lru_cache(maxsize=2)
def counts(path_or_id: str) -> Counts:
    """The tokenizer of this process, loaded when it is first asked."""
    return Counts(path_or_id)


def lengths(rows: Sequence[Row], student: Student) -> list[int | str]:
    """Tokens of each row: of a document, of a prompt, of a conversation, of a pair's longer one; or why there are none.

    A pure function of each row: the same for every size of a batch.
    """
    if not student.tokenizer:
        return [0] * len(rows)
    counter = counts(student.tokenizer)
    found: list[int | str] = [0] * len(rows)
    plain = [(number, row.text if isinstance(row, Text) else row.prompt) for number, row in enumerate(rows)
             if isinstance(row, Text | Prompt)]  # fmt: skip
    for (number, _), count in zip(plain, counter.tokens([text for _, text in plain]), strict=True):
        found[number] = count
    talks = [(number, turns) for number, row in enumerate(rows) for turns in _talks(row)]
    for (number, _), told in zip(talks, counter.conversations([turns for _, turns in talks]), strict=True):
        before = found[number]
        found[number] = before if isinstance(before, str) else told if isinstance(told, str) else max(before, told)
    return found


def judge_lengths(rows: Sequence[Row], student: Student, counted: Sequence[int | str]) -> list[Finding | None]:
    """For each row, too_few_tokens, too_many_tokens or chat_template; None: it fits.

    Args:
        counted: their ``lengths``.
    """
    return [_fits(row, student, count) if student.tokenizer else None for row, count in zip(rows, counted, strict=True)]


def student_identity(student: Student) -> str | None:
    """What the tokenizer is, for keys: digest of its files; None: there is none.

    Raises:
        ModelError: there is no such tokenizer.
    """
    return tokenizer_identity(student.tokenizer) if student.tokenizer else None


def _talks(row: Row) -> list[Sequence[Message]]:
    if isinstance(row, Chat):
        return [row.messages]
    if isinstance(row, Pair):
        return [[*row.prompt, *row.chosen], [*row.prompt, *row.rejected]]
    return [[*row.prompt, *row.completion]] if isinstance(row, Thumb) else []


def _fits(row: Row, student: Student, count: int | str) -> Finding | None:
    if isinstance(count, str):
        return "chat_template", f"the student's chat template does not take it: {count}"
    if isinstance(row, Prompt):
        return None
    plain = isinstance(row, Text)
    least = student.text_min_tokens if plain else student.chat_min_tokens
    most = student.text_max_tokens if plain else student.chat_max_tokens
    if least is not None and count < least:
        return "too_few_tokens", f"{count} tokens, at least {least}"
    if most is not None and count > most:
        return "too_many_tokens", f"{count} tokens, at most {most}"
    return None
