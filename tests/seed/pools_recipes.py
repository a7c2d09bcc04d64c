"""Worked examples for small teachers: a question on a text, the worst fault of an answer, a better answer. Written by hand."""

from __future__ import annotations

from typing import Any

TEXTS = [
    (
        "zh",
        "蓝鹿电水壶在水烧开后会自动断电。如果提前跳断，多半是发热盘上结了水垢，用半升水加一勺柠檬酸煮开就能去掉。",
        "蓝鹿电水壶为什么会在水烧开之前断电？",
    ),
    ("zh", "河湾镇图书馆建于1902年，由一位磨坊主捐款修建，藏书四万册，每周四开放到晚上九点。", "河湾镇图书馆是哪一年建成的？"),
    (
        "zh",
        "老面发酵比用酵母粉慢。厨房暖和时大约六个小时，冷的时候要一整天，时间越长，面包越酸。",
        "在暖和的厨房里，老面发酵大约需要多长时间？",
    ),
    (
        "en",
        "Blue Deer kettles switch themselves off when the water boils. When the switch clicks early, lime lies on the heating plate; a "
        "spoon of citric acid in half a litre of water takes it off.",
        "Why does a Blue Deer kettle switch off before the water boils?",
    ),
    (
        "en",
        "The town library of Harwick was built in 1902 with money that a mill owner left. It holds forty thousand books and is open "
        "until nine in the evening on Thursdays.",
        "When was the town library of Harwick built?",
    ),
    (
        "en",
        "Sourdough rises more slowly than bread with bought yeast. In a warm kitchen it takes about six hours, in a cold one up to a "
        "day, and the longer it takes, the sourer the loaf becomes.",
        "How long does sourdough take to rise in a warm kitchen?",
    ),
]  # fmt: skip
"""Language, text, question."""
REVIEWS = [
    ("zh", "买二手自行车前要检查哪三样东西？", "要检查刹车和轮胎。", "只写了两样，请求要的是三样。", "要检查刹车、轮胎，还有车架有没有裂纹。"),
    ("zh", "溏心蛋要煮几分钟？", "鸡蛋富含蛋白质，世界各地的人都爱吃。", "没有回答要煮几分钟。", "水开后煮六分钟，再放进冷水里。鸡蛋大的话多煮一分钟。"),
    (
        "en",
        "Name three things to check before buying a used bicycle.",
        "Check the brakes and the tyres.",
        "It names two things, and three were asked for.",
        "Check the brakes, the tyres, and whether the frame has cracks.",
    ),
    (
        "en",
        "How long do I boil an egg so that the yolk is soft?",
        "Eggs are a good source of protein and are eaten all over the world.",
        "It does not say how long the egg is boiled.",
        "Boil it for six minutes, then cool it in cold water. A large egg takes a minute more.",
    ),
]  # fmt: skip
"""Language, request, answer, its fault, a better answer."""
PRINCIPLE = {
    "zh": "答案要答其所问，请求里的每一项要求都要做到。",
    "en": "The answer does what the request asks for, every part of it.",
}


def example_files() -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, with what the stage of a recipe gives its templates. The fence is one that a recipe would make."""
    from steps.lib.fences import fence_of

    files: dict[str, list[dict[str, Any]]] = {name: [] for name in ("questions", "critiques", "revisions")}
    for lang, text, question in TEXTS:
        seen = {"document": text, "count": 1, "fence": fence_of(text)}
        files["questions"].append({"lang": lang, "prompt": text, "answer": question, "seen": seen})
    for lang, request, answer, fault, better in REVIEWS:
        seen = {"answer": answer, "rules": "", "fence": fence_of(request, answer)}
        review = {**seen, "principles": [PRINCIPLE[lang]]}
        files["critiques"].append({"lang": lang, "prompt": request, "answer": fault, "seen": review})
        files["revisions"].append(
            {"lang": lang, "prompt": request, "answer": better, "seen": {**seen, "critique": fault}}
        )
    return {f"prompts/recipes/{name}.jsonl": rows for name, rows in files.items()}
