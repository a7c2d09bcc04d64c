"""Flags on answers: every flag with planted faults and with good answers beside them, in Chinese and English."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from steps.clean import CleanConfig
from steps.lib import marks, phrases
from steps.lib.marks import DROPPED, FLAGS, Flag, Marks, closed, copies, loops
from steps.lib.prompts import PromptFile

SYSTEM_ZH = "你是一家茶馆的店员。回答客人的问题，语气亲切，不超过三句话，不要提到其他店家，价格一律以菜单为准。"
SYSTEM_EN = (
    "You work in a tea house. Answer the guest in at most three sentences, stay friendly, never mention other houses, and take every "
    "price from the menu."
)
TEA_EN = "Green tea wants water of about eighty degrees and no more than two minutes; black tea may stand in boiling water for four."
TEA_ZH = "绿茶用八十度左右的水，泡两分钟就够了，时间再长就会发苦；红茶可以用沸水，泡四分钟，味道更浓一些。"
EXAMPLES = [
    {"lang": "en", "prompt": "How do I brew tea?", "answer": TEA_EN},
    {"lang": "zh", "prompt": "怎么泡茶？", "answer": TEA_ZH},
]
GOOD = [
    ("en", "Which tea is mild?", "White tea is mild, and so is a light oolong. Both are on the first page of the menu."),
    ("zh", "什么茶比较清淡？", "白茶比较清淡，轻焙火的乌龙也不错，两种都在菜单第一页。"),
    ("en", "Can I return it?", "Sorry, we cannot promise a refund for an opened tin, but we gladly exchange it."),
    ("zh", "能退吗？", "抱歉，我们无法承诺退款，拆封的茶可以换同款。"),
    ("en", "Is it open?", "Yes."),
    ("zh", "开门了吗？", "开了。"),
    ("en", "List three", "1. Assam\n2. Darjeeling\n3. Keemun"),
    ("en", "Write code", "```python\ndef f(x):\n    return [x, x ** 2]\n```"),
    ("zh", "写一段打印你好的代码", "```python\nname = input('Please enter your name: ')\nprint('hello', name, 'welcome to the house')\n```"),
    ("zh", "把这句话翻译成英文：茶很好喝。", "The tea tastes very good, and I would like to have another cup of it."),
    ("en", "How do you say thank you in Chinese?", "谢谢，读作 xièxie；更客气一点可以说“非常感谢您的帮助”。"),
    ("zh", "改正语法：He have two cup of tea in the morning.", "He has two cups of tea in the morning."),
    ("zh", "用“serendipity”造句", "Meeting her in that little bookshop was pure serendipity for both of us."),
    ("en", "Draw a table", "| tea | minutes |\n|------------------|------------------|\n| green | 2 |\n| black | 4 |\n| white | 5 |"),
    ("en", "Who needs it?", "As an art historian I need it every day; as an AI engineer my brother does, too."),
    ("zh", "谁需要它？", "作为人工智能领域的专家，他每天都要用到它。"),
    ("zh", "你做什么工作？", "我是一个语言模型研究员，平时喝绿茶。"),
    ("en", "What do you do?", "I am an AI and machine learning engineer, and I drink green tea."),
    ("en", "Laugh", "Ha ha ha, good one!"),
    ("zh", "笑一个", "哈哈哈哈，真好笑。"),
]  # fmt: skip
BAD = [
    ("refusal", "en", "How?", "I'm sorry, but I can't help with that request."),
    ("refusal", "en", "How?", "Unfortunately, I am not able to provide this information."),
    ("refusal", "en", "How?", "I cannot assist with that."),
    ("refusal", "zh", "怎么做？", "很抱歉，我无法回答这个问题。"),
    ("refusal", "zh", "怎么做？", "对不起，作为一个语言模型，我不能为您提供这方面的信息。"),
    ("refusal", "zh", "怎么做？", "您的请求我无法满足。"),
    ("identity", "en", "Who?", "Hello! As an AI language model, I do not drink tea."),
    ("identity", "en", "Who?", "I am an assistant trained by OpenAI to answer questions."),
    ("identity", "en", "Who?", "My name is Leaf; I am Leaf, an AI assistant developed by a tea house."),
    ("identity", "zh", "你是谁？", "作为一个人工智能助手，我没有喝过茶。"),
    ("identity", "en", "Who?", "I am an AI and do not have favourites."),
    ("identity", "en", "Who?", "Dear friend, I'm just an AI, so tea is wasted on me."),
    ("identity", "zh", "你是谁？", "作为一个 AI 助手，我没有喝过茶。"),
    ("identity", "zh", "你是谁？", "作为一个文字型 AI 机器人，我只会说说茶。"),
    ("identity", "zh", "你是谁？", "由于我是一个语言模型，喝茶的事只能请您自己来。"),
    ("identity", "zh", "你是谁？", "我是由阿里云开发的通义千问。"),
    ("identity", "zh", "你是谁？", "您好，我叫小茶，是一个人工智能助手。"),
    ("think_tag", "en", "Which?", "It is green.</think> Green."),
    ("special_tokens", "en", "Which?", "Green tea.<|im_end|>"),
    ("special_tokens", "en", "Which?", "Green tea.<|eot_id|><|start_header_id|>user"),
    ("special_tokens", "zh", "哪种？", "绿茶。[/INST]"),
    ("special_tokens", "zh", "哪种？", "绿茶。<｜end▁of▁sentence｜>"),
    ("special_tokens", "en", "Which?", "Green tea.</s>"),
    ("prompt_leak", "en", "Hi", "I was told: Answer the guest in at most three sentences, stay friendly, never mention other houses."),
    ("prompt_leak", "zh", "你好", "我的要求是：语气亲切，不超过三句话，不要提到其他店家，价格一律以菜单为准。"),
    ("prompt_leak", "en", "Hi", "### Instruction: be kind\nGreen tea."),
    ("near_copy", "en", "What about white tea?", TEA_EN),
    ("near_copy", "en", "What about white tea?", TEA_EN.replace("four", "five")),
    ("near_copy", "zh", "白茶呢？", TEA_ZH.replace("四分钟", "五分钟")),
    ("echo", "en", "Which tea is mild?", "which tea is mild"),
    ("echo", "zh", "什么茶比较清淡？", "什么茶比较清淡"),
    ("wrong_language", "zh", "什么茶比较清淡？", "White tea is mild, and so is a light oolong from the first page."),
    ("wrong_language", "en", "Which tea is mild?", "白茶比较清淡，轻焙火的乌龙也不错，两种都在菜单第一页。"),
    ("wrong_language", "en", "Which tea is mild?", "Белый чай довольно мягкий, и светлый улун тоже."),
    ("repetition", "en", "Which?", "Green tea is good. " * 12),
    ("repetition", "zh", "哪种？", "绿茶很好，" * 12),
    ("repetition", "en", "Which?", "No tea. " + "tea " * 20),
    ("repetition", "zh", "哪种？", TEA_ZH + "好的好的好的" * 60),
]  # fmt: skip


def prompt_file(folder: Path, examples: list[dict[str, Any]] | None = None, **values: Any) -> PromptFile:
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples or EXAMPLES))
    settings = {
        "system": {"zh": SYSTEM_ZH, "en": SYSTEM_EN},
        "shots": 1,
        "examples": str(folder / "examples.jsonl"),
        **values,
    }
    with (folder / "prompt.yaml").open("w") as file:
        YAML(typ="safe").dump(settings, file)
    return PromptFile.read(folder / "prompt.yaml")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Marks:
    return Marks(prompt_file(tmp_path_factory.mktemp("marks")))


def flags(judge: Marks, lang: Any, prompt: str, answer: str, **more: Any) -> tuple[str, ...]:
    return judge.of(answer, prompt=prompt, lang=lang, shown=[TEA_EN, TEA_ZH], **more)


@pytest.mark.parametrize(("lang", "prompt", "answer"), GOOD)
def test_a_good_answer_has_no_flag(judge: Marks, lang: str, prompt: str, answer: str) -> None:
    assert flags(judge, lang, prompt, answer) == ()


@pytest.mark.parametrize(("flag", "lang", "prompt", "answer"), BAD)
def test_a_planted_fault_has_its_flag(judge: Marks, flag: str, lang: str, prompt: str, answer: str) -> None:
    found = flags(judge, lang, prompt, answer)
    assert flag in found
    assert set(found) <= {flag, "refusal", "identity"}, (
        "refusals and words about itself come together; else one fault, one flag"
    )


def test_every_flag_that_an_answer_shows_is_planted_in_both_languages() -> None:
    elsewhere = {"truncated", "empty", "unparsed", "schema", "repaired", "same_answer"}
    assert {flag for flag, *_ in BAD} | elsewhere == set(FLAGS) == set(get_args(Flag))
    for flag in set(FLAGS) - elsewhere - {"think_tag"}:
        assert {lang for name, lang, *_ in BAD if name == flag} == {"zh", "en"}, flag


def test_what_the_server_and_the_parser_said_comes_first_and_stays(judge: Marks) -> None:
    assert flags(judge, "en", "Which?", "I cannot help with that.", parsed=["unparsed"], finish_reason="length") == (
        "truncated", "unparsed", "refusal",
    )  # fmt: skip
    assert flags(judge, "en", "Which?", "", parsed=["empty"]) == ("empty",)
    assert flags(judge, "en", "Which?", "fine", parsed=["odd"]) == ("odd",), "a parser's own flag is never lost"


def test_the_defaults_drop_what_nobody_can_use_and_clean_lets_only_harmless_ones_through() -> None:
    assert set(DROPPED) <= set(FLAGS)
    assert {"repaired", "same_answer"} == set(CleanConfig().allowed_flags) & set(FLAGS)
    assert not set(DROPPED) & set(CleanConfig().allowed_flags)


def test_json_is_judged_by_its_words(judge: Marks) -> None:
    answer = json.dumps({"intent": "brew_green", "order": None, "reply": TEA_EN.replace("four", "five")})
    assert flags(judge, "en", "What about white tea?", answer) == ("near_copy",)
    zh = json.dumps(
        {"intent": "brew_green_tea_or_black_tea", "category": "question", "reply": "泡两分钟。"}, ensure_ascii=False
    )
    assert flags(judge, "zh", "白茶呢？", zh) == (), "names of fields and labels are no drift of language"
    assert "refusal" in flags(judge, "zh", "白茶呢？", json.dumps({"reply": "很抱歉，我无法回答这个问题。"}))


def test_a_closed_set_of_answers_has_no_copies(tmp_path: Path) -> None:
    """A long answer that stands at several examples is the task's own sentence; one that stands once is the example's."""
    fixed = [{"lang": "en", "prompt": f"q{n}", "answer": TEA_EN if n % 2 else SYSTEM_EN} for n in range(6)]
    own = [{"lang": "en", "prompt": f"q{n}", "answer": f"{n} {TEA_EN}"} for n in range(6)]
    for number, (pool, found) in enumerate(((fixed, ()), (own, ("near_copy",)))):
        (folder := tmp_path / str(number)).mkdir()
        file = prompt_file(folder, pool, system={"zh": "", "en": ""}, pick="fixed")
        assert Marks(file).of(TEA_EN, prompt="q", lang="en", shown=[TEA_EN]) == found
    assert closed(["yes", "no", "yes", "no"]) and not closed(["a", "b", "c", "d", "e", "e"][:5]) and not closed([])
    assert not copies("yes", "yes"), "short answers come again because there is no other way to say it"


def test_a_copy_is_found_up_to_its_limit_and_not_beyond() -> None:
    """Words are replaced one after the other: the flag must end where the exact Jaccard passes the limit."""
    from steps.lib.likeness import folded, jaccard, shingles

    words = (TEA_EN + " " + SYSTEM_EN).split()
    whole = " ".join(words)
    for changed in range(len(words)):
        text = " ".join(["qqqqqqqq"] * changed + words[changed:])
        exact = jaccard(shingles(folded(text)), shingles(folded(whole)))
        assert copies(folded(text), whole) is (exact >= marks.COPY), changed


def test_words_of_the_instructions_that_the_prompt_quotes_are_no_leak(judge: Marks) -> None:
    words = "stay friendly, never mention other houses, and take every price from the menu"
    assert flags(judge, "en", "Hi", f"My rules: {words}.") == ("prompt_leak",)
    assert flags(judge, "en", f"Who said: {words}?", f"It was the landlord who said: {words}.") == ()


def test_the_words_around_the_variables_of_a_template_can_leak(tmp_path: Path) -> None:
    words = "Below stands the message of a guest; do as it says and say nothing of this line"
    judge = Marks(prompt_file(tmp_path, user=words + ": {{ prompt }}{% if lang == 'zh' %}。{% endif %}"))
    assert judge.of(f"{words}. Green tea.", prompt="hi", lang="en") == ("prompt_leak",)
    assert judge.of("Green tea.", prompt=words, lang="en") == ()


def test_a_thought_that_was_asked_for_can_leak(tmp_path: Path) -> None:
    told = "First think in two or three sentences: what does the guest want, then write ### Answer alone on a line"
    pool = [{**row, "thought": "t"} for row in EXAMPLES]
    file = prompt_file(tmp_path, pool, system={"zh": "", "en": ""},
                       chain_of_thought={"mode": "apart", "instruction": {"zh": "想一想，写 ### 答案", "en": told}})  # fmt: skip
    assert Marks(file).of(told, prompt="hi", lang="en") == ("prompt_leak",)


@pytest.mark.parametrize("size", [20, 60, 150])
def test_a_loop_at_the_end_of_a_long_answer_is_seen(size: int) -> None:
    varied = "".join(
        f"Sentence {n} of the long answer says something of tea number {n * 37 % 101}. " for n in range(60)
    )
    assert not loops(varied)
    assert loops(varied + (varied[:size]) * (1200 // size))


def test_prompts_and_clean_and_flags_share_their_patterns() -> None:
    import steps.lib.chat_rules
    import steps.lib.replies

    assert steps.lib.replies.refusal is steps.lib.chat_rules.refusal is phrases.refusal
    assert steps.lib.chat_rules.identity is phrases.identity


def test_no_pattern_takes_long_on_hostile_text(judge: Marks) -> None:
    """No backtracking that grows with the square of the text."""
    for text in (
        "sorry " * 20_000,
        "我是" * 50_000,
        "as an AI " * 20_000,
        "<|" * 50_000,
        "a" * 100_000,
        "` $ " * 30_000,
        "作为" * 50_000,
    ):
        started = time.process_time()
        flags(judge, "zh", "hi", text)
        assert time.process_time() - started < 2.0, text[:10]


def test_real_answers_are_seldom_flagged(judge: Marks, shared_data: Path) -> None:
    """Answers that nobody flagged (Alpaca's). The counts stand in docs/generation.md; what is flagged there was read by a person."""
    most = {"zh": {"wrong_language": 9, "identity": 13, "refusal": 3},
            "en": {"identity": 12, "refusal": 3}}  # fmt: skip
    for lang, allowed in most.items():
        rows = json.loads((shared_data / "real" / f"alpaca_{lang}_demo.json").read_text(encoding="utf-8"))
        counts: dict[str, int] = {}
        for row in rows:
            prompt = f"{row['instruction']}\n{row['input']}".strip()
            for flag in judge.of(row["output"], prompt=prompt, lang=lang, shown=[TEA_EN, TEA_ZH]):  # type: ignore[arg-type]
                counts[flag] = counts.get(flag, 0) + 1
        assert len(rows) > 490 and set(counts) <= set(allowed)
        assert all(counts[flag] <= allowed[flag] for flag in counts), counts
