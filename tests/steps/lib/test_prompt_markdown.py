"""Prompt files in Markdown: the same model and digest as in YAML, and every mistake with its line."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps.lib.errors import ConfigError
from steps.lib.prompts import PromptFile

VALUES: dict[str, Any] = {
    "variables": ["document"],
    "shots": 1,
    "examples": "data/seed/prompts/task/examples.jsonl",
    "pick": "similar",
    "repairs": 2,
    "system": {
        "zh": "你是客服。\n\n### 规则\n- 一\n- 二",
        "en": "You are a desk.\n\n```\n## not a heading\n```\n# nor this",
    },
    "user": {"zh": "{{ document if document is defined }}{{ prompt }}", "en": "{{ prompt }}  \nline"},
    "chain_of_thought": {
        "mode": "none",
        "instruction": {"zh": "想一想", "en": "think"},
        "marker": {"zh": "### 答", "en": "### A"},
    },
    "repair": {"zh": "错：{{ problem }}", "en": "Wrong: {{ problem }}"},
}
MARKDOWN = """\
---
# a comment
variables: [document]
shots: 1
examples: data/seed/prompts/task/examples.jsonl
pick: similar
repairs: 2
chain_of_thought: {mode: none}
---

## system (zh)

你是客服。

### 规则
- 一
- 二

## system (en)
You are a desk.

```
## not a heading
```
# nor this

## user (zh)
{{ document if document is defined }}{{ prompt }}
## user (en)
{{ prompt }}  
line
##  instruction (zh)
想一想
## instruction  (en)
think
## marker (zh)
### 答
## marker (en)
### A

## repair (zh)
错：{{ problem }}
## repair (en)
Wrong: {{ problem }}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompt.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_both_forms_are_one_file(tmp_path: Path) -> None:
    with (tmp_path / "prompt.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(VALUES, file)
    yaml, markdown = PromptFile.read(tmp_path / "prompt.yaml"), PromptFile.read(written(tmp_path, MARKDOWN))
    assert markdown.model_dump() == yaml.model_dump() and markdown.digest() == yaml.digest()
    windows = tmp_path / "windows.md"
    windows.write_bytes(b"\xef\xbb\xbf" + MARKDOWN.replace("\n", "\r\n").encode())
    assert PromptFile.read(windows).digest() == yaml.digest()


def test_one_text_for_both_languages(tmp_path: Path) -> None:
    file = PromptFile.read(written(tmp_path, "---\n---\n## system\nBe kind.\n## user\n{{ prompt }}?\n"))
    assert file.system.zh == file.system.en == "Be kind." and file.user == "{{ prompt }}?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("## user\nx\n", r"prompt.md:1 has no front matter: got '## user'"),
        ("---\nshots: 0\n## user\nx\n", "prompt.md:1 has no front matter"),
        ("", "prompt.md:1 has no front matter"),
        ("---\nshots: [\n---\n", "front matter that is not YAML"),
        ("---\n- a\n---\n", r"prompt.md:2 is wrong: got '- a'"),
        ("---\nshots: 0\n---\n\n## sistem (zh)\nx\n", r"prompt.md:5 has an unknown heading: got 'sistem \(zh\)'"),
        ("---\n---\n## system (fr)\nx\n", r"prompt.md:3 has an unknown heading: got 'system \(fr\)'"),
        ("---\n---\n## User\nx\n", "prompt.md:3 has an unknown heading: got 'User'"),
        ("---\n---\nlost words\n## user\nx\n", "prompt.md:3 is in no section: got 'lost words'"),
        ("---\n---\n## user\nx\n## user\ny\n", "prompt.md:5 says 'user' a second time"),
        ("---\n---\n## user\nx\n## user (zh)\ny\n", r"prompt.md:5 says 'user \(zh\)' a second time"),
        ("---\nuser: x\n---\n## user\ny\n", "prompt.md:4 says 'user' a second time"),
        ("---\n---\n## user\n```\nx\n## system\ny\n", "prompt.md:4 opens a code fence that is not closed"),
        ("---\n---\n## system (zh)\n只有中文\n", "system.en is wrong.*Field required"),
        ("---\nshotz: 1\n---\n## user\nx\n", "shotz is wrong"),
        ("---\n---\n## user\n{{ promt }}\n", "user is wrong.*promt, which is not defined"),
    ],
)
def test_mistakes_have_their_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PromptFile.read(written(tmp_path, text))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PromptFile.read(written(tmp_path, "---\n---\nlost\n## a\n## b\n## user\nx\n## user\n"))
    assert [problem.partition(" ")[0].rpartition(":")[2] for problem in caught.value.problems] == ["3", "4", "5", "8"]


def test_what_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.md").write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptFile.read(tmp_path / "prompt.md")
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptFile.read(tmp_path / "none.md")


def test_the_markdown_files_of_the_repository() -> None:
    files = sorted(Path("configs/prompts").glob("*.md"))
    assert "aftersales-similar" in [path.stem for path in files]
    for path in files:
        assert PromptFile.read(path).digest()
