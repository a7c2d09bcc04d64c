"""Prompt files and recipes that do not go together: every mistake is named, with its file and field, before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai_server import serve
from recipe_runs import CASES, RECIPES, ROOT, faithful, go, recipe

from steps.generate import GenerateConfig, externals
from steps.lib.config import key_view
from steps.lib.errors import ConfigError
from steps.lib.recipes import digests
from steps.lib.rows import Text, Thumb

QUESTIONS = "variables: [document, count, fence]\nuser: '{{ document }} {{ count }} {{ fence }}'\n"


def test_a_variable_that_is_asked_for_first_may_be_missing(tmp_path: Path) -> None:
    file, answering = tmp_path / "questions.yaml", ROOT / "configs/prompts/documents-answer.yaml"
    asked = QUESTIONS.replace("fence]", "fence, colour]")
    file.write_text(asked.replace("user: '", "user: '{% if colour is defined %}{{ colour }}{% endif %}"))
    recipe("documents", questions=str(file)).read(answering)
    file.write_text(asked.replace("user: '", "user: '{{ colour }}"))
    with pytest.raises(ConfigError, match=r"recipe.questions \(.*questions.yaml\) uses colour: got a template with it"):
        recipe("documents", questions=str(file)).read(answering)


def test_prompt_files_that_do_not_fit_are_named_together_before_anything_is_asked(tmp_path: Path) -> None:
    blind, missing = tmp_path / "blind.yaml", tmp_path / "none.yaml"
    blind.write_text("variables: [document]\nuser: {zh: '{{ document }}', en: 'hello'}\n")
    with serve(faithful) as server, pytest.raises(ConfigError) as caught:
        go("documents", server.url, tmp_path, questions=str(blind), check=str(missing), prompt_file=ROOT / "configs/prompts/plain.yaml")  # fmt: skip
    text = str(caught.value)
    assert not server.bodies
    assert "configs/prompts/plain.yaml) does not use document" in text and "none.yaml cannot be read" in text
    assert "recipe.questions" in text and "blind.yaml) does not use document, fence" in text


def test_shapes_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlap_tokens is 9 and chunk_tokens 9"):
        recipe("documents", chunk_tokens=9, overlap_tokens=9)
    with pytest.raises(ValueError, match="bogus"):
        RECIPES.validate_python({"kind": "bogus"})
    assert recipe("personas", read_as="text").rows is Text and recipe("correct").rows is Thumb
    views = {json.dumps(key_view(GenerateConfig.model_validate({"recipe": recipe(kind)}))) for kind in CASES}
    assert len(views) == len(CASES)
    for kind in CASES:
        answering = ROOT / f"configs/prompts/{CASES[kind][2]}.yaml"
        every = {"prompt file", *(f"recipe {name}" for name in recipe(kind).files())}
        assert set(digests(recipe(kind), answering)) == every - {"recipe summarise"}  # which nothing asks
        shortening = tmp_path / f"{kind}.yaml"
        shortening.write_text(answering.read_text() + "max_context_tokens: 900\nover_budget: summarise\n")
        assert set(digests(recipe(kind), shortening)) == every


def test_only_what_answers_may_ask_for_summaries(tmp_path: Path) -> None:
    file = tmp_path / "depth.yaml"
    file.write_text(
        (ROOT / "configs/prompts/evolve-depth.yaml").read_text() + "max_context_tokens: 900\nover_budget: summarise\n"
    )
    with serve(faithful) as server, pytest.raises(ConfigError, match="over_budget is wrong: got summarise"):
        go("evolve", server.url, tmp_path, depth=str(file))
    assert not server.bodies


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            QUESTIONS.replace("{{ document }}", "{{ documnt }}"),
            "questions.yaml, user is wrong: .*documnt, which is not defined",
        ),
        (
            QUESTIONS.replace("document", "documents"),
            r"questions.yaml\) does not use document: .*\n.*uses documents: .* are count, document, fence",
        ),
        (
            QUESTIONS.replace("'{{", "{en: '{{").replace("}}'", "}}'}"),
            "questions.yaml, user is wrong: .* no text in zh",
        ),
        (f"{QUESTIONS}shot: 1\n", "questions.yaml, shot is wrong: .*did you mean 'shots'"),
        (
            f"{QUESTIONS}shots: 1\nexamples: EXAMPLES\n",
            "questions.yaml, examples is wrong: .*line 1 answer: Field required",
        ),
        (
            f"{QUESTIONS}schema: {{type: object, properties: {{asks: {{}}}}}}\n",
            r"questions.yaml\), schema is wrong: got the fields asks",
        ),
        (f"{QUESTIONS}over_budget: summarise\n", r"questions.yaml\), over_budget is wrong: got summarise"),
    ],
)
def test_what_a_newcomer_gets_wrong_is_known_from_the_key_on(text: str, says: str, tmp_path: Path) -> None:
    """The key is made before a step runs, so a dry run says it as well."""
    file, examples = tmp_path / "questions.yaml", tmp_path / "examples.jsonl"
    examples.write_text('{"lang": "en", "prompt": "p"}\n')
    file.write_text(text.replace("EXAMPLES", str(examples)), encoding="utf-8")
    config = GenerateConfig.model_validate(
        {
            "recipe": recipe("documents", questions=str(file)),
            "prompt_file": ROOT / "configs/prompts/documents-answer.yaml",
        }
    )
    with pytest.raises(ConfigError, match=says):
        externals(config)


def test_a_check_without_a_schema_could_never_say_yes(tmp_path: Path) -> None:
    file = tmp_path / "check.yaml"
    file.write_text(
        "variables: [document, answer, fence]\nuser: '{{ prompt }} {{ document }} {{ answer }} {{ fence }}'\n"
    )
    with pytest.raises(ConfigError, match=r"recipe.check \(.*check.yaml\), schema is missing"):
        recipe("documents", check=str(file)).read(ROOT / "configs/prompts/documents-answer.yaml")
