"""Prompt files: every shot mode, the sandbox, the chain of thought, the schema and the budget."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps.lib.errors import ConfigError, DataError
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.rows import Prompt
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


def test_fact_that_a_row_lacks_names_the_row(tmp_path: Path) -> None:
    file = make(tmp_path, user="{{ prompt }} {{ facts.colour }}")
    with pytest.raises(DataError, match="row r1.*colour"):
        file.messages(row(size=1), 0)


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
    "text", ["I cannot help with this request.", "抱歉，我无法提供这个信息。", "As an AI language model, I ..."]
)
def test_refusals_in_both_languages(tmp_path: Path, text: str) -> None:
    assert make(tmp_path).parse(text).flags == ("refusal",)
    assert make(tmp_path).parse("The shop is sorry for the delay; we can help.").flags == ()


@pytest.mark.parametrize(
    ("mode", "answer", "thought"),
    [("apart", "42", "Six times seven."), ("strip", "42", ""), ("keep", "Six times seven.\n### Answer: 42", "")],
)
def test_chain_of_thought_modes(tmp_path: Path, mode: str, answer: str, thought: str) -> None:
    file = make(tmp_path, EXAMPLES, shots=1, pick="fixed", chain_of_thought={**THINK, "mode": mode})
    sent = file.messages(row(), 0)
    assert sent[0] == {"role": "system", "content": "Think, then write ### Answer"}
    assert sent[2]["content"] == 'thought 0\n### 答案\n{"n": 0}'
    parsed = file.parse("Six times seven.\n### Answer: 42")
    assert (parsed.answer, parsed.thought, parsed.flags) == (answer, thought, ())
    assert file.parse("just 42").flags == ("unparsed",)
    assert file.parse("### Answer\n1\n### Answer\n2").flags == ("unparsed",)


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
    files = [path for path in folder.glob("*.yaml") if path.name != "judge.yaml"]
    assert {path.stem for path in files} >= {"aftersales", "aftersales-cot", "plain"}
    for path in files:
        file = PromptFile.read(path)
        for lang, text in (("zh", "我要退货"), ("en", "I want a refund")):
            turns = file.messages(row(text, lang), 0)
            assert turns[-1] == {"role": "user", "content": text}
            assert len(turns) == 2 + 2 * file.shots
