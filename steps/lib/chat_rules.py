"""What a conversation must keep to: the row filters of chats, pairs and thumbs, many rows at a time.

Order of turns, roles and empty turns are not judged here: ``layouts`` refuses them when a row is read (no_assistant_turn,
last_turn, role_order, unknown_role, empty), before it is a row at all.

Cheap looks go first (a sign, a name, an array of hashes), so that the patterns run on few texts. What is found in a row does not
hang on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from steps.lib.content import Content, judge_answer, judge_toxicity
from steps.lib.document_rules import repetitions
from steps.lib.language import detect_many
from steps.lib.phrases import identity, refusal, special_token, template_heading, think_tag
from steps.lib.quality import Filters, Finding
from steps.lib.repeats import all_without_frames
from steps.lib.rows import Chat, Message, Pair, Row, Thumb
from steps.lib.toxicity import Toxicity

BAD_ANSWERS = {
    "echo": False, "think_tags": False, "identity": False, "refusal": False, "prompt_leak": False, "repetition": None,
    "languages": (),
}  # fmt: skip
"""Filters that an answer with its thumb down need not pass."""


def judge_rows(
    rows: Sequence[Row],
    filters: Filters,
    content: Content | None = None,
    toxicity: Toxicity | None = None,
    special: Sequence[str] = (),
) -> list[Finding | None]:
    """For each row with turns, the first rule it fails. A rejected answer may be bad, it is there for that; but it must differ.

    So may an answer with its thumb down; but none may hold a special token or be too long. A refusal that was liked is no fault.

    Args:
        content: content rules; None asks none of them.
        toxicity: None asks nothing of it.
        special: special tokens of the student.
    """
    liked, disliked = filters.model_copy(update={"refusal": False}), filters.model_copy(update=BAD_ANSWERS)
    found: list[Finding | None] = [None] * len(rows)
    jobs: list[tuple[Filters, Content | None, list[tuple[int, Sequence[Message]]]]] = [
        (filters, content, []), (liked, content, []), (disliked, None, []),
    ]  # fmt: skip
    for number, row in enumerate(rows):
        if isinstance(row, Chat):
            jobs[0][2].append((number, row.messages))
        elif isinstance(row, Pair):
            if [turn.content for turn in row.chosen] == [turn.content for turn in row.rejected]:
                found[number] = "equal_pair", "chosen and rejected are the same"
            else:
                jobs[1][2].append((number, [*row.prompt, *row.chosen]))
        elif isinstance(row, Thumb) and row.label:
            jobs[1][2].append((number, [*row.prompt, *row.completion]))
        elif isinstance(row, Thumb):
            jobs[0][2].append((number, row.prompt))
            jobs[2][2].append((number, [*row.prompt, *row.completion]))
    for own, rules, talks in jobs:
        findings = judge_chats([turns for _, turns in talks], own, rules, toxicity, special)
        for (number, _), finding in zip(talks, findings, strict=True):
            found[number] = found[number] or finding
    return found


def judge_chats(
    chats: Sequence[Sequence[Message]],
    filters: Filters,
    content: Content | None = None,
    toxicity: Toxicity | None = None,
    special: Sequence[str] = (),
) -> list[Finding | None]:
    """For each conversation, the first rule it fails. Short answers are good answers: there is no least length.

    Args:
        content: content rules; None asks none of them.
        toxicity: None asks nothing of it.
        special: special tokens of the student.
    """
    found = [_plain(turns, filters) for turns in chats]
    if filters.languages:
        left = [number for number, finding in enumerate(found) if finding is None]
        spoken = ["\n".join(turn.content for turn in chats[number] if turn.role != "system") for number in left]
        for number, text, lang in zip(left, spoken, detect_many(spoken), strict=True):
            if lang not in filters.languages and sum(map(str.isalpha, text)) >= 20:
                found[number] = "wrong_language", f"{lang}, kept are {', '.join(filters.languages)}"
    found = [finding or _marked(turns, filters, special) for turns, finding in zip(chats, found, strict=True)]
    if filters.repetition is not None:
        answers = [
            (number, turn.content) for number, turns in enumerate(chats) if not found[number]
            for turn in turns if turn.role == "assistant"
        ]  # fmt: skip
        texts = all_without_frames([text for _, text in answers])
        for (number, _), share in zip(answers, repetitions(texts, filters.repetition), strict=True):
            if share:
                found[number] = found[number] or ("repetition", f"{share:.4f}, at most {filters.repetition}")
    if content is not None:
        found = [finding or _content(turns, content) for turns, finding in zip(chats, found, strict=True)]
    if toxicity is None:
        return found
    return judge_toxicity(["\n".join(turn.content for turn in turns) for turns in chats], found, toxicity)


def prompt_leak(text: str, system: str = "") -> str | None:
    """The answer repeats the system turn (20 characters or more of it) or a template's headings. See DATA.md 2.5."""
    return system if len(system) >= 20 and system in text else template_heading(text)


def _plain(turns: Sequence[Message], filters: Filters) -> Finding | None:
    """empty, too_long or echo."""
    if not all(turn.content for turn in turns if turn.role != "system"):
        return "empty", "a turn has no text"
    if filters.chat_max_chars is not None:
        length = sum(len(turn.content) for turn in turns)
        if length > filters.chat_max_chars:
            return "too_long", f"{length} characters, at most {filters.chat_max_chars}"
    if filters.echo and any(one.role == "user" and _same(one.content, other.content) for one, other in pairwise(turns)):
        return "echo", "the answer is the question"
    return None


def _marked(turns: Sequence[Message], filters: Filters, special: Sequence[str]) -> Finding | None:
    """The first mark of a machine's text, in the order of ``Filters``."""
    if filters.special_tokens:
        for turn in turns:
            if seen := special_token(turn.content, special):
                return "special_token", seen[:80]
    system = turns[0].content if turns[0].role == "system" else ""
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    checks: list[tuple[bool, str, Callable[[str], str | None], Sequence[str]]] = [
        (filters.think_tags, "think_tag", think_tag, answers),
        (filters.identity, "identity", identity, answers),
        (filters.refusal, "refusal", refusal, answers[-1:]),
        (filters.prompt_leak, "prompt_leak", lambda answer: prompt_leak(answer, system), answers),
    ]
    for on, reason, check, texts in checks:
        for text in texts if on else ():
            if seen := check(text):
                return reason, seen[:80]
    return None


def _same(one: str, other: str) -> bool:
    """Whether two texts are equal without case; most differ in their first letter."""
    return one[:1].casefold()[:1] == other[:1].casefold()[:1] and one.casefold() == other.casefold()


def _content(turns: Sequence[Message], content: Content) -> Finding | None:
    """The first content rule that an answer of the conversation fails."""
    system = turns[0].content if turns[0].role == "system" else ""
    asked: list[str] = []
    for turn in turns:
        if turn.role == "user":
            asked.append(turn.content)
        elif turn.role == "assistant" and (finding := judge_answer(asked, turn.content, system, content)):
            return finding
    return None
