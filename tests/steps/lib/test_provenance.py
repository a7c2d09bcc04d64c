"""What travels with a row: who said it, how it was asked, and what it was made from."""

import json
from pathlib import Path

from steps.lib.provenance import evidence, provenance, unlicensed
from steps.lib.teacher_config import ScriptedTeacherConfig

IDENTITY = {
    "kind": "http",
    "endpoint": "vllm-bf16",
    "model": "org/name",
    "top_p": 0.9,
    "temperature": 0.7,
    "max_tokens": 64,
}


def test_provenance_names_the_teacher_and_how_it_was_asked() -> None:
    text = provenance(
        teacher="big",
        identity=IDENTITY,
        answered="org/name-0801",
        license="apache-2.0",
        stage="answer",
        prompt_file="1a2b",
    )
    assert json.loads(text) == {
        "teacher": "big", "kind": "http", "endpoint": "vllm-bf16", "model": "org/name", "answered_as": "org/name-0801",
        "sampling": {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9}, "stage": "answer", "prompt_file": "1a2b",
        "license": "apache-2.0",
    }  # fmt: skip
    again = dict(reversed(IDENTITY.items()))
    assert text == provenance(teacher="big", identity=again, answered="org/name-0801", license="apache-2.0", stage="answer",
                              prompt_file="1a2b"), "the same work gives the same bytes"  # fmt: skip


def test_what_is_not_known_is_null() -> None:
    found = json.loads(
        provenance(teacher="s", identity={"kind": "scripted"}, answered="", license=None, stage="a", prompt_file="d")
    )
    assert (
        found["answered_as"] is None
        and found["license"] is None
        and found["sampling"] == {}
        and "endpoint" not in found
    )


def test_evidence_is_the_row_its_labels_and_the_stages_passed() -> None:
    trail = ({"stage": "ask", "teacher": "big", "document": "文"},)
    assert json.loads(evidence(source="docs", row="d1", facts='{"intent": "x"}', trail=trail)) == {
        "source": "docs", "row": "d1", "facts": {"intent": "x"}, "trail": [{"stage": "ask", "teacher": "big", "document": "文"}],
    }  # fmt: skip
    assert evidence(source="p", row="1", facts="{}", trail=()) == '{"source":"p","row":"1"}'


def test_teachers_without_a_note_are_named() -> None:
    teachers = [
        ScriptedTeacherConfig(kind="scripted", name=name, path=Path("desk.yaml"), license=note)
        for name, note in (("scripted-a", None), ("scripted-b", "MIT"))
    ]
    assert unlicensed(teachers) == ["scripted-a"]
