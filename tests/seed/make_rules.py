"""Suites of an evaluation, made from phrases written here: verifiable instructions, answers in JSON, and multiple choice.

Every prompt has its own topic, so that prompts are independent clusters. Called by make_seed.py, which writes the files.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

Row = dict[str, Any]

TOPICS = {
    "en": (
        "a lost umbrella", "the first snow of the year", "how to boil rice", "a quiet library", "learning to swim",
        "the history of the bicycle", "a market on Saturday", "why leaves turn red", "packing for the mountains",
        "a letter to the neighbours", "the moon and the tides", "repairing a chair", "a birthday without cake",
        "trains at night", "growing tomatoes on the balcony", "the rules of chess", "a broken washing machine",
        "saving water at home", "a walk by the river", "making paper", "how bees find flowers", "the last bus",
        "painting the kitchen", "an honest mistake", "keeping old photographs",
    ),
    "zh": (
        "丢失的雨伞", "今年的第一场雪", "怎样煮米饭", "安静的图书馆", "学习游泳", "自行车的历史", "周六的集市", "树叶为什么变红",
        "去山里要带的行李", "写给邻居的信", "月亮与潮汐", "修理一把椅子", "没有蛋糕的生日", "夜里的火车", "在阳台种番茄",
        "围棋的规则", "坏了的洗衣机", "在家节约用水", "河边散步", "手工造纸", "蜜蜂怎样找到花", "末班公交车", "粉刷厨房",
        "一次诚实的错误", "保存老照片",
    ),
}  # fmt: skip
ASKS = {
    "en": (
        "Write a short text about {}.",
        "Tell me about {}.",
        "Give me some thoughts on {}.",
        "Explain {} to a child.",
    ),
    "zh": ("写一段关于{}的短文。", "说说{}。", "谈谈你对{}的看法。", "给孩子讲讲{}。"),
}
WORDS = {
    "en": ("window", "basket", "slowly", "neighbour", "candle", "engine", "honey", "seven", "bridge", "silver"),
    "zh": ("窗户", "篮子", "慢慢", "邻居", "蜡烛", "发动机", "蜂蜜", "七天", "桥", "银色"),
}
ENDS = {"en": ("That is all for today.", "Ask me again tomorrow."), "zh": ("今天就到这里。", "明天再问我吧。")}
TWO_RELATIONS = ("at least", "less than")
MORE = {"at least": {"en": "at least", "zh": "至少"}, "less than": {"en": "fewer than", "zh": "少于"}}


def _said(lang: str, en: str, zh: str) -> str:
    return zh if lang == "zh" else en


def rule(name: str, lang: str, n: int, topic: str, words_used: list[str]) -> tuple[str, Row]:
    """The sentence that asks for a rule, and the rule's arguments; ``n`` varies them."""
    word, other = words_used
    relation = TWO_RELATIONS[n % 2]
    more = MORE[relation][lang]
    few = n % 4 + 2
    words, sentences = (40, 60, 80, 120)[n % 4], (3, 4, 6, 8)[n % 4]
    end, repeat = ENDS[lang][n % 2], ASKS[lang][n % 4].format(topic)
    letter = _said(lang, "aeot"[n % 4], "的是不我"[n % 4])
    asked: dict[str, tuple[str, Row]] = {
        "keywords:existence": (
            _said(lang, f'Use the words "{word}" and "{other}".', f"请用到“{word}”和“{other}”这两个词。"),
            {"keywords": [word, other]},
        ),
        "keywords:frequency": (
            _said(lang, f'Use the word "{word}" {more} {few} times.', f"“{word}”这个词要出现{more}{few}次。"),
            {"keyword": word, "frequency": few, "relation": relation},
        ),
        "keywords:forbidden_words": (
            _said(lang, f'Do not use the words "{word}" and "{other}".', f"不要用“{word}”和“{other}”这两个词。"),
            {"forbidden_words": [word, other]},
        ),
        "keywords:letter_frequency": (
            _said(lang, f'Let the letter "{letter}" occur {more} {few * 3} times.', f"“{letter}”字要出现{more}{few}次。"),
            {"letter": letter, "let_frequency": few * (1 if lang == "zh" else 3), "let_relation": relation},
        ),
        "language:response_language": (
            _said(lang, "Answer in Chinese only.", "只用英文回答。") if n % 2
            else _said(lang, "Answer in English only.", "只用中文回答。"),
            {"language": _said(lang, "zh", "en") if n % 2 else lang},
        ),
        "length_constraints:number_words": (
            _said(lang, f"Use {more} {words} words.", f"{more}{words}个字。"), {"num_words": words, "relation": relation},
        ),
        "length_constraints:number_sentences": (
            _said(lang, f"Use {more} {sentences} sentences.", f"{more}{sentences}句话。"),
            {"num_sentences": sentences, "relation": relation},
        ),
        "length_constraints:number_paragraphs": (
            _said(
                lang, f"Write exactly {few} paragraphs with a line of *** between them.",
                f"正好写{few}段，段与段之间用一行***隔开。",
            ),
            {"num_paragraphs": few},
        ),
        "length_constraints:nth_paragraph_first_word": (
            _said(
                lang, f'Write exactly {few} paragraphs with a blank line between them; the second starts with "{word}".',
                f"正好写{few}段，段与段之间空一行，第二段以“{word}”开头。",
            ),
            {"num_paragraphs": few, "nth_paragraph": 2, "first_word": word},
        ),
        "detectable_content:number_placeholders": (
            _said(lang, f"Put at least {few} placeholders in square brackets, such as [name].", f"至少用{few}个方括号占位符，比如[姓名]。"),
            {"num_placeholders": few},
        ),
        "detectable_content:postscript": (
            _said(lang, "Add a postscript that starts with P.S.", "最后加一段附言，以“又及”开头。"),
            {"postscript_marker": _said(lang, "P.S.", "又及")},
        ),
        "detectable_format:number_bullet_lists": (
            _said(lang, f"Give exactly {few} bullet points, each on a line that starts with *.", f"正好列{few}个要点，每行以*开头。"),
            {"num_bullets": few},
        ),
        "detectable_format:constrained_response": (
            _said(
                lang, 'Is it worth the trouble? Answer with "My answer is yes.", "My answer is no." or "My answer is maybe."',
                "值得吗？请用“我的回答是肯定的。”、“我的回答是否定的。”或“我的回答是不确定。”来回答。",
            ),
            {},
        ),
        "detectable_format:number_highlighted_sections": (
            _said(lang, f"Highlight at least {few} parts like *this*.", f"至少用*星号*突出{few}处。"), {"num_highlights": few},
        ),
        "detectable_format:multiple_sections": (
            _said(lang, f"Make {few} sections that open with Section 1, Section 2 and so on.", f"分成{few}节，每节以“第一节”“第二节”这样开头。"),
            {"section_spliter": _said(lang, "Section", "节"), "num_sections": few},
        ),
        "detectable_format:json_format": (_said(lang, "Give the whole answer as JSON.", "整个回答用JSON格式。"), {}),
        "detectable_format:title": (
            _said(lang, "Start with a title in double angular brackets, such as <<my title>>.", "开头写一个标题，放在书名号里，比如《我的标题》。"), {},
        ),
        "combination:two_responses": (
            _said(lang, "Give two different answers with ****** between them.", "给出两个不同的回答，中间用******隔开。"), {},
        ),
        "combination:repeat_prompt": (
            _said(lang, "First repeat the request above word for word, then answer it.", "先一字不差地重复上面的请求，再作回答。"),
            {"prompt_to_repeat": repeat},
        ),
        "startend:end_checker": (
            _said(lang, f'End with the exact words "{end}"', f"最后一句必须是“{end}”"), {"end_phrase": end},
        ),
        "startend:quotation": (_said(lang, "Put the whole answer in double quotation marks.", "整个回答放在双引号里。"), {}),
        "punctuation:no_comma": (_said(lang, "Use no commas.", "不要用逗号和顿号。"), {}),
        "change_case:english_lowercase": ("Answer in English, in small letters only.", {}),
        "change_case:english_capital": ("Answer in English, in capital letters only.", {}),
        "change_case:capital_word_frequency": (
            f"Let words in all capital letters occur {more} {few} times.",
            {"capital_frequency": few, "capital_relation": relation},
        ),
    }  # fmt: skip
    return asked[name]


NAMES = (
    "keywords:existence", "keywords:frequency", "keywords:forbidden_words", "keywords:letter_frequency",
    "language:response_language", "length_constraints:number_words", "length_constraints:number_sentences",
    "length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders", "detectable_content:postscript", "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response", "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections", "detectable_format:json_format", "detectable_format:title",
    "combination:two_responses", "combination:repeat_prompt", "startend:end_checker", "startend:quotation",
    "punctuation:no_comma", "change_case:english_lowercase", "change_case:english_capital",
    "change_case:capital_word_frequency",
)  # fmt: skip
PARTNERS = ("keywords:existence", "keywords:forbidden_words", "length_constraints:number_sentences")
"""Second instructions, which go with any other."""


def instruction_rows() -> list[Row]:
    """100 prompts in each language, 50 of them with two instructions."""
    rows: list[Row] = []
    for lang in ("zh", "en"):
        rng = random.Random(f"rules {lang}")
        names = [name for name in NAMES if lang == "en" or not name.startswith("change_case")]
        order = itertools.cycle(names)
        asks = [ask.format(topic) for topic in TOPICS[lang] for ask in ASKS[lang]]
        for n in range(100):
            first = next(order)
            place = (n * 37) % 100  # each request once, topics apart
            topic, ask = TOPICS[lang][place // 4], asks[place]
            chosen = [first]
            if n % 2 and (partner := PARTNERS[n // 2 % 3]) != first:
                chosen.append(partner)
            drawn = rng.sample(WORDS[lang], 4)  # two a rule: none asks for what another forbids
            said = [
                rule(name, lang, n // 2 if name == first else n, topic, drawn[2 * at : 2 * at + 2])
                for at, name in enumerate(chosen)
            ]
            arguments = [
                {**given, "prompt_to_repeat": ask} if name == "combination:repeat_prompt" else given
                for name, (_, given) in zip(chosen, said, strict=True)
            ]
            gap = "" if lang == "zh" else " "
            rows.append(
                {
                    "key": f"{lang}-{n:03d}",
                    "lang": lang,
                    "prompt": ask + gap + gap.join(sentence for sentence, _ in said),
                    "instruction_id_list": chosen,
                    "kwargs": arguments,
                }
            )
    return rows


FIELDS: dict[str, tuple[str, str, Row]] = {
    "name": ("name", "姓名", {"type": "string", "minLength": 1}),
    "age": ("age in years", "年龄", {"type": "integer", "minimum": 0, "maximum": 150}),
    "city": ("city", "城市", {"type": "string", "minLength": 1}),
    "day": ("day as YYYY-MM-DD", "日期（YYYY-MM-DD）", {"type": "string", "format": "date"}),
    "mail": ("mail address", "邮箱地址", {"type": "string", "format": "email"}),
    "paid": ("whether it is paid", "是否已付款", {"type": "boolean"}),
    "items": (
        "two to four items",
        "两到四件物品",
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
    ),
    "price": ("price", "价格", {"type": "number", "exclusiveMinimum": 0}),
}
SHAPES = (("name", "age"), ("city", "day"), ("name", "mail"), ("items", "price"), ("price", "paid"), ("day", "items"),
          ("name", "city", "day"), ("mail", "paid"), ("age", "city"), ("name", "items", "paid"))  # fmt: skip
SCENES = {
    "en": ("a guest of the hotel", "a customer of the shop"),
    "zh": ("酒店的一位客人", "商店的一位顾客"),
}


def format_rows() -> list[Row]:
    """20 prompts in each language that ask for an object of given fields."""
    rows: list[Row] = []
    for lang in ("zh", "en"):
        for number, (scene, shape) in enumerate(itertools.product(SCENES[lang], SHAPES)):
            listed = "; ".join(f"{key}: {FIELDS[key][0]}" for key in shape)
            listed_zh = "；".join(f"{key}：{FIELDS[key][1]}" for key in shape)
            prompt = _said(
                lang,
                f"Invent {scene}. Answer with one JSON object and nothing else, with these fields: {listed}.",
                f"请虚构{scene}，只回答一个JSON对象，不要写别的内容，字段如下：{listed_zh}。",
            )
            schema = {
                "type": "object",
                "required": list(shape),
                "additionalProperties": False,
                "properties": {key: FIELDS[key][2] for key in shape},
            }
            rows.append({"id": f"format-{lang}-{number:02d}", "lang": lang, "prompt": prompt, "schema": schema})
    return rows


OPPOSITES = {
    "en": (("hot", "cold"), ("early", "late"), ("heavy", "light"), ("empty", "full"), ("open", "closed"), ("loud", "quiet"),
           ("wet", "dry"), ("rich", "poor"), ("sharp", "blunt"), ("near", "far")),
    "zh": (("热", "冷"), ("早", "晚"), ("重", "轻"), ("空", "满"), ("开", "关"), ("吵闹", "安静"), ("湿", "干"), ("富", "穷"),
           ("锋利", "钝"), ("近", "远")),
}  # fmt: skip
KINDS = {
    "en": (("fruit", ("apple", "pear", "cherry")), ("tool", ("hammer", "saw", "chisel")), ("animal", ("horse", "goat", "owl")),
           ("colour", ("green", "purple", "brown")), ("season", ("spring", "autumn", "winter")),
           ("metal", ("iron", "copper", "silver")), ("drink", ("tea", "milk", "juice")), ("number", ("seven", "twelve", "ninety")),
           ("instrument", ("violin", "drum", "flute")), ("vehicle", ("lorry", "bicycle", "tram"))),
    "zh": (("水果", ("苹果", "梨", "樱桃")), ("工具", ("锤子", "锯子", "凿子")), ("动物", ("马", "山羊", "猫头鹰")),
           ("颜色", ("绿色", "紫色", "棕色")), ("季节", ("春天", "秋天", "冬天")), ("金属", ("铁", "铜", "银")),
           ("饮料", ("茶", "牛奶", "果汁")), ("数字", ("七", "十二", "九十")), ("乐器", ("小提琴", "鼓", "长笛")),
           ("车辆", ("卡车", "自行车", "电车"))),
}  # fmt: skip


def choice_rows() -> list[Row]:
    """40 questions in each language: opposites, kinds, the odd one out, and sums."""
    rows: list[Row] = []
    for lang in ("zh", "en"):
        rng = random.Random(f"choices {lang}")
        asked: list[tuple[str, str, list[str]]] = []
        for word, opposite in OPPOSITES[lang]:
            others = rng.sample([two[1] for two in OPPOSITES[lang] if two[1] != opposite], 3)
            ask = _said(lang, f'Which word is the opposite of "{word}"?', f"“{word}”的反义词是哪一个？")
            asked.append((ask, opposite, others))
        for place, (kind, words) in enumerate(KINDS[lang]):
            rest = [one for n, (_, more) in enumerate(KINDS[lang]) if n != place for one in more]
            article = "an" if kind[0] in "aeiou" else "a"
            ask = _said(lang, f"Which of these is {article} {kind}?", f"下面哪一个属于“{kind}”？")
            asked.append((ask, rng.choice(words), rng.sample(rest, 3)))
            ask = _said(
                lang, f"Which of these words does not belong with {words[0]} and {words[1]}?",
                f"下面哪个词和“{words[0]}”“{words[1]}”不是一类？",
            )  # fmt: skip
            asked.append((ask, rng.choice(rest), [words[2]]))
        for place in range(10):
            one, two = 11 + 7 * place, 5 + 3 * place
            ask = _said(lang, f"What is {one} plus {two}?", f"请问{one}加上{two}等于多少？")
            asked.append((ask, str(one + two), [str(one + two + off) for off in (-10, 1, 10)]))
        for number, (ask, right, wrong) in enumerate(asked):
            choices = [right, *wrong]
            rng.shuffle(choices)
            rows.append(
                {
                    "id": f"choices-{lang}-{number:02d}",
                    "lang": lang,
                    "question": ask,
                    "choices": choices,
                    "answer": choices.index(right),
                }
            )
    return rows


def files() -> dict[str, list[Row]]:
    """The rows of every file, by path under the seed folder."""
    return {
        "rules/instructions.jsonl": instruction_rows(),
        "rules/format.jsonl": format_rows(),
        "rules/choices.jsonl": choice_rows(),
    }
