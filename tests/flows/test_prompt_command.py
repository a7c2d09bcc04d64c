"""``prefline prompt``: the exact messages of a row, their tokens, the list of files, and its errors, through the shell."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from looking import prefline
from minimal import ROOT, TINY, texts

from flows.commands import prompt
from steps.lib.errors import ConfigError, DataError, PreflineError
from steps.lib.prompts import PromptFile
from steps.lib.rows import Prompt
from steps.lib.tiny import TinyConfig, build_tokenizer
from steps.lib.tokens import Tokenizer

NUMBER = 20
"""A row that is not among the examples, which are the first rows of the same file."""
ROW = json.loads((ROOT / "data/seed/task/prompts_train.jsonl").read_text(encoding="utf-8").splitlines()[NUMBER - 1])


def page(capsys: pytest.CaptureFixture[str], *words: Any, **named: Any) -> dict[str, Any]:
    capsys.readouterr()
    prompt.render(*words, **named, json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def source(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"generate.prompts=[{{name: own, path: {path}}}]"


def refused(kind: type[PreflineError], *words: Any, says: str, **named: Any) -> None:
    """The error says what, got, because and what to do."""
    with pytest.raises(kind, match=says) as caught:
        prompt.render(*words, **named)
    assert "got " in str(caught.value) and "because" in str(caught.value) and ";" in str(caught.value)


def test_render_from_the_shell() -> None:
    done = prefline("prompt", "render", "aftersales", "--row", str(NUMBER))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert ROW["prompt"] in text and "4 (same_language)" in text
    assert re.findall(r"^(system|user|assistant)( \(example\))? ─", text, re.M) == [
        ("system", ""), *[("user", " (example)"), ("assistant", " (example)")] * 4, ("user", ""),
    ]  # fmt: skip
    assert re.search(r"tokens +[\d,]+ of 4,096 \(drop_examples\), by no tokenizer: at most", text)


def test_list_from_the_shell() -> None:
    done = prefline("prompt", "list")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()}
    for path in (ROOT / "configs" / "prompts").iterdir():
        assert rows[path.stem][1:3] == ["zh", "en"], path
    digest = PromptFile.read(Path("configs/prompts/aftersales.yaml")).digest()
    assert rows["aftersales"][3:5] == ["4", "same_language"] and rows["aftersales"][-1] == digest[:12]


def test_an_error_from_the_shell() -> None:
    done = prefline("prompt", "render", "aftersale")
    assert done.returncode == 2 and "did you mean 'aftersales'?" in done.stderr and "Traceback" not in done.stderr


def test_json_is_what_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    shown = page(capsys, "aftersales-similar", row=NUMBER)
    file = PromptFile.read(Path("configs/prompts/aftersales-similar.md"))
    row = Prompt(id=ROW["id"], lang=ROW["lang"], prompt=ROW["prompt"])
    rendered = file.render(row, 0)
    assert shown["messages"] == rendered.messages and shown["tokens"] == rendered.tokens
    assert shown["digest"] == file.digest() and shown["schema"] == file.schema_
    assert [one["prompt"] for one in shown["examples"]] == [one.prompt for one in rendered.examples]
    lines = Path("data/seed/prompts/task/examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(lines[one["line"] - 1])["prompt"] == one["prompt"] for one in shown["examples"])
    near = [one["similarity"] for one in shown["examples"]]
    assert near == sorted(near)


def test_seed_and_sources_are_those_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = source(tmp_path, '{"prompt": "one"}', '{"prompt": 7}', '{"prompt": "<\\u001b[31m>{{ 7*7 }}"}')
    one = page(capsys, "aftersales", rows)
    assert one["messages"][-1]["content"] == "one" and one["row"]["source"] == "own"
    assert page(capsys, "aftersales", rows, "seed=5")["messages"] != one["messages"]
    assert page(capsys, "plain", rows, row=3)["messages"][-1]["content"] == "<\x1b[31m>{{ 7*7 }}"
    prompt.render("plain", rows, row=3)
    assert r"<\x1b[31m>{{ 7*7 }}" in capsys.readouterr().out  # a row does not command the terminal
    refused(DataError, "plain", rows, row=2, says=r"row 2 cannot be shown: got .*prompts.jsonl:2\), because wrong_type")
    for number in (4, 0, -1):
        refused(ConfigError, "plain", rows, row=number, says=rf"row {number} is not there: got 3 rows")


def test_tokens_by_the_tokenizer_of_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tokenizer"
    build_tokenizer([row.text for row in texts("general", 24)], TinyConfig(**TINY)).save_pretrained(folder)
    teachers = (
        "generate.teachers=[{kind: scripted, path: data/seed/task/teacher.yaml}, {kind: http, name: far, endpoint: e, "
        f"base_url: http://x/v1, model: m, tokenizer: {folder}}}]"
    )
    shown = page(capsys, "plain", teachers, teacher="far")
    assert shown["tokens"] == Tokenizer(str(folder)).turns(shown["messages"]) and str(folder) in shown["counted_by"]
    assert page(capsys, "plain", teachers)["tokens"] != shown["tokens"]
    refused(ConfigError, "plain", teachers, teacher="near", says="teacher 'near' is not there: got .*scripted, far")


def test_variables_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.md"
    path.write_text(
        "---\nvariables: [document, persona]\n---\n## user\n{{ document }}|{{ persona }}\n", encoding="utf-8"
    )
    (tmp_path / "text.txt").write_text("{{ 1 }} 文", encoding="utf-8")
    given = [f"document=@{tmp_path / 'text.txt'}", "persona=a=b"]
    assert page(capsys, str(path), set=given)["messages"] == [{"role": "user", "content": "{{ 1 }} 文|a=b"}]
    refused(
        ConfigError,
        str(path),
        says="lacks values: got none for document, persona.*--set document=TEXT --set persona=TEXT",
    )
    with pytest.raises(ConfigError) as caught:
        prompt.render(str(path), set=["persons=x", f"document=@{tmp_path / 'none'}", "persona"])
    assert len(caught.value.problems) == 3


def test_a_row_over_the_budget(tmp_path: Path) -> None:
    rows = source(tmp_path, json.dumps({"prompt": "long " * 2000}))
    refused(
        DataError,
        "aftersales",
        rows,
        says="is too long: got .* tokens with 4 examples, because max_context_tokens is 4096",
    )


def test_no_generate() -> None:
    refused(ConfigError, "plain", "generate=null", says="generate: null")


def test_list_names_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "configs" / "prompts", tmp_path / "prompts")
    (tmp_path / "prompts" / "broken.yaml").write_text("shots: -1\n")
    (tmp_path / "prompts" / "half.yaml").write_text('system: {zh: "", en: Hello}\n')
    (tmp_path / "prompts" / "plain.md").write_text("---\n---\n")
    monkeypatch.setattr(prompt, "FOLDER", tmp_path / "prompts")
    with pytest.raises(ConfigError, match=r"broken.yaml, shots is wrong"):
        prompt.list_(json=True)
    entries = {entry["path"].rpartition("/")[2]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["half.yaml"]["languages"] == ["en"] and entries["aftersales.yaml"]["languages"] == ["zh", "en"]
    assert "problem" in entries["broken.yaml"] and entries["judge.yaml"]["digest"]
    refused(ConfigError, "plain", says="not clear: got .*plain.md and .*plain.yaml")


def test_a_document_of_the_recipe_is_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"text": "The mill turns seven times."}) + "\n", encoding="utf-8")
    words = [f"generate.prompts=[{{name: own, path: {path}}}]", "generate.recipe={kind: documents}"]
    shown = page(capsys, "plain", *words)
    assert shown["messages"][-1]["content"] == "The mill turns seven times."
