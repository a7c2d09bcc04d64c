"""Write the demo's seed data: bilingual general and domain text, customer messages, preference pairs, thumbs, examples.

Everything is drawn from the phrase pools beside this file by one `random.Random` per output file, so that the files are
the same bytes on every machine. Held-out rows are drawn after the training rows and kept only when no training row (and
no earlier held-out row) of the same kind is a near-copy. Texts need the standard library only; pairs, thumbs and examples are
written by the project's own scripted teacher.

Reads: tests/seed/pools_*.py, data/seed/task/teacher.yaml and task.yaml (written by hand).
Writes: the .jsonl files under --out, and the table in README.md beside it.
Run: python tests/seed/make_seed.py --out data/seed
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
for folder in (HERE, ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import make_badcases  # noqa: E402
import make_rules  # noqa: E402
import pools_domain as domain  # noqa: E402
import pools_general as general  # noqa: E402
import pools_recipes as recipes  # noqa: E402
import pools_task as task  # noqa: E402

from steps.lib.rules import Task  # noqa: E402
from steps.lib.scripted import Flaw, ScriptedTeacher  # noqa: E402

Row = dict[str, Any]
LANGUAGES = ("zh", "en")
HAND_WRITTEN = ROOT / "data" / "seed" / "task"
MAX_JACCARD = 0.5
ORDER = re.compile(r"(?<![0-9A-Za-z])[A-Z][0-9]{5}(?![0-9A-Za-z])")
BOUND = frozenset({"name", "code", "room", "who", "product", "part", "fault", "d", "city0", "day0"})
"""Slots that keep one value for a whole document."""
BYTES = {"general/train": 450_000, "general/heldout": 30_000, "domain/train": 170_000, "domain/heldout": 25_000}
"""Target bytes of the text files."""
INTENTS = {"refund": 0.30, "exchange": 0.15, "repair": 0.16, "delivery": 0.14, "invoice": 0.11, "usage": 0.14}
ORDER_SHARE = 0.64
"""Share of the messages other than usage questions that give an order number (about 55 % of all)."""

TABLE_BEGIN, TABLE_END = "<!-- table: made by tests/seed/make_seed.py -->", "<!-- end of table -->"
WHAT = {
    "general/train.jsonl": "everyday text, zh and en: pretraining and replay",
    "general/heldout.jsonl": "everyday text: held out",
    "domain/train.jsonl": "the shop's manuals and rules: continued pretraining",
    "domain/heldout.jsonl": "the shop's manuals and rules: held out",
    "task/prompts_train.jsonl": "customer messages with intent and order number",
    "task/prompts_heldout.jsonl": "customer messages: held out",
    "task/teacher.yaml": "the scripted teacher's values",
    "task/task.yaml": "the task: system line, schema, rules",
    "pairs/train.jsonl": "preference pairs on training messages",
    "pairs/heldout.jsonl": "preference pairs on held-out messages",
    "thumbs/train.jsonl": "single answers with a thumb up or down, on training messages that no pair has",
    "prompts/task/examples.jsonl": "few-shot examples, on training messages",
    make_badcases.FILE: "events of bad cases (made by make_badcases.py)",
    "prompts/recipes/questions.jsonl": "questions on texts, for small teachers of the recipe documents",
    "prompts/recipes/critiques.jsonl": "faults of answers, for small teachers of the recipe revise",
    "prompts/recipes/revisions.jsonl": "better answers, for small teachers of the recipe revise",
    "rules/instructions.jsonl": "evaluation: prompts with instructions that a program checks, zh and en",
    "rules/format.jsonl": "evaluation: prompts that ask for JSON, each with its schema",
    "rules/choices.jsonl": "evaluation: questions with choices",
}


# ---------------------------------------------------------------------------------------------------------------------
# Near-copies (docs: DATA.md 3.1, with strings in place of hashes)


def tokens(text: str) -> list[str]:
    """Split lower-cased text: a run of letters and digits is a token, and so is each CJK character."""
    return re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff]+", text.lower())


def shingles(text: str) -> frozenset[str]:
    """Return the 5-grams of the tokens (the whole text when it is shorter)."""
    words = tokens(text)
    return frozenset(" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4)))


def digest(text: str) -> str:
    """Return the digest of the text normalised to its NFKC lower-cased tokens."""
    return hashlib.sha256(" ".join(tokens(unicodedata.normalize("NFKC", text))).encode()).hexdigest()


class Seen:
    """Texts with an index of their shingles, to find the nearest one quickly."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = []
        self._index: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        """Remember a text."""
        grams = shingles(text)
        for gram in grams:
            self._index.setdefault(gram, []).append(len(self._sets))
        self._sets.append(grams)

    def nearest(self, text: str) -> float:
        """Return the largest Jaccard similarity of a text to the remembered ones."""
        grams, common = shingles(text), dict[int, int]()
        for gram in grams:
            for index in self._index.get(gram, ()):
                common[index] = common.get(index, 0) + 1
        return max((n / (len(grams) + len(self._sets[i]) - n) for i, n in common.items()), default=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Documents


def read_block(block: str) -> tuple[dict[str, list[str]], list[str]]:
    """Read a block of `slot: a|b` and `- sentence` lines."""
    pools: dict[str, list[str]] = {}
    sentences: list[str] = []
    for line in filter(None, (line.strip() for line in block.splitlines())):
        if line.startswith("- "):
            sentences.append(line[2:])
        else:
            slot, _, values = line.partition(": ")
            pools.setdefault(slot, []).extend(values.split("|"))
    return pools, sentences


class Writer:
    """Fills the sentences of one document."""

    def __init__(
        self, rng: random.Random, lang: str, pools: dict[str, list[str]], taken: frozenset[str], *, orders: bool = False
    ) -> None:
        self.rng, self.lang, self.pools, self.taken, self.orders = rng, lang, pools, taken, orders
        self.bound: dict[str, str] = {}

    def draw(self, slot: str, used: dict[str, list[str]]) -> str:
        """Draw a value for a slot; `used` holds what the sentence has already."""
        kind = slot.rstrip("0123456789")
        if slot in BOUND and slot in self.bound:
            value = self.bound[slot]
        else:
            before = used.get(kind, []) + ([self.bound[kind]] if kind in self.bound else [])
            value = self.special(kind) or self.rng.choice([v for v in self.pools[kind] if v not in before])
        if slot in BOUND:
            self.bound[slot] = value
        used.setdefault(kind, []).append(value)
        return value

    def special(self, kind: str) -> str | None:
        """Return a number, clock or code, or None for a slot with a pool."""
        rng = self.rng
        if kind == "n":
            return str(rng.randint(3, 60))
        if kind == "d":
            return str(rng.randint(2, 9))
        if kind == "room":
            return str(rng.randint(101, 690))
        if kind == "clock" and self.lang == "zh":
            return f"{rng.randint(6, 11)}点{rng.choice(['', '半', '一刻', '20分'])}"
        if kind == "clock":
            return f"{rng.randint(6, 22)}:{rng.choice(['00', '05', '15', '20', '30', '40', '45', '50'])}"
        return random_code(rng, self.taken, order=self.orders) if kind == "code" else None

    def fill(self, sentence: str) -> str:
        """Fill one sentence."""
        used: dict[str, list[str]] = {}
        parts = [
            literal + (self.draw(slot, used) if slot else "")
            for literal, slot, _, _ in string.Formatter().parse(sentence)
        ]
        text = "".join(parts)
        if self.lang == "en":
            text = re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))", r"\1n ", text)
            text = re.sub(r"^\W*[a-z]", lambda m: m.group().upper(), text)
        return text


def random_code(rng: random.Random, taken: frozenset[str], *, order: bool = False) -> str:
    """Return a code, in four shapes; half of them a letter and five digits as the shop's order numbers."""
    while True:
        shape = 0.0 if order else rng.random()
        letters = rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ")
        digits = "".join(rng.choice(string.digits) for _ in range(5 if shape < 0.5 else 4 if shape < 0.75 else 3))
        if shape >= 0.9:
            letters = rng.choice("ABCDEFGHJKLM") + rng.choice("NPQRSTUVWXYZ")
        if letters + digits not in taken:
            return letters + digits


def general_doc(rng: random.Random, lang: str, taken: frozenset[str]) -> str:
    """Write a document about one everyday topic; four in ten have sentences that repeat a code."""
    topics = general.ZH_TOPICS if lang == "zh" else general.EN_TOPICS
    codes = general.ZH_CODES if lang == "zh" else general.EN_CODES
    shared_pools, shared = read_block(general.ZH_SHARED if lang == "zh" else general.EN_SHARED)
    with_code = rng.random() < 0.38
    topic = rng.choice(sorted(codes if with_code else topics))
    pools, sentences = read_block(topics[topic])
    writer = Writer(rng, lang, {**shared_pools, **pools}, taken)
    middle = rng.sample(sentences, rng.randint(1, 2) if with_code else rng.randint(2, min(5, len(sentences))))
    chosen = middle + rng.sample(shared, rng.randint(1, 2))
    rng.shuffle(chosen)
    if with_code:
        story = codes[topic]
        first = rng.randrange(2) if len(story) > 3 else 0
        at = rng.randint(0, len(chosen))
        chosen[at:at] = story[first : first + rng.randint(3, 4)]
    return join(lang, [writer.fill(sentence) for sentence in chosen])


def domain_doc(rng: random.Random, lang: str, taken: frozenset[str]) -> str:
    """Write a document about one appliance, from one or two chapters of the shop's rules."""
    chapters = domain.ZH_DOMAIN if lang == "zh" else domain.EN_DOMAIN
    product = rng.choice(domain.PRODUCTS)
    pools = {
        "product": [product.zh if lang == "zh" else product.en],
        "part": (product.zh_part if lang == "zh" else product.en_part).split("|"),
        "fault": (product.zh_fault if lang == "zh" else product.en_fault).split("|"),
    }
    first, second = rng.sample(sorted(chapters), 2)
    chosen = rng.sample(read_block(chapters[first])[1], rng.randint(2, 5))
    chosen += rng.sample(read_block(chapters[second])[1], rng.randint(0, 2) if len(chosen) > 2 else 2)
    writer = Writer(rng, lang, pools, taken, orders=True)
    return join(lang, [writer.fill(sentence) for sentence in chosen])


def join(lang: str, sentences: list[str]) -> str:
    """Join sentences into one paragraph."""
    return ("" if lang == "zh" else " ").join(sentences)


def text_rows(
    kind: str, write: Callable[[random.Random, str, frozenset[str]], str], taken: frozenset[str]
) -> tuple[list[Row], list[Row]]:
    """Write training and held-out documents of a kind, half of the bytes in each language."""
    seen, result = Seen(), list[list[Row]]()
    known: set[str] = set()
    for part in ("train", "heldout"):
        rng = random.Random(f"{kind}/{part}")
        rows: list[Row] = []
        size = dict.fromkeys(LANGUAGES, 0)
        while min(size.values()) < BYTES[f"{kind}/{part}"] / 2:
            lang = min(LANGUAGES, key=lambda language: size[language])
            text = write(rng, lang, taken)
            if digest(text) in known or seen.nearest(text) >= (MAX_JACCARD if part == "heldout" else 0.7):
                continue
            row = {"id": f"{kind}-{part}-{len(rows):04d}", "lang": lang, "text": text}
            rows.append(row)
            known.add(digest(text))
            seen.add(text)
            size[lang] += len(dump(row).encode()) + 1
        result.append(rows)
    return result[0], result[1]


# ---------------------------------------------------------------------------------------------------------------------
# Customer messages


def message(rng: random.Random, lang: str, intent: str, order: str | None) -> str:
    """Write one customer message."""
    zh = lang == "zh"
    product = rng.choice(domain.PRODUCTS)
    name, part, fault = (
        rng.choice(values.split("|"))
        for values in (
            (product.zh, product.zh_part, product.zh_fault) if zh else (product.en, product.en_part, product.en_fault)
        )
    )
    request = rng.choice((task.ZH_REQUEST if zh else task.EN_REQUEST)[intent])
    parts: list[str] = []
    problem = intent in {"refund", "exchange", "repair"} and ("{p}" not in request or rng.random() < 0.35)
    if problem:
        parts.append(rng.choice(task.ZH_PROBLEM if zh else task.EN_PROBLEM))
    parts.append(request)
    if intent == "usage":
        if rng.random() < 0.75:
            parts.append(rng.choice(task.ZH_USAGE_TAIL if zh else task.EN_USAGE_TAIL))
    else:
        chance = rng.random()
        if intent == "refund" and chance < 0.85 or intent in {"exchange", "repair"} and chance < 0.3:
            within = rng.random() < 0.38
            times = (
                (task.ZH_WITHIN if zh else task.EN_WITHIN) if within else (task.ZH_OUTSIDE if zh else task.EN_OUTSIDE)
            )
            bought = rng.choice(task.ZH_BOUGHT if zh else task.EN_BOUGHT).replace("{t}", rng.choice(times))
            parts.insert(rng.choice((len(parts), len(parts) - 1)), bought)
        if rng.random() < (0.35 if len(parts) > 2 else 0.75):
            parts.append(rng.choice(task.ZH_DETAIL if zh else task.EN_DETAIL))
    if order is not None:
        front = rng.random() < 0.3
        clause = rng.choice(
            (task.ZH_ORDER_FRONT if front else task.ZH_ORDER)
            if zh
            else (task.EN_ORDER_FRONT if front else task.EN_ORDER)
        ).replace("{o}", order)
        parts.insert(0 if front else rng.randint(1, len(parts)), clause)
    if rng.random() < 0.4:
        parts.insert(0, rng.choice(task.ZH_GREETING if zh else task.EN_GREETING))
    text = join(lang, [p.replace("{part}", part).replace("{p}", name).replace("{f}", fault) for p in parts])
    text = re.sub(r"，(?=[（])|，(?=(?:订单|单号|我的订单号|小票|号码|可以查|在)[^，]*。)", "。", text) if zh else text
    if not zh:
        text = re.sub(r"(?<=, )(?!I\b|Blue)([A-Z])(?=[a-z])", lambda m: m.group().lower(), text)
    return text


def message_rows(rng: random.Random, part: str, number: int, seen: Seen, known: set[str], taken: set[str]) -> list[Row]:
    """Write messages in fixed shares of intents, alternating languages; `taken` order numbers are not used again."""
    plan = [(intent, i % 100 < 100 * ORDER_SHARE) for intent, share in INTENTS.items() for i in spread(share, number)]
    rng.shuffle(plan)
    rows: list[Row] = []
    for index, (intent, with_order) in enumerate(plan):
        lang = LANGUAGES[index % 2]
        limit = MAX_JACCARD if part == "heldout" else 0.85
        for _ in range(20_000):
            order = random_code(rng, frozenset(taken), order=True) if with_order and intent != "usage" else None
            text = message(rng, lang, intent, order)
            length = len(tokens(text))
            fits = 12 <= length <= 40 if lang == "zh" else 8 <= length <= 25
            if fits and digest(text) not in known and seen.nearest(text) < limit:
                break
        else:
            raise RuntimeError(
                f"no {part} message left for {intent}/{lang}, because all are near-copies; widen the pools"
            )
        known.add(digest(text))
        seen.add(text)
        if order is not None:
            taken.add(order)
        rows.append(
            {"id": f"{part}-{index:04d}", "lang": lang, "prompt": text, "intent": intent, "order_number": order}
        )
    return rows


def spread(share: float, number: int) -> Iterator[int]:
    """Yield evenly spread values of 0..99, one for each row of a share."""
    count = round(share * number)
    return (i * 100 // count for i in range(count))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs and examples, by the scripted teacher


def pair_rows(part: str, prompts: Iterable[Row], number: int, teacher: ScriptedTeacher, rules: Task) -> list[Row]:
    """Pair a flaw-free answer with the same answer plus one flaw, the rarest applicable flaw first."""
    manners: tuple[Flaw, ...] = ("refund_promise", "no_ask", "preamble")
    count = dict.fromkeys(manners, 0)
    rows: list[Row] = []
    pending = list(prompts)
    limits = {"refund_promise": number // 3, "no_ask": number // 3, "preamble": number}
    chosen: list[tuple[Row, Flaw]] = []
    for flaw in manners:  # the flaws that few prompts can have choose first
        for row in [r for r in pending if flaw in teacher.applicable(r["prompt"])]:
            if len(chosen) < number and count[flaw] < limits[flaw]:
                chosen.append((row, flaw))
                count[flaw] += 1
                pending.remove(row)
    for row, flaw in sorted(chosen, key=lambda item: item[0]["id"]):
        prompt, lang = row["prompt"], row["lang"]
        good, bad = matched(teacher, prompt, flaw)
        system = rules.student_system["zh" if lang == "zh" else "en"]
        rows.append(
            {
                "id": f"pairs-{part}-{len(rows):04d}-{flaw}",
                "lang": lang,
                "prompt": [{"role": "system", "content": system}, {"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": bad}],
            }
        )
    return rows


def thumb_rows(prompts: list[Row], pairs: list[Row], number: int, teacher: ScriptedTeacher, rules: Task) -> list[Row]:
    """Judge one answer a message, of messages without a pair: two in three are flaw-free and liked, one has a flaw and is not."""
    used = {row["prompt"][-1]["content"] for row in pairs}
    free = {lang: [r for r in prompts if r["lang"] == lang and r["prompt"] not in used] for lang in LANGUAGES}
    rows: list[Row] = []
    for index in range(number):
        lang = LANGUAGES[index % 2]
        prompt = free[lang][index // 2]["prompt"]
        label = index // 2 % 3 != 2
        flaw = next(one for one in ("refund_promise", "no_ask", "preamble") if one in teacher.applicable(prompt))
        answer = teacher.compose(prompt, () if label else (flaw,), seed=0, sample=0)
        rows.append(
            {
                "id": f"thumbs-train-{index:04d}-{'up' if label else flaw}",
                "lang": lang,
                "prompt": [
                    {"role": "system", "content": rules.student_system[lang]},
                    {"role": "user", "content": prompt},
                ],
                "completion": [{"role": "assistant", "content": answer}],
                "label": label,
            }
        )
    return rows


def matched(teacher: ScriptedTeacher, prompt: str, flaw: Flaw) -> tuple[str, str]:
    """Return a flaw-free answer and one with this flaw, alike but for the flaw.

    A preamble makes the rejected answer longer. There, three times in four, the chosen answer is the longer one of
    two flaw-free replies; the shorter rejected answers of the other flaws level the rest.
    """
    good, bad = teacher.compose(prompt, (), seed=0, sample=0), teacher.compose(prompt, (flaw,), seed=0, sample=0)
    if flaw == "preamble" and int(digest(prompt), 16) % 4:
        good = max(good, teacher.compose(prompt, (), seed=0, sample=1), key=len)
    return good, bad


def example_rows(prompts: list[Row], teacher: ScriptedTeacher) -> list[Row]:
    """Pick eight training messages, four a language, of all intents, with flaw-free answers."""
    wanted = [("refund", True), ("repair", False), ("usage", False), ("delivery", True)]
    wanted_en = [("exchange", True), ("invoice", False), ("usage", False), ("refund", False)]
    rows: list[Row] = []
    for lang, cells in (("zh", wanted), ("en", wanted_en)):
        for intent, with_order in cells:
            row = next(
                r for r in prompts
                if (r["lang"], r["intent"], r["order_number"] is not None) == (lang, intent, with_order)
            )  # fmt: skip
            answer = teacher.compose(row["prompt"], (), seed=0, sample=0)
            rows.append({"lang": lang, "prompt": row["prompt"], "answer": answer})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Files


def dump(row: Row) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False)


def make() -> dict[str, list[Row]]:
    """Make the rows of every file, by path under the seed folder."""
    taken: set[str] = set()
    seen, known = Seen(), set[str]()
    rng = random.Random("task")
    train = message_rows(rng, "train", 1000, seen, known, taken)
    heldout = message_rows(rng, "heldout", 200, seen, known, taken)
    codes = frozenset(row["order_number"] for row in heldout if row["order_number"])
    general_train, general_heldout = text_rows("general", general_doc, codes)
    domain_train, domain_heldout = text_rows("domain", domain_doc, codes)
    teacher = ScriptedTeacher(HAND_WRITTEN / "teacher.yaml")
    rules = Task.read(HAND_WRITTEN / "task.yaml")
    pairs = pair_rows("train", train, 160, teacher, rules)
    return {
        "general/train.jsonl": general_train,
        "general/heldout.jsonl": general_heldout,
        "domain/train.jsonl": domain_train,
        "domain/heldout.jsonl": domain_heldout,
        "task/prompts_train.jsonl": train,
        "task/prompts_heldout.jsonl": heldout,
        "pairs/train.jsonl": pairs,
        "pairs/heldout.jsonl": pair_rows("heldout", heldout, 160, teacher, rules),
        "thumbs/train.jsonl": thumb_rows(train, pairs, 120, teacher, rules),
        "prompts/task/examples.jsonl": example_rows(train, teacher),
        **recipes.example_files(),
        **make_badcases.make(),
        **make_rules.files(),
    }


def write(out: Path) -> None:
    """Write every file under `out`, and README.md beside it."""
    for path, rows in make().items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(dump(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    (out.parent / "README.md").write_text(with_table(readme, out), encoding="utf-8", newline="\n")


def with_table(readme: str, out: Path) -> str:
    """Return the README with the part between its two marks made anew from the files."""
    head, _, rest = readme.partition(TABLE_BEGIN)
    _, _, tail = rest.partition(TABLE_END)
    lines = ["| file | what | rows | bytes | sha256 (16) | origin |", "|---|---|---|---|---|---|"]
    for path, what in WHAT.items():
        by_hand = path.endswith(".yaml")
        data = ((HAND_WRITTEN.parent if by_hand else out) / path).read_bytes()
        rows = "" if by_hand else str(data.count(b"\n"))
        origin = "written by hand" if by_hand else "made by make_seed.py"
        lines.append(
            f"| seed/{path} | {what} | {rows} | {len(data)} | {hashlib.sha256(data).hexdigest()[:16]} | {origin} |"
        )
    lines += ["", "Characters of the assistant's answer, mean (chosen / rejected), by flaw:", ""]
    lines += [balance(part, [json.loads(line) for line in (out / path).read_text(encoding="utf-8").splitlines()])
              for part, path in (("train", "pairs/train.jsonl"), ("held-out", "pairs/heldout.jsonl"))]  # fmt: skip
    return head + TABLE_BEGIN + "\n" + "\n".join(lines) + "\n" + TABLE_END + tail


def balance(part: str, pairs: list[Row]) -> str:
    """Return a line on the lengths of the chosen and rejected answers."""
    groups: dict[str, list[tuple[int, int]]] = {"all": []}
    for row in pairs:
        lengths = (len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"]))
        groups["all"].append(lengths)
        groups.setdefault(row["id"].split("-")[3], []).append(lengths)
    means = (
        f"{name} {sum(a for a, _ in values) / len(values):.1f} / {sum(b for _, b in values) / len(values):.1f} "
        f"({len(values)} pairs)"
        for name, values in groups.items()
    )
    return f"- {part}: " + ", ".join(means)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "seed", help="the seed folder")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
