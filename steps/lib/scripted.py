"""The scripted teacher: a rule program that answers a task's prompts, with flaws at known rates.

It needs no network and no model. Since it knows which flaw it put into which answer, it is the ground truth against
which rule checks, pair building and judges are tested. Everything it says is in a file of values
(`data/seed/task/teacher.yaml`). Draws come from sha256 of (seed, prompt, sample, purpose), so that an answer depends on
nothing else: not on the order of calls, the process or the machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steps.lib.errors import TeacherError
from steps.lib.rules import Language, Pattern, language_of, read_values

Flaw = Literal["preamble", "no_ask", "refund_promise", "format"]
FLAWS: tuple[Flaw, ...] = get_args(Flaw)
Style = Literal["text_before", "code_fence", "trailing_comma", "missing_field", "single_quotes"]
T = TypeVar("T")


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _OrderNumber(_Values):
    pattern: Pattern
    """What an order number looks like in a prompt."""


class _Replies(_Values):
    with_order: list[str]
    """Replies to a prompt that gives an order number; `{order_number}` stands for it."""
    without_order: list[str]
    """Replies to a prompt that gives none; a sentence that asks for it follows where the intent needs it."""


class _ByLanguage(_Values):
    zh: _Replies
    en: _Replies

    def of(self, language: Language) -> _Replies:
        return self.zh if language == "zh" else self.en


class _Patterns(_Values):
    zh: Pattern
    en: Pattern


class _Texts(_Values):
    zh: list[str] = Field(min_length=1)
    en: list[str] = Field(min_length=1)

    def of(self, language: Language) -> list[str]:
        return self.zh if language == "zh" else self.en


class _Intent(_Values):
    name: str = Field(min_length=1)
    """The value of the answer's field `intent`."""
    needs_order_number: bool
    """Whether the reply asks for a missing order number."""
    patterns: _Patterns
    """How a prompt of this intent is known."""
    replies: _ByLanguage
    """Replies; for refunds, those outside the policy."""
    within_policy_replies: _ByLanguage | None = None
    """Replies when `within_policy` is found in the prompt."""

    @model_validator(mode="after")
    def _enough(self) -> _Intent:
        for where, pool in (("replies", self.replies), ("within_policy_replies", self.within_policy_replies)):
            for language in ("zh", "en") if pool is not None else ():
                cell = getattr(pool, language)
                if not cell.without_order or (self.needs_order_number and not cell.with_order):
                    raise ValueError(f"{where}.{language} has an empty list; write at least one reply")
        return self


class _TextFlaw(_Texts):
    rate: float = Field(ge=0, le=1)
    """Share (0 to 1) of the answers, among those to which the flaw applies."""


class _PromiseFlaw(_ByLanguage):
    rate: float = Field(ge=0, le=1)
    """Share (0 to 1) of the answers to prompts of `intent` outside the policy."""
    intent: str
    """The intent in which a promise would be wrong."""


class _FormatFlaw(_Values):
    rate: float = Field(ge=0, le=1)
    """Share (0 to 1) of all answers."""
    styles: list[Style] = Field(min_length=1)
    """The ways of breaking the format."""
    zh: str
    """What `text_before` puts before the JSON."""
    en: str
    """The same in English."""


class _Flaws(_Values):
    preamble: _TextFlaw
    """The reply begins with filler."""
    no_ask: _TextFlaw
    """The reply does not ask for the missing order number, but says one of these."""
    refund_promise: _PromiseFlaw
    """The reply promises a refund outside the policy."""
    format: _FormatFlaw
    """The answer is not strict JSON of the task's shape."""


class _TeacherFile(_Values):
    name: str = Field(min_length=1)
    """The teacher's name in reports and rows."""
    order_number: _OrderNumber
    within_policy: Pattern
    """Found in prompts whose purchase lies within the return policy."""
    intents: list[_Intent] = Field(min_length=1)
    """Tried in this order."""
    ask: _Texts
    """Sentences that ask for the order number."""
    flaws: _Flaws

    @model_validator(mode="after")
    def _known(self) -> _TeacherFile:
        names = [intent.name for intent in self.intents]
        if len(set(names)) != len(names):
            raise ValueError(f"intents {names} hold a name twice; give every intent its own name")
        if self.flaws.refund_promise.intent not in names:
            raise ValueError(f"flaws.refund_promise.intent {self.flaws.refund_promise.intent!r} is none of {names}")
        return self


class ScriptedTeacher:
    """A teacher whose answers follow a file of values.

    Args:
        path: the teacher's YAML file.

    Raises:
        ConfigError: naming the file and every wrong field.
    """

    def __init__(self, path: Path) -> None:
        self._file = read_values(_TeacherFile, path)
        self._path = path
        self.name: str = self._file.name

    def answer(self, prompt: str, *, seed: int, sample: int) -> str:
        """Answer one prompt, with every applicable flaw drawn on its own at its rate.

        Args:
            prompt: the customer's message alone.
            seed: run seed.
            sample: index of the answer among several to one prompt, from 0.

        Raises:
            TeacherError: no intent of the file fits the prompt.
        """
        return self.compose(prompt, self.flaws(prompt, seed=seed, sample=sample), seed=seed, sample=sample)

    def intent(self, prompt: str) -> str:
        """Return the name of the first intent that fits."""
        return self._intent(prompt).name

    def order_number(self, prompt: str) -> str | None:
        """Return the first order number in the prompt, or None."""
        found = re.search(self._file.order_number.pattern, prompt)
        return found.group() if found else None

    def applicable(self, prompt: str) -> tuple[Flaw, ...]:
        """Return the flaws that an answer to this prompt can have."""
        intent = self._intent(prompt)
        no_ask = intent.needs_order_number and self.order_number(prompt) is None
        promise = intent.name == self._file.flaws.refund_promise.intent and not self._within(prompt)
        usable = {"preamble": True, "no_ask": no_ask, "refund_promise": promise, "format": True}
        return tuple(flaw for flaw in FLAWS if usable[flaw])

    def flaws(self, prompt: str, *, seed: int, sample: int) -> frozenset[Flaw]:
        """Return the flaws of `answer` with the same arguments."""
        rates = {flaw: getattr(self._file.flaws, flaw).rate for flaw in FLAWS}
        draw = _draws(seed, prompt, sample)
        return frozenset(flaw for flaw in self.applicable(prompt) if draw(f"flaw:{flaw}") < rates[flaw])

    def compose(self, prompt: str, flaws: Collection[Flaw], *, seed: int, sample: int) -> str:
        """Write an answer with exactly these flaws; each must be applicable.

        Flaws change only their own part: the same seed and sample without a flaw give the other parts unchanged.
        """
        if unfit := sorted(set(flaws) - set(self.applicable(prompt))):
            raise TeacherError(
                f"flaws {unfit} do not apply to prompt {prompt!r}: got intent {self.intent(prompt)!r} and order number "
                f"{self.order_number(prompt)!r}; ask for some of {list(self.applicable(prompt))}"
            )
        intent, order, language = self._intent(prompt), self.order_number(prompt), language_of(prompt)
        draw, texts = _draws(seed, prompt, sample), self._file.flaws
        pool = intent.within_policy_replies if self._within(prompt) else None
        if "refund_promise" in flaws:
            pool = texts.refund_promise
        cell = (pool or intent.replies).of(language)
        given = order is not None and intent.needs_order_number
        reply = _pick(cell.with_order if given else cell.without_order, draw("reply"))
        reply = reply.replace("{order_number}", order or "")
        if intent.needs_order_number and order is None:
            tail = _pick((texts.no_ask if "no_ask" in flaws else self._file.ask).of(language), draw("ask"))
            reply += tail if language == "zh" else " " + tail
        if "preamble" in flaws:
            reply = _pick(texts.preamble.of(language), draw("preamble")) + reply
        fields = {"intent": intent.name, "order_number": order, "reply": reply}
        text = json.dumps(fields, ensure_ascii=False)
        if "format" not in flaws:
            return text
        style = _pick(texts.format.styles, draw("style"))
        return _break_format(style, text, fields, before=texts.format.zh if language == "zh" else texts.format.en)

    def _within(self, prompt: str) -> bool:
        return re.search(self._file.within_policy, prompt) is not None

    def _intent(self, prompt: str) -> _Intent:
        language = language_of(prompt)
        for intent in self._file.intents:
            if re.search(getattr(intent.patterns, language), prompt):
                return intent
        names = [intent.name for intent in self._file.intents]
        raise TeacherError(
            f"prompt {prompt!r} cannot be answered by {self.name}: got a message that fits none of {names}, because no "
            f"{language} pattern is found in it; add a pattern in {self._path} or drop the prompt"
        )


def _draws(seed: int, prompt: str, sample: int) -> Callable[[str], float]:
    def draw(purpose: str) -> float:
        key = json.dumps([seed, prompt, sample, purpose]).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64

    return draw


def _pick(options: Sequence[T], draw: float) -> T:
    return options[min(int(draw * len(options)), len(options) - 1)]


def _break_format(style: Style, text: str, fields: dict[str, str | None], *, before: str) -> str:
    if style == "text_before":
        return before + text
    if style == "code_fence":
        return f"```json\n{text}\n```"
    if style == "trailing_comma":
        return text[:-1] + ",}"
    if style == "missing_field":
        return json.dumps({key: fields[key] for key in ("intent", "reply")}, ensure_ascii=False)
    return str(fields)
