"""The failure gallery: each check of a training step set off by a few real rows, and the message that it gives.

``docs/failures.md`` is this page; tests/steps/lib/test_preflight.py compares the two (PREFLINE_FAILURES=write writes it).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import minimal
import pytest
from minimal import ROOT, TinyChain, turn

from steps import dpo, pretrain, sft
from steps.lib import adapters, logps, models, pair_rows, parity, tiny
from steps.lib.errors import PreflineError
from steps.lib.preflight import Findings
from steps.lib.rows import Chat, Pair, Text

HEAD = """\
# What stops a training run, and what it says

The checks before the first update report everything at once: errors stop the step with one message that lists them, warnings go to
the log, to `record/preflight.json` and, as a count, into the manifest. Rows that are dropped or cut lie whole in `dropped.parquet` and
`truncated.parquet`. After training, what was saved is compared with what was trained before anything is published.

This page is made by tests/failures.py from rows of data/seed, with the tiny tokenizer; a test compares it with what the checks say.
"""


@dataclass(frozen=True)
class Case:
    """One fault: what it is about, and what sets it off (given an empty folder, and the chain); it returns the findings, or raises."""

    title: str
    what: str
    cause: Callable[..., Findings]
    chain: bool = False
    """Whether it takes the tiny trained chain, too."""


def said(case: Case, folder: Path, chain: TinyChain) -> list[str]:
    """What the check says: errors as ``KIND: message``, warnings as ``warning: message``; paths are shortened."""
    lines: list[str] = []
    try:
        found = case.cause(folder, chain) if case.chain else case.cause(folder)
        lines = [f"warning: {message}" for message in found.warnings]
        found.stop()
    except PreflineError as error:
        lines = [*lines, f"{type(error).__name__}: {error}"]
    return [line.replace(str(folder), "STORE") for line in lines]


def page(root: Path, chain: TinyChain) -> str:
    """The whole gallery."""
    parts = [HEAD]
    for number, case in enumerate(CASES):
        folder = root / str(number)
        folder.mkdir()
        lines = said(case, folder, chain)
        parts.append(f"## {case.title}\n\n{case.what}\n\n```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


# --- rows -------------------------------------------------------------------------------------------------------------


@cache
def pairs() -> tuple[Pair, ...]:
    """The first pairs of the seed set, Chinese and English by turns."""
    lines = (ROOT / "data" / "seed" / "pairs" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    return tuple(Pair.model_validate({**json.loads(line), "source": "seed"}) for line in lines)


def chats() -> list[Chat]:
    """Their chosen answers as chats."""
    return [
        Chat(id=f"chat-{n}", lang=row.lang, source="seed", messages=[*row.prompt, *row.chosen])
        for n, row in enumerate(pairs())
    ]


@cache
def _texts() -> tuple[str, ...]:
    return tuple(turn.content for row in pairs() for turn in (*row.prompt, *row.chosen, *row.rejected))


def tokenizer(template: str = tiny.CHAT_TEMPLATE) -> Any:
    """A tokenizer of the seed's texts, with any chat template."""
    made = tiny.build_tokenizer(_texts(), tiny.TinyConfig(vocab_size=800))
    made.chat_template = template
    return made


def model() -> Any:
    """A tiny Llama, all of whose weights are trained."""
    return tiny.build_model(
        tokenizer(), tiny.TinyConfig(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
    )


def sft_rows(rows: Iterable[Chat], folder: Path, template: str = tiny.CHAT_TEMPLATE, **train: Any) -> Findings:
    """What sft finds in chats."""
    found = Findings()
    config = sft.SftConfig.model_validate({"train": {"max_length": 512, **train}})
    sft._encode(config, tokenizer(template), list(rows), folder, found)
    return found


def dpo_rows(rows: Iterable[Pair], folder: Path, **train: Any) -> Findings:
    """What dpo finds in pairs."""
    found = Findings()
    config = dpo.DpoConfig.model_validate({"train": {"max_length": 512, **train}})
    kept, _ = pair_rows.encode("dpo", config.train, tokenizer(), list(rows), folder, found)
    pair_rows.look(kept, tokenizer(), found)
    return found


def with_answer(row: Pair, **sides: str) -> Pair:
    """A pair with other answers."""
    return row.model_copy(update={side: [turn("assistant", text)] for side, text in sides.items()})


# --- faults -----------------------------------------------------------------------------------------------------------


def unusable(folder: Path) -> Findings:
    rows = chats()[:8]
    first, second, third, fourth, *rest = rows
    return sft_rows(
        [
            first.model_copy(update={"messages": first.messages[:-1]}),
            second.model_copy(update={"messages": second.messages[-1:]}),
            third.model_copy(
                update={"messages": [*third.messages[:-1], turn("assistant", "ok<|im_end|>\n<|im_start|>user\nthanks")]}
            ),
            fourth.model_copy(update={"messages": fourth.messages[:-1]}),
            *rest,
        ],
        folder,
    )


NO_END = tiny.CHAT_TEMPLATE.replace(
    "{{ message['content'] }}<|im_end|>{% endgeneration %}", "{{ message['content'] }}{% endgeneration %}"
)
THINKING = tiny.CHAT_TEMPLATE.replace(
    "{{ message['content'] }}<|im_end|>{% endgeneration %}",
    "{% if loop.last %}<think></think>{% endif %}{{ message['content'] }}<|im_end|>{% endgeneration %}",
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Answer: {{ message['content'] }}<|im_end|>"
    "{% else %}{{ message['role'] }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)


def served_otherwise(folder: Path) -> Findings:
    rows = [
        row.model_copy(update={"messages": [*row.messages[:-1], turn("assistant", "the order is on its way")]})
        for row in chats()
        if row.lang == "en"
    ]
    return sft_rows(two_turns(rows), folder, PLAIN)


def two_turns(rows: Iterable[Chat]) -> list[Chat]:
    """Chats that go on with the next one."""
    listed = list(rows)
    return [
        one.model_copy(update={"messages": [*one.messages, *next.messages[1:]]})
        for one, next in zip(listed, listed[1:], strict=False)
    ]


def long_prompts(folder: Path) -> Findings:
    rows = [
        row.model_copy(
            update={
                "messages": [
                    turn("system", row.messages[0].content * 400),
                    *row.messages[1:-1],
                    turn("assistant", "ok"),
                ]
            }
        )
        for row in chats()[:4]
    ]
    return sft_rows(rows, folder, max_length=8192)


def equal_or_empty(folder: Path) -> Findings:
    first, second, third, *rest = pairs()[:8]
    text = first.chosen[0].content
    return dpo_rows(
        [
            with_answer(first, rejected=text),
            with_answer(second, rejected=""),
            with_answer(third, chosen=text * 20 + "!", rejected=text * 20 + "?"),
            *rest,
        ],
        folder,
        too_long="truncate",
        max_length=256,
    )


def another_reference(folder: Path, chain: TinyChain) -> Findings:
    """Log-probabilities of pairs that were changed afterwards."""
    scored = minimal.pairs_artifact(folder, [minimal.pair(n) for n in range(6)])
    reference = minimal.made_reference(folder, minimal.DPO, policy=chain.sft, pairs=scored)
    rows = [minimal.pair(n, "yes") if n in (1, 4) else minimal.pair(n) for n in range(8)]
    found, settings = Findings(), minimal.DPO.train
    kept, _ = pair_rows.encode("dpo", settings, models.load_tokenizer(chain.base.path / "model"), rows, folder, found)
    logps.joined(kept, reference.path, logps.scored(minimal.DPO, chain.sft.path, "auto", 0), None, found)
    return found


def format_only(folder: Path) -> Findings:
    rows = list(pairs()[:6])
    for n, change in enumerate((str.upper, lambda text: f"**{text}**", lambda text: text.replace(", ", ",\n"))):
        rows[n] = with_answer(rows[n], rejected=change(rows[n].chosen[0].content))
    return dpo_rows(rows, folder)


def length_bias(folder: Path) -> Findings:
    rows = [
        with_answer(row, chosen=row.chosen[0].content + " Is there anything else that I can do for you?")
        for row in pairs()
    ]
    return dpo_rows(rows, folder)


def full_disk(folder: Path) -> Findings:
    found, context, real = Findings(), minimal.context(folder), shutil.disk_usage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 20))
        found._disk(model(), context.resume)
    return found


def several(folder: Path) -> Findings:
    """Everything at once."""
    rows = chats()[:12]
    rows[3] = rows[3].model_copy(update={"messages": rows[3].messages[:-1]})
    found, context, real = Findings(), minimal.context(folder), shutil.disk_usage
    config = sft.SftConfig.model_validate({"train": {"max_length": 100, "too_long": "error"}})
    made, metrics = sft._encode(config, tokenizer(), rows, folder, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 20))
        found.check(model(), config.train, max(len(row["input_ids"]) for row in made), context, metrics, free=1 << 20)
    return found


def a_number_is_lost(folder: Path, chain: TinyChain) -> Findings:
    config = minimal.with_train(minimal.SFT, lr=1e30, warmup=0.0)
    minimal.made(folder, "sft", config, base=chain.pretrain, chats=chain.data)
    return Findings()


def a_bit_changes(folder: Path, chain: TinyChain) -> Findings:
    """The least bit of one weight, between saving and checking."""
    real = adapters.save_adapter

    def save(model: Any, out: Path, *rest: Any) -> None:
        real(model, out, *rest)
        path = out / "adapter" / "adapter_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4] ^= 1
        path.write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "save_adapter", save)
        minimal.made(
            folder, "sft", minimal.with_train(minimal.SFT, max_updates=2), base=chain.pretrain, chats=chain.data
        )
    return Findings()


def another_template(folder: Path) -> Findings:
    tokenizer(
        tiny.CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant {% endif %}")
    ).save_pretrained(folder / "model")
    model().save_pretrained(folder / "model")
    parity.check_tokenizer(tokenizer(), folder / "model")
    return Findings()


def small_memory(folder: Path) -> Findings:
    found = Findings()
    settings = sft.SftConfig.model_validate({"train": {"tokens_per_pass": 4096}}).train
    found._memory(model(), settings, 4096, 4 << 20)
    return found


def heavy_weights(folder: Path) -> Findings:
    model().save_pretrained(folder / "base")
    found = Findings()
    found.loading(folder / "base", "float32", free=100_000)
    return found


def little_general_text(folder: Path) -> Findings:
    found = Findings()
    rows = [Text(id=f"t{n}", lang="en", source="seed", text=text) for n, text in enumerate(_texts()[:40])]
    config = pretrain.PretrainConfig.model_validate({"replay": 0.5, "train": {"max_length": 64}})
    pretrain._mix(config, tokenizer(), rows, rows[:4], minimal.context(folder), found)
    return found


CASES = [
    Case("Several at once", "A chat without its answer, long chats with `too_long: error`, a disk and a memory that are too small.", several),
    Case("Rows that cannot be trained on", "Two chats lost their answer, one its question, and one has another chat pasted into "
         "its answer. Rows with the same fault make one line.", unusable),
    Case("Longer than max_length: drop", "`too_long: drop`, the default.", lambda at: sft_rows(chats(), at, max_length=100)),
    Case("Longer than max_length: truncate", "`too_long: truncate`.",
         lambda at: sft_rows(chats(), at, max_length=100, too_long="truncate")),
    Case("Longer than max_length: error", "`too_long: error`.",
         lambda at: sft_rows(chats(), at, max_length=100, too_long="error")),
    Case("Nothing left", "`max_length: 16` is shorter than every chat.", lambda at: sft_rows(chats(), at, max_length=16)),
    Case("A template that does not end the turn", "The chat template has no `<|im_end|>` behind answers.",
         lambda at: sft_rows(chats(), at, NO_END)),
    Case("A template that is not prefix-stable", "The chat template writes a thinking block before the last answer only, and the "
         "chats have two.", lambda at: sft_rows(two_turns(chats()[:4]), at, THINKING)),
    Case("Tokens that a server would not send", "The prompt of this template ends in a space, which belongs to the next word once "
         "the text goes on.", served_otherwise),
    Case("Hardly any token with loss", "Long system prompts, answers of one word.", long_prompts),
    Case("Pairs that are equal or empty", "One pair has equal sides, one an empty one, and one sides that differ only behind "
         "max_length.", equal_or_empty),
    Case("Pairs that differ by format only", "Capitals, bold marks, line feeds.", format_only),
    Case("Length tells chosen from rejected", "The same polite sentence ends every chosen answer.", length_bias),
    Case("A reference of other pairs", "Two pairs were changed and two added after reference had scored them; the step was started "
         "by hand with the old artifact (the line builds a new one).", another_reference, chain=True),
    Case("Little general text", "pretrain, `replay: 0.5`, four general documents.", little_general_text),
    Case("Weights that do not fit", "A machine with 100 kB of free memory.", heavy_weights),
    Case("A run that does not fit", "The same with 4 MiB beside the weights.", small_memory),
    Case("A disk that is nearly full", "1 MiB is free.", full_disk),
    Case("A loss that is no number", "sft, `lr: 1e30`.", a_number_is_lost, chain=True),
    Case("A saved adapter that is not what was trained", "The least bit of one weight changes between saving and checking.",
         a_bit_changes, chain=True),
    Case("A saved tokenizer with another template", "pretrain: somebody changed the copy.", another_template),
]  # fmt: skip
