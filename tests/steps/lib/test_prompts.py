"""Prompt files: every shot mode, the sandbox, the chain of thought, the schema and the budget."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps.lib.errors import ConfigError, DataError
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.rows import Prompt
from steps.lib.scripted import ScriptedTeacher
from steps.lib.tokens import BOUND

EXAMPLES = [
    {"lang": lang, "prompt": f"{lang} question {n}", "answer": json.dumps({"n": n}), "thought": f"thought {n}"}
    for n in range(6)
    for lang in ("zh", "en")
]
SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
THINK = {"mode": "apart", "instruction": {"zh": "想一想，再写 ### 答案", "en": "Think, then write ### Answer"}}


def make(tmp_path: Path, pool: list[dict[str, Any]] | None = None, **values: Any) -> PromptFile:
    if pool is not None:
        (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
        values["examples"] = str(tmp_path / "examples.jsonl")
    path = tmp_path / "prompt.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(values, file)
    return PromptFile.read(path)


def row(text: str = "hello", lang: str = "en", **facts: Any) -> Prompt:
    return Prompt(id="r1", lang=lang, prompt=text, facts=json.dumps(facts))


def shown(file: PromptFile, prompt: Prompt, seed: int = 0) -> list[str]:
    return [turn["content"] for turn in file.messages(prompt, seed)[:-1] if turn["role"] == "user"]


def test_zero_shot(tmp_path: Path) -> None:
    file = make(tmp_path, system={"zh": "中", "en": "E"}, user="{{ lang }}: {{ prompt }} ({{ facts.intent }})")
    assert file.messages(row("{{ 7*7 }}", intent="refund"), 0) == [
        {"role": "system", "content": "E"},
        {"role": "user", "content": "en: {{ 7*7 }} (refund)"},
    ]
    assert file.messages(row("你好吗", "other", intent="x"), 0)[0]["content"] == "中"


def test_fixed_shots_are_the_first_of_the_file(tmp_path: Path) -> None:
    file = make(tmp_path, EXAMPLES, shots=3, pick="fixed")
    assert shown(file, row()) == ["zh question 0", "en question 0", "zh question 1"]
    assert [turn["role"] for turn in file.messages(row(), 0)] == ["user", "assistant"] * 3 + ["user"]


def test_random_shots_hang_on_seed_and_prompt_only(tmp_path: Path) -> None:
    file = make(tmp_path, EXAMPLES, shots=4, pick="random")
    assert shown(file, row("a"), 1) == shown(file, row("a").model_copy(update={"id": "other"}), 1)
    assert len({tuple(shown(file, row(text), seed)) for text in "abcdef" for seed in (0, 1)}) > 6


def test_many_shots_of_the_same_language(tmp_path: Path) -> None:
    file = make(tmp_path, EXAMPLES, shots=6, pick="same_language")
    assert sorted(shown(file, row("问", "zh"))) == [f"zh question {n}" for n in range(6)]
    with pytest.raises(ConfigError, match="shots is 7 but examples .* has 6 in zh"):
        make(tmp_path, EXAMPLES, shots=7, pick="same_language")


def test_the_row_itself_is_never_its_example(tmp_path: Path) -> None:
    file = make(tmp_path, EXAMPLES, shots=6, pick="same_language")
    rendered = file.render(row("en question 3"), 0)
    assert (rendered.shots, rendered.fewer) == (5, 1)
    assert "en question 3" not in [turn["content"] for turn in rendered.messages[:-1]]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ prompt.__class__.__mro__ }}", "refused"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "refused"),
        ("{% include '/etc/passwd' %}", "refused"),
        ("{{ promt }}", "promt, which is not defined"),
        ("{{ prompt", "refused"),
        ("{% for x in range(10**9) %}x{% endfor %}", "refused"),
    ],
)
def test_sandbox_and_unknown_names(tmp_path: Path, template: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"prompt.yaml, user is wrong.*{says}"):
        make(tmp_path, user=template)


def test_fact_that_a_row_lacks_names_the_file_and_the_row(tmp_path: Path) -> None:
    file = make(tmp_path, user="{{ prompt }} {{ facts.colour }}")
    with pytest.raises(DataError, match="prompt.yaml: user template fails on row r1.*colour"):
        file.messages(row(size=1), 0)


@pytest.mark.parametrize("user", ["", " \n", {"en": "{{ prompt }}"}, {"zh": " ", "en": "{{ prompt }}"}])
def test_a_turn_without_a_text_is_refused_in_either_language(tmp_path: Path, user: Any) -> None:
    with pytest.raises(ConfigError, match=r"user is wrong.*there is no text(; | in zh;)"):
        make(tmp_path, user=user)
    with pytest.raises(ConfigError, match="user is wrong.*because zh: template uses promt"):
        make(tmp_path, user={"zh": "{{ promt }}", "en": "{{ prompt }}"})


def test_all_problems_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"lang": "en", "prompt": "p", "answer": "a"}\n{"lang": "fr", "prompt": "p"}\n')
    with pytest.raises(ConfigError) as caught:
        make(
            tmp_path,
            user="{{ x }}",
            examples=str(tmp_path / "bad.jsonl"),
            shots=-1,
            schema={"type": "nonsense"},
            shotz=1,
        )
    fields = ["user", "examples", "shots", "schema", "shotz"]
    assert len(caught.value.problems) == len(fields)
    for field in fields:
        assert any(f", {field} is wrong" in problem for problem in caught.value.problems), field
    assert "line 2 lang" in str(caught.value) and "line 2 answer" in str(caught.value)


def test_examples_must_keep_the_schema(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: answer breaks the schema"):
        make(tmp_path, [EXAMPLES[0], {**EXAMPLES[1], "answer": '{"n": "one"}'}], shots=1, pick="fixed", schema=SCHEMA)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('{"n": 1}', ()),
        (' {"n": 1}\n', ()),
        ('Sure: {"n": 1}', ("repaired",)),
        ('```json\n{"n": 1}\n```', ("repaired",)),
        ('Sure: {"n": "1"}', ("repaired", "schema")),
        ('{"n": 1} or {"n": 2}', ("unparsed",)),
        ("I'm sorry, but I can't help with that. {\"n\": 1}", ("repaired", "refusal")),
        ('{"n": 1, "n": 2}', ("unparsed",)),
        ('{"n": NaN}', ("unparsed",)),
        ('{"n": "1"}', ("schema",)),
        ('{"n": 1, "m": 2}', ("schema",)),
        ("", ("empty",)),
        ('<think>hm</think>{"n": 1}', ("think_tag",)),
        ("<think>cut off", ("think_tag", "empty")),
        ("I'm sorry, but I can't help with that.", ("unparsed", "refusal")),
    ],
)
def test_flags_of_replies(tmp_path: Path, text: str, flags: tuple[str, ...]) -> None:
    assert make(tmp_path, schema=SCHEMA).parse(text).flags == flags


@pytest.mark.parametrize(
    "text",
    ["I cannot help with this request.", "抱歉，我无法提供这个信息。", "As an AI language model, I cannot tell."],
)
def test_refusals_in_both_languages(tmp_path: Path, text: str) -> None:
    assert make(tmp_path).parse(text).flags == ("refusal",)
    assert make(tmp_path).parse("The shop is sorry for the delay; we can help.").flags == ()


MODES = {"apart": ("42", "Six times seven."), "strip": ("42", ""), "keep": ("Six times seven.\n### Answer: 42", "")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shots", [0, 2])
def test_chain_of_thought_modes(tmp_path: Path, mode: str, shots: int) -> None:
    """Zero-shot and few-shot; the examples think in their own language, the row is told in its own."""
    file = make(tmp_path, EXAMPLES, shots=shots, pick="fixed", chain_of_thought={**THINK, "mode": mode})
    sent = file.messages(row(), 0)
    assert sent[0] == {"role": "system", "content": "Think, then write ### Answer"}
    assert file.messages(row("你好", "zh"), 0)[0]["content"] == "想一想，再写 ### 答案"
    thoughts = [turn["content"] for turn in sent if turn["role"] == "assistant"]
    assert thoughts == ['thought 0\n### 答案\n{"n": 0}', 'thought 0\n### Answer\n{"n": 0}'][:shots]
    parsed = file.parse("Six times seven.\n### Answer: 42")
    assert (parsed.answer, parsed.thought, parsed.flags, parsed.problem) == (*MODES[mode], (), None)
    chinese = file.parse("六乘七。\n### 答案：\n42")
    assert chinese.answer == ("六乘七。\n### 答案：\n42" if mode == "keep" else "42") and chinese.flags == ()
    for text in ("just 42", "### Answer\n1\n### Answer\n2"):
        parsed = file.parse(text)
        assert parsed.flags == ("unparsed",) and parsed.problem and "### Answer" in parsed.problem.en
    assert file.parse("thinking\n### Answer\n").flags == ("empty",)


def test_a_thought_before_json(tmp_path: Path) -> None:
    broken = "Six.\n### Answer\n{'n': 42,}"
    for mode, answer, thought in (
        ("apart", '{"n": 42}', "Six."),
        ("strip", '{"n": 42}', ""),
        ("keep", 'Six.\n### Answer\n{"n": 42}', ""),
    ):
        parsed = make(tmp_path, schema=SCHEMA, chain_of_thought={**THINK, "mode": mode}).parse(broken)
        assert (parsed.answer, parsed.thought, parsed.value) == (answer, thought, {"n": 42})
        assert parsed.flags == ("repaired",) and parsed.repairs == ("quotes", "commas")
    own = make(tmp_path, schema=SCHEMA, chain_of_thought={**THINK, "mode": "apart"}).parse(
        '<think>hm</think>Six.\n### Answer\n{"n": 42}'
    )
    assert (own.thought, own.flags) == ("hm\nSix.", ("think_tag",))


def test_no_thought_is_shown_where_none_is_asked_for(tmp_path: Path) -> None:
    sent = make(tmp_path, EXAMPLES, shots=2, pick="fixed").messages(row(), 0)
    assert "thought" not in json.dumps(sent)


def test_chain_of_thought_wants_its_marker_and_thoughts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not name the marker"):
        make(tmp_path, chain_of_thought={"mode": "apart", "instruction": {"zh": "想", "en": "think"}})
    bare = [{key: value for key, value in example.items() if key != "thought"} for example in EXAMPLES]
    with pytest.raises(ConfigError, match="has no thought"):
        make(tmp_path, bare, shots=1, pick="fixed", chain_of_thought=THINK)


def test_over_budget(tmp_path: Path) -> None:
    long = [{**example, "prompt": example["prompt"] + " x" * 30} for example in EXAMPLES]  # about 100 bytes a shot
    file = make(tmp_path, long, shots=5, max_context_tokens=300, over_budget="drop_examples")
    rendered = file.render(row(), 0)
    assert rendered.shots + rendered.fewer == 5 and 1 <= rendered.shots < 5
    assert rendered.tokens == BOUND.turns(rendered.messages) <= 300
    assert BOUND.turns(make(tmp_path, long, shots=rendered.shots + 1).messages(row(), 0)) > 300  # one more does not fit
    with pytest.raises(OverBudget, match="row r1 is too long"):
        file.render(row("y" * 2000), 0)
    with pytest.raises(OverBudget, match="with 5 examples"):
        make(tmp_path, long, shots=5, max_context_tokens=300).render(row(), 0)


def test_a_value_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    """Never a number, as UltraFeedback's scores once were."""
    file = make(tmp_path, schema={"type": "integer", "maximum": 5})
    assert file.parse("4").value == 4
    for text in ("4/5", "Score: 4", "four", "10", '"4"', "4.5", "", "[4]"):
        assert file.parse(text).value is None, text
    assert make(tmp_path).parse("4").value is None  # no schema: text


@pytest.mark.parametrize(
    ("text", "zh", "en"),
    [
        (
            "five",
            "它不是一个单独的 JSON 值（第 1 个字符处",
            "it is not one JSON value and nothing else (at character 1",
        ),
        ('{"n": "x"}', '$.n：类型必须是 "integer"', '$.n: its type must be "integer"'),
        ("{}", '$：缺少必需的字段 ["n"]', '$: these fields are required: ["n"]'),
        ('{"n": 1, "m": 2}', '$：只能有字段 ["n"]', '$: it may have no other fields than ["n"]'),
        ('{"n": 1, "n": 2}', "它不是一个 JSON 值", "it is not one JSON value (got the key 'n' twice"),
        ("", "没有答案", "there is no answer"),
    ],
)
def test_what_is_wrong_is_said_in_both_languages(tmp_path: Path, text: str, zh: str, en: str) -> None:
    problem = make(tmp_path, schema=SCHEMA).parse(text).problem
    assert problem and problem.zh.startswith(zh) and problem.en.startswith(en)


def test_asking_again(tmp_path: Path) -> None:
    file = make(tmp_path, schema=SCHEMA, repairs=2)
    assert file.repairs == 2 and make(tmp_path).repairs == 0
    for asked, lang, says in ((row("怎么办", "zh"), "zh", "$.n：类型"), (row("what now"), "en", "$.n: its type")):
        rendered = file.render(asked, 0)
        said = '{"n": "{{ 7*7 }}"}'
        turns = file.retry(rendered.messages, said, file.parse(said), rendered.lang)
        assert turns[: len(rendered.messages)] == rendered.messages and turns is not rendered.messages
        assert turns[-2] == {"role": "assistant", "content": said}
        assert turns[-1]["role"] == "user" and says in turns[-1]["content"] and rendered.lang == lang
        assert turns == file.retry(rendered.messages, said, file.parse(said))
        again = file.retry(turns, "", file.parse(""), rendered.lang)  # a model must not see two turns of one role
        assert [turn["role"] for turn in again] == [turn["role"] for turn in turns]
        assert again[-1]["content"].startswith(turns[-1]["content"])
    with pytest.raises(ValueError, match="not asked for again"):
        file.retry(rendered.messages, '{"n": 1}', file.parse('{"n": 1}'))
    own = make(tmp_path, schema=SCHEMA, repair={"zh": "错：{{ problem }}", "en": "Wrong: {{ problem }}"})
    assert own.retry([{"role": "user", "content": "x"}], "{}", own.parse("{}"))[-1]["content"].startswith("Wrong: $: ")
    with pytest.raises(ConfigError, match="repair is wrong.*prompt, which is not defined"):
        make(tmp_path, repair={"zh": "{{ prompt }}", "en": "x"})


def test_variables_of_recipes(tmp_path: Path) -> None:
    file = make(
        tmp_path,
        variables=["document", "persona"],
        system={"zh": "你是{{ persona }}", "en": "You are {{ persona }}"},
        user="{{ document }}\n{{ prompt }}",
    )
    seen = {"document": "{{ 7*7 }} {% for x in [] %}", "persona": "{{ lang }}", "unasked": 1}
    system, user = file.render(row("{{ prompt }}"), 0, seen=seen).messages
    assert system["content"] == "You are {{ lang }}"
    assert user["content"] == "{{ 7*7 }} {% for x in [] %}\n{{ prompt }}"
    assert file.render(row("long"), 0, seen={**seen, "prompt": "short"}).messages[1]["content"].endswith("\nshort")
    with pytest.raises(DataError, match=r"system template fails on row r1: got 'persona' is undefined.*variables \[\]"):
        file.render(row(), 0)
    with pytest.raises(ConfigError, match="persona, which is not defined"):
        make(tmp_path, system={"zh": "{{ persona }}", "en": "x"})
    with pytest.raises(ConfigError, match="variables is wrong.*'prompt' cannot be a name"):
        make(tmp_path, variables=["prompt"])
    lists = make(tmp_path, variables=["scores"], user="{{ scores.a + 1 }} {% for x in scores.b %}{{ x }}{% endfor %}")
    assert lists.render(row(), 0, seen={"scores": {"a": 1, "b": "xy"}}).messages[0]["content"] == "2 xy"
    with pytest.raises(ConfigError, match="unsafe"):
        make(tmp_path, variables=["d"], user="{{ d.a.__class__ }}")
    late = make(tmp_path, variables=["d"], user="{{ d[prompt] }}")
    with pytest.raises(DataError, match="row r1"):
        late.render(row("__class__"), 0, seen={"d": {"a": 1}})


def test_examples_need_the_variables_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 1: user template fails on example .*document"):
        make(tmp_path, EXAMPLES, shots=1, variables=["document"], user="{{ document }}{{ prompt }}")
    given = [{**example, "seen": {"document": "D "}} for example in EXAMPLES]
    file = make(tmp_path, given, shots=1, pick="fixed", variables=["document"], user="{{ document }}{{ prompt }}")
    assert file.render(row(), 0, seen={"document": ""}).messages[0]["content"] == "D zh question 0"


def test_rendered_says_what_was_shown(tmp_path: Path) -> None:
    file = make(tmp_path, EXAMPLES, shots=2, pick="fixed", system={"zh": "中", "en": "E"})
    rendered = file.render(row(), 0)
    assert [example.prompt for example in rendered.examples] == ["zh question 0", "en question 0"]
    assert rendered.tokens == BOUND.turns(rendered.messages)
    assert file.render(row(), 0, len).tokens < file.render(row("好" * 9, "zh"), 0, len).tokens
    rendered.messages[0]["content"] = rendered.messages[1]["content"] = "changed by a caller"
    assert file.render(row(), 0).messages[1]["content"] == "zh question 0"


@pytest.mark.parametrize(
    ("values", "shown_langs"),
    [
        ({"pick": "fixed", "examples_language": "row"}, {"en"}),
        ({"pick": "random", "examples_language": "row"}, {"en"}),
        ({"pick": "fixed"}, {"zh", "en"}),
        ({"pick": "similar"}, {"en"}),
        ({"pick": "diverse"}, {"en"}),
        ({"pick": "diverse", "examples_language": "any"}, {"zh", "en"}),
        ({"pick": "similar", "examples_language": "any"}, {"zh", "en"}),
    ],
)
def test_language_of_examples(tmp_path: Path, values: dict[str, str], shown_langs: set[str]) -> None:
    rendered = make(tmp_path, EXAMPLES, shots=6, **values).render(row("question"), 0)
    assert {example.lang for example in rendered.examples} == shown_langs and rendered.shots == 6


def test_same_language_and_any_language_contradict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pick is same_language but examples_language is any"):
        make(tmp_path, EXAMPLES, shots=1, examples_language="any")


def test_the_nearest_examples_stay_when_not_all_fit(tmp_path: Path) -> None:
    pool = [{"lang": "en", "prompt": f"{'kettle ' * n}{'toaster ' * (6 - n)}", "answer": "x" * 40} for n in range(6)]
    pool += [{**one, "lang": "zh"} for one in pool]
    file = make(tmp_path, pool, shots=4, pick="similar", max_context_tokens=280, over_budget="drop_examples")
    rendered = file.render(row("kettle kettle kettle kettle kettle"), 0)
    assert 0 < rendered.shots < 4 and rendered.shots + rendered.fewer == 4 and rendered.tokens <= 280
    everything = make(tmp_path, pool, shots=4, pick="similar").render(row("kettle kettle kettle kettle kettle"), 0)
    assert rendered.examples == everything.examples[-rendered.shots :]


def test_what_could_be_summarised(tmp_path: Path) -> None:
    file = make(tmp_path, variables=["document"], user="{{ document }} {{ prompt }}", max_context_tokens=200,
                over_budget="summarise")  # fmt: skip
    long = "文" * 100
    with pytest.raises(OverBudget) as caught:
        file.render(row("short"), 0, seen={"document": long, "unused": "x" * 999})
    over = caught.value
    assert (over.variable, over.text, over.limit) == ("document", long, 200) and over.size > 300 and over.room > 0
    assert "row r1 is too long" in str(over)
    fitting = file.render(row("short"), 0, seen={"document": "x" * over.room})
    assert fitting.tokens == 200
    with pytest.raises(OverBudget):
        file.render(row("short"), 0, seen={"document": "x" * (over.room + 1)})
    with pytest.raises(OverBudget) as caught:
        file.render(row("y" * 300), 0, seen={"document": "d"})
    assert (caught.value.variable, caught.value.text) == ("prompt", "y" * 300)
    with pytest.raises(OverBudget) as caught:  # no summary of one would be enough
        file.render(row("y" * 300), 0, seen={"document": "d" * 301})
    assert (caught.value.variable, caught.value.room) == ("", 0)


def test_the_digest_of_the_files_of_before() -> None:
    """New fields at their defaults change no key, and the same rows are asked in the same words."""
    digests = {path: PromptFile.read(Path(f"configs/prompts/{path}.yaml")).digest()[:12] for path in
               ("aftersales-cot", "aftersales", "plain")}  # fmt: skip
    assert digests == {"aftersales-cot": "0374f1bb78f0", "aftersales": "b4717ebdc924", "plain": "f3ac7271f2e9"}


def test_every_field_changes_the_digest(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "variables": ["document"], "system": {"zh": "中", "en": "E"}, "user": "{{ prompt }}!", "shots": 2, "pick": "random",
        "examples_language": "row", "chain_of_thought": {**THINK}, "schema": {"type": "object"}, "repairs": 1,
        "repair": {"zh": "错", "en": "wrong"}, "max_context_tokens": 9999, "over_budget": "summarise",
    }  # fmt: skip
    names = {field.alias or name for name, field in PromptFile.model_fields.items()}
    assert names == {*values, "examples"} and all(field.description for name, field in PromptFile.model_fields.items()
                                                  if name != "chain_of_thought")  # fmt: skip
    base = make(tmp_path, EXAMPLES, shots=1).digest()
    for name, value in values.items():
        assert make(tmp_path, EXAMPLES, **{"shots": 1, name: value}).digest() != base, name


def test_digest_is_of_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = make(tmp_path / "a", EXAMPLES, shots=1, schema=SCHEMA)
    with (tmp_path / "a" / "prompt.yaml").open("a") as file:
        file.write("# a comment\n")
    assert one.digest() == PromptFile.read(tmp_path / "a" / "prompt.yaml").digest()
    (tmp_path / "b" / "schema.yaml").write_text("deep: {schema: " + json.dumps(SCHEMA) + "}\n")
    assert (
        one.digest() == make(tmp_path / "b", EXAMPLES, shots=1, schema=f"{tmp_path}/b/schema.yaml#deep.schema").digest()
    )
    assert one.digest() != make(tmp_path / "b", EXAMPLES[1:], shots=1, schema=SCHEMA).digest()
    assert one.digest() != make(tmp_path / "b", EXAMPLES, shots=2, schema=SCHEMA).digest()


def test_prompt_files_of_the_repository() -> None:
    folder = Path("configs/prompts")
    files = [path for path in folder.glob("*.yaml") if path.name not in ("judge.yaml", "rubric.yaml")]
    assert {path.stem for path in files} >= {"aftersales", "aftersales-cot", "plain"}
    for path in files:
        file = PromptFile.read(path)
        if file.variables:  # of a recipe's stage
            continue
        for lang, text in (("zh", "我要退货"), ("en", "I want a refund")):
            turns = file.messages(row(text, lang), 0)
            assert turns[-1] == {"role": "user", "content": text}
            assert len(turns) == 2 + 2 * file.shots


def test_what_the_scripted_teacher_breaks_is_mended_or_dropped() -> None:
    """It plants code fences, text before, commas, Python's quotes (all mended) and missing fields (never made up)."""
    teacher = ScriptedTeacher(Path("data/seed/task/teacher.yaml"))
    file = PromptFile.read(Path("configs/prompts/aftersales.yaml"))
    lines = Path("data/seed/task/prompts_train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    texts = [teacher.answer(json.loads(line)["prompt"], seed=0, sample=0) for line in lines]
    parsed = [file.parse(text) for text in texts]
    assert {repair for one in parsed for repair in one.repairs} == {"fence", "around", "commas", "quotes", "words"}
    assert {one.flags for one in parsed} == {(), ("repaired",), ("schema",)}
    for text, one in zip(texts, parsed, strict=True):
        if one.flags == ("schema",):
            assert one.value is None and one.problem and '"order_number"' in one.problem.en and text == one.answer
        else:
            assert json.loads(one.answer) == one.value and one.value["reply"] in text
