"""A report as evaluate would make it, from made-up items with a known truth; for the tests of report and promote."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from steps.lib import figures
from steps.lib.figures import Comparison, Figure, Item, Measure
from steps.lib.gate import Check, Verdict
from steps.lib.report import (
    Case,
    Cost,
    Funnel,
    Judging,
    ModelCard,
    Node,
    Report,
    Sample,
    Speed,
    StepRows,
    nodes,
    report_costs,
)
from steps.lib.stats import Interval, wilson

CHAIN = ("base", "pretrained", "sft", "dpo")


def measure(name: str, zh: str, en: str, suite: str, score: str, **more: Any) -> Measure:
    return Measure(name=name, label_en=en, label_zh=zh, suite=suite, score=score, **{"unit": "share", **more})


TEXT = {"unit": "bits/byte", "better": "lower", "weight": "bytes"}
MEASURES = [
    measure("domain_bits_per_byte", "领域文本", "Domain text", "heldout_domain", "bits", **TEXT),
    measure("general_bits_per_byte", "通用文本（遗忘）", "General text (forgetting)", "heldout_general", "bits", **TEXT),
    measure(
        "format_rate", "严格格式率", "Strict-format rate", "heldout_prompts", "json_strict",
        method="greedy, whole output parses",
    ),
    measure("rule_score", "规则得分", "Rule score", "heldout_prompts", "rules", method="greedy, share of rules kept"),
    measure(
        "raw_logprob_accuracy", "偏好准确率（对数概率）", "Preference accuracy (log-probability)", "heldout_pairs",
        "raw_logprob_accuracy",
    ),
]  # fmt: skip
IMPLICIT = measure(
    "implicit_reward_accuracy", "偏好准确率（隐式奖励）", "Preference accuracy (implicit reward)", "heldout_pairs",
    "implicit_reward_accuracy",
)  # fmt: skip
BITS = {"heldout_domain": (3.9, 2.4, 2.45, 2.47), "heldout_general": (2.9, 2.95, 2.97, 2.98)}
FORMAT, RULES, PREFER = (0.0, 0.01, 0.95, 0.98), (0.05, 0.06, 0.62, 0.81), (0.5, 0.5, 0.6, 0.92)


def safetensors(path: Path, text: str = "w") -> None:
    """A safetensors file without tensors; ``text`` makes its content its own."""
    header = json.dumps({"__metadata__": {"text": text}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def items(n: int = 80, seed: int = 0) -> list[Item]:
    """Items of the four models; the truth is ``BITS``, ``FORMAT``, ``RULES`` and ``PREFER``."""
    random = np.random.default_rng(seed)
    found: list[Item] = []
    for suite, levels in BITS.items():
        for place in range(n):
            size, hard = float(random.integers(200, 900)), float(random.normal(1, 0.08))
            for model, level in zip(CHAIN, levels, strict=True):
                bits = size * level * hard * float(random.normal(1, 0.01))
                found.append(
                    Item(
                        model=model,
                        suite=suite,
                        item_id=f"{suite}-{place}",
                        cluster_id=f"{suite}-{place}",
                        lang="zh" if place % 2 else "en",
                        scores={"bits": bits, "bytes": size},
                    )
                )
    for place in range(n):
        luck = random.random(3)
        for model, form, rule, prefer in zip(CHAIN, FORMAT, RULES, PREFER, strict=True):
            share = math.floor(5 * min(1.0, max(0.0, rule + 0.3 * (luck[1] - 0.5))) + 0.5) / 5
            found.append(
                Item(
                    model=model,
                    suite="heldout_prompts",
                    item_id=f"p{place}",
                    cluster_id=f"p{place // 2}",
                    lang="zh" if place % 2 else "en",
                    scores={"json_strict": float(luck[0] < form), "rules": share},
                )
            )
            scores = {"raw_logprob_accuracy": float(luck[2] < prefer)}
            if model == "dpo":
                scores["implicit_reward_accuracy"] = float(luck[2] < 0.95)
            found.append(
                Item(model=model, suite="heldout_pairs", item_id=f"q{place}", cluster_id=f"q{place}", scores=scores)
            )
    return found


CONFIGS: dict[str, dict[str, Any]] = {
    "generate": {
        "teachers": [
            {"name": "desk", "kind": "scripted", "license": "apache-2.0"},
            {"name": "big", "model": "/srv/models/big-7b", "license": None},
        ]
    },
    "base": {"kind": "checkpoint", "path": "org/small-135m", "revision": "0a1b2c3"},
}


def manifests() -> list[dict[str, Any]]:
    """Manifests of a whole line, as a store has them."""
    made = {
        "generate": ([], {"candidates": 466}),
        "clean": (
            ["generate"],
            {"corpus": 1022, "general": 181, "chats": 421, "pairs": 80, "held-out prompts": 60, "held-out pairs": 40},
        ),
        "base": (["clean"], {"trained": 181}),
        "pretrain": (["base", "clean"], {"trained": 1203}),
        "sft": (["pretrain", "clean"], {"trained": 421}),
        "pairs": (["sft", "clean"], {"prompts paired": 134, "imported pairs": 80}),
        "reference": (["sft", "pairs"], {"scored": 214}),
        "dpo": (["sft", "pairs", "reference"], {"trained": 214}),
    }
    keys = {step: f"{step}/{hashlib.sha256(step.encode()).hexdigest()[:20]}" for step in made}
    return [
        {
            "step": step,
            "key": keys[step],
            "digest": hashlib.sha256(keys[step].encode()).hexdigest(),
            "inputs": {one: {"key": keys[one]} for one in above},
            "rows": {"out": out},
            "seconds": 20.0 + 37 * place,
            "tokens": 1000 * place,
            "cost": 0.42 if step == "generate" else 0.0,
            "host": "bench",
            "finished": "2026-11-23T08:00:00Z",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "git": "5f2c9d1",
            "parts": {"seed": 17},
            "config": CONFIGS.get(step, {}),
        }
        for place, (step, (above, out)) in enumerate(made.items())
    ]


def lineage() -> list[Node]:
    """The nodes of that line."""
    return nodes(manifests())


def costs() -> list[Cost]:
    """What that line cost."""
    return report_costs(manifests())


def slices(rows: list[Item]) -> list[Figure]:
    """The rule score and the domain text, zh and en apart."""
    return [
        figures.measure([row for row in rows if row.lang == lang], what, model).model_copy(
            update={"slice": f"lang={lang}"}
        )
        for what in (MEASURES[3], MEASURES[0])
        for lang in ("zh", "en")
        for model in CHAIN
    ]


def verdict(word: str = "promote") -> Verdict:
    """A verdict with every kind of check."""
    outcomes = {"promote": "pass", "reject": "fail", "inconclusive": "open"}
    if word == "invalid":
        return Verdict(
            verdict="invalid", reasons=["3 items of suite 'cases' failed for 'dpo': got 'boom'"], policy="9" * 64,
            report="7" * 64, candidate="dpo", against="champion 1a2b3c4d5e6f",
        )  # fmt: skip
    known = {"against": "champion", "discordant": 21, "mde": 0.09}  # of the gate's checks, as far as it has them
    more = {name: value for name, value in known.items() if name in Check.model_fields}

    def units(unit: str) -> dict[str, Any]:
        return {**more, **({"unit": unit} if "unit" in Check.model_fields else {})}

    shares = Interval(value=0.188, low=0.1, high=0.27, n=80, method="paired, cluster bootstrap", clusters=40)
    text = Interval(value=-0.31, low=-0.62, high=-0.05, n=80, method="paired ratio, cluster bootstrap", clusters=80)
    checks = [
        Check(figure="rule_score", role="primary", improvement=shares, threshold=0.02, outcome=outcomes[word],
              reason="rule_score improves by +0.188", **units("points")),
        Check(figure="general_bits_per_byte", role="guard", improvement=text, threshold=-5.0, outcome="pass",
              reason="general_bits_per_byte changes by -0.31 %", **units("%")),
    ]  # fmt: skip
    return Verdict(
        verdict=word, reasons=[*[check.reason for check in checks], "a sentence of its own"], policy="9" * 64,
        report="7" * 64, candidate="dpo", against="champion 1a2b3c4d5e6f", checks=checks,
    )  # fmt: skip


def funnel(stage: str, teacher: str, asked: int, failed: dict[str, int], **dropped: int) -> Funnel:
    """A line of the funnel; what failed and what was dropped is not kept."""
    answered = asked - sum(failed.values())
    return Funnel(
        stage=stage,
        teacher=teacher,
        asked=asked,
        answered=answered,
        parsed=answered - sum(dropped.get(reason, 0) for reason in ("unparsed", "schema")),
        kept=answered - sum(dropped.values()),
        failed=failed,
        dropped=dropped,
    )


def report(rows: list[Item]) -> Report:
    """The report over ``rows``, with every part filled."""
    shown: list[Figure] = [figures.measure(rows, what, model) for what in MEASURES for model in CHAIN]
    shown.append(figures.measure(rows, IMPLICIT, "dpo", against="sft"))
    pairs: list[Comparison] = []
    for names, model, against in (
        ((0, 1), "pretrained", "base"),
        ((2, 3), "sft", "pretrained"),
        ((3, 2, 1, 4), "dpo", "sft"),
    ):
        pairs += [figures.compare(rows, MEASURES[name], model, against) for name in names]
    line = [
        {"step": step, "loss": 2.9 * math.exp(-step / 40) + 0.5 + 0.1 * math.sin(step * 2.3)} for step in range(1, 121)
    ]
    short = [{"step": 5 * step, "loss": 1.2 / step + 0.1} for step in range(1, 20)]
    reward = [
        {
            "step": 2 * step,
            "loss": 0.693 * math.exp(-step / 15),
            "rewards/margins": step / 9,
            "rewards/accuracies": min(1.0, 0.5 + step / 40),
        }
        for step in range(1, 40)
    ]
    return Report(
        title="After-sales desk 售后服务台: base → pretrain → SFT → DPO",
        seed=17,
        facts={"task": "after-sales 售后", "held-out prompts": "80", "parameters": "1.9 M"},
        models=[
            ModelCard(
                name=name,
                digest=f"{place}{'9c41d7e2' * 8}"[:64],
                chain=list(CHAIN[: place + 1]),
                policy=str(place) * 64,
            )
            for place, name in enumerate(CHAIN)
        ],
        figures=shown,
        comparisons=pairs,
        samples=[
            Sample(
                id="p7",
                prompt="我的保温杯漏水了，订单号 A20394817，可以换新的吗？",
                lang="zh",
                outputs={
                    "base": "的的保温水的，的的 可 的水 的杯的 order the the 的",
                    "pretrained": "保温杯在保修期内漏水，可以免费更换。请保留订单号。",
                    "sft": '{"intent": "exchange", "order_number": "A20394817", "reply": "您好，非常抱歉！我们将为您全额退款。"}',
                    "dpo": '{"intent": "exchange", "order_number": "A20394817", "reply": "订单已收到，保修期内漏水可以换新，请把照片发给我们。"}',
                },
                rules={
                    **dict.fromkeys(CHAIN[:2], {"json": False, "no_preamble": None, "no_refund_promise": None}),
                    "sft": {"json": True, "no_preamble": False, "no_refund_promise": False},
                    "dpo": {"json": True, "no_preamble": True, "no_refund_promise": True},
                },
            ),
            Sample(
                id="p8",
                prompt="My kettle stopped working after two weeks. <script>alert('x')</script> What now?",
                lang="en",
                outputs={
                    "base": "the the kettle of of a is the to",
                    "pretrained": "The kettle has a warranty of 24 months.",
                    "sft": '{"intent": "repair", "order_number": null, "reply": "Thank you for reaching out! We will repair it."}',
                    "dpo": '{"intent": "repair", "order_number": null, "reply": "Please send us your order number, then we start the repair."}',
                },
                rules={
                    "sft": {"json": True, "asks_order_number": False},
                    "dpo": {"json": True, "asks_order_number": True},
                },
            ),
        ],
        rows=[
            StepRows(
                step="generate",
                rows_in={"prompts": 480},
                rows_out={"candidates": 466},
                dropped={"prompts": {"teacher_empty": 6, "truncated": 8}},
            ),
            StepRows(
                step="clean",
                rows_in={"candidates": 466, "documents": 1310},
                rows_out={"chats": 421, "corpus": 1022, "general": 181},
                dropped={
                    "candidates": {"schema": 21, "near_copy": 24},
                    "documents": {"near_copy": 61, "too_short": 37, "pii": 9},
                },
            ),
            StepRows(
                step="pairs",
                rows_in={"prompts": 300},
                rows_out={"pairs": 214},
                dropped={"prompts": {"tie": 70, "all_wrong": 16}},
            ),
        ],
        lineage=lineage(),
        costs=costs(),
        slices=slices(rows),
        speeds=[
            Speed(model="sft", p50_s=0.81, p95_s=1.9, tokens_per_s=61.2, first_token_s=0.044, peak_mib=612),
            Speed(model="dpo", p50_s=0.79, p95_s=2.1, tokens_per_s=60.4),
        ],
        judging=[
            Judging(
                judge="org/judge-7b",
                model="dpo",
                against="sft",
                n=80,
                win_rate=wilson(52, 80),
                lc_win_rate=wilson(49, 80),
                consistent=0.81,
                first=0.53,
                missing=0.01,
            ),
            Judging(
                judge="always A",
                model="dpo",
                against="base",
                n=80,
                win_rate=wilson(40, 80),
                consistent=0.0,
                first=1.0,
                missing=0.0,
                problems=["two verdicts agree on 0 % of the items, under 55 %"],
            ),
        ],
        cases=[
            Case(id="case-19", state="fixed", severity="high", lang="zh", tags=["factual"], detail="no refund promise"),
            Case(
                id="case-07",
                state="regressed",
                severity="critical",
                lang="en",
                tags=["format", "tool"],
                detail="valid JSON",
            ),
            Case(id="case-23", state="known_fail", severity="low", lang="zh", tags=["style"]),
        ],
        warnings=["The holdout was used 9 times; its figures grow optimistic.", "留出集已用 9 次。"],
        histories={"pretrain": line, "sft": short, "dpo": reward},
        teachers=["scripted desk"],
        funnel=[
            funnel("questions", "big 教师", 600, {"timeout": 10}, unparsed=19, truncated=11),
            funnel("answer", "big 教师", 900, {"http_500": 7}, truncated=23),
            funnel("answer", "scripted desk", 300, {}, unparsed=14, schema=5),
            funnel("answer", "", 12, {"over_budget": 12}),
        ],
        fingerprint={
            "suite heldout_prompts": "51c0aa" * 8,
            "chat template": "8b1d00" * 8,
            "generation": "greedy, at most 120 tokens",
            "batch size": "16",
            "dtype": "float32",
            "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        notes=["Figures are made on items that no step trained on.", "教师是脚本规则，不是模型。"],
    )
