"""Each export of a feedback tool, as the tool writes it, becomes events that the schema takes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from steps.lib.case_events import Event
from steps.lib.case_importers import Format, events_of
from steps.lib.case_reading import CaseSource, Reader
from steps.lib.personal import Personal

LANGFUSE = {
    "id": "sc1", "traceId": "tr-1", "observationId": None, "name": "helpful", "source": "API", "dataType": "BOOLEAN", "value": 0,
    "stringValue": "False", "comment": "wrong order", "timestamp": "2026-09-01T10:00:00.000Z", "updatedAt": "2026-09-01T10:00:01.000Z",
    "trace": {"userId": "u-77", "tags": []}, "input": {"messages": [{"role": "user", "content": "Where is P1?"}]},
    "output": {"role": "assistant", "content": "P2 is shipped."}, "model": "aftersales",
}  # fmt: skip
PHOENIX = {
    "id": "U3Bhbg==", "name": "correctness", "annotator_kind": "HUMAN", "span_id": "67f6740bbe1ddc3f", "identifier": "user-123",
    "result": {"label": "incorrect", "score": None, "explanation": "not what I asked"}, "created_at": "2026-09-02T08:00:00+02:00",
    "attributes": {"llm": {"model_name": "aftersales", "input_messages": [{"message": {"role": "user", "content": "Where is P1?"}}],
                           "output_messages": [{"message": {"role": "assistant", "content": "P2 is shipped."}}]}},
}  # fmt: skip
OPEN_WEBUI = {
    "id": "fb-1", "user_id": "u-9", "version": 0, "type": "rating",
    "data": {"rating": -1, "model_id": "aftersales", "reason": "not_factual", "comment": "wrong", "tags": [], "details": {"rating": 2}},
    "meta": {"model_id": "aftersales", "message_id": "m4", "message_index": 4, "chat_id": "c-1"},
    "snapshot": {"chat": {"id": "c-1", "chat": {"history": {"currentId": "m9", "messages": {
        "m1": {"id": "m1", "parentId": None, "role": "user", "content": "Hello"},
        "m2": {"id": "m2", "parentId": "m1", "role": "assistant", "content": "Hi, what is it?"},
        "m3": {"id": "m3", "parentId": "m2", "role": "user", "content": "Where is P1?"},
        "m4": {"id": "m4", "parentId": "m3", "role": "assistant", "content": "P2 is shipped."},
        "m9": {"id": "m9", "parentId": "m3", "role": "assistant", "content": "another try"}}}}}},
    "created_at": 1756720000, "updated_at": 1756720300,
}  # fmt: skip
OPENAI = {
    "id": "log-1", "created_at": "2026-09-03T00:00:00Z", "tags": {"rating": -1, "comment": "no"},
    "input": {"model": "aftersales", "user": "u-1", "messages": [{"role": "user", "content": "Where is P1?"}]},
    "output": {"choices": [{"message": {"role": "assistant", "content": "P2 is shipped."}, "finish_reason": "stop"}]},
}  # fmt: skip
OPENPIPE = {
    "messages": [{"role": "user", "content": "Where is P1?"}, {"role": "assistant", "content": "P1 arrives on Monday."}],
    "rejected_message": {"role": "assistant", "content": "P2 is shipped."}, "metadata": {"split": "TRAIN"}, "model": "aftersales",
}  # fmt: skip
LABEL_STUDIO = {
    "id": 7, "data": {"prompt": "Where is P1?", "answer1": "P1 arrives on Monday.", "answer2": "P2 is shipped.", "model2": "aftersales"},
    "annotations": [
        {"id": 1, "completed_by": 5, "was_cancelled": True, "result": []},
        {"id": 2, "completed_by": 6, "created_at": "2026-09-04T01:00:00Z",
         "result": [{"type": "pairwise", "from_name": "pw", "to_name": "text1,text2", "value": {"selected": "left"}}]},
    ],
}  # fmt: skip
GRADIO = {
    "input": "Where is P1?",
    "output": "P2 is shipped.",
    "flag": "incorrect",
    "username": "ann",
    "timestamp": "2026-09-05 10:00:00",
}
GRADIO_CHAT = {
    "conversation": json.dumps([{"role": "user", "content": "Where is P1?"}, {"role": "assistant", "content": "P2 is shipped."}]),
    "index": "1", "value": "", "flag": "Dislike", "username": "", "timestamp": "2026-09-05 10:00:00",
}  # fmt: skip
RECORDS: list[tuple[Format, dict[str, Any]]] = [
    ("langfuse", LANGFUSE), ("phoenix", PHOENIX), ("open_webui", OPEN_WEBUI), ("openai", OPENAI), ("openai", OPENPIPE),
    ("label_studio", LABEL_STUDIO), ("gradio", GRADIO), ("gradio", GRADIO_CHAT),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "record"), RECORDS)
def test_a_record_says_what_was_asked_answered_and_that_it_was_bad(kind: Format, record: dict[str, Any]) -> None:
    (values,) = events_of(kind, record)
    event = Event.model_validate(values)
    assert event.request is not None and event.request.messages[-1].content == "Where is P1?"
    assert event.response is not None and event.response.text == "P2 is shipped."
    assert event.signal is not None and event.signal.bad(0.5)


def test_what_only_some_tools_know() -> None:
    events = [Event.model_validate(next(events_of(kind, record))) for kind, record in RECORDS]
    langfuse, phoenix, webui, openai, openpipe, studio, gradio, _ = events
    assert (langfuse.user_id, langfuse.trace_id, langfuse.comment) == ("u-77", "tr-1", "wrong order")
    assert phoenix.ts == "2026-09-02T06:00:00.000000Z" and phoenix.case_id == "67f6740bbe1ddc3f"
    assert [turn.content for turn in webui.request.messages] == ["Hello", "Hi, what is it?", "Where is P1?"], (
        "the branch, no other try"
    )
    assert webui.ts.startswith("2025-09-01T") and webui.comment == "not_factual; wrong"
    assert openai.comment == "no" and openai.model.name == "aftersales"
    assert openpipe.correction.text == studio.correction.text == "P1 arrives on Monday."
    assert studio.model.name == "aftersales" and gradio.comment == "incorrect"


def test_the_same_record_is_the_same_event_and_an_edited_one_is_another_of_the_same_case() -> None:
    again, edited = dict(PHOENIX), {**PHOENIX, "result": {"label": "correct", "score": 1, "explanation": ""}}
    one, two, three = (next(events_of("phoenix", record)) for record in (PHOENIX, again, edited))
    assert one == two
    assert one["case_id"] == three["case_id"] and one["event_id"] != three["event_id"]


@pytest.mark.parametrize(
    ("kind", "record", "told"),
    [
        ("langfuse", {"id": "x", "observationId": "o"}, "no target"),
        ("phoenix", {"result": {}}, "span_id"),
        ("open_webui", {"type": "comment"}, "not a rating"),
        ("label_studio", {"id": 1, "data": {"prompt": "p", "answer1": "a"}}, "answer2"),
        ("openai", {"messages": 5}, "turns are"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "no text"),
    ],
)
def test_what_is_no_record_is_refused(kind: Format, record: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(events_of(kind, record))


def test_a_history_that_goes_in_a_circle_ends() -> None:
    nodes = {
        "a": {"parentId": "b", "role": "user", "content": "x"},
        "b": {"parentId": "a", "role": "user", "content": "y"},
    }
    record = {
        "type": "rating",
        "data": {"rating": -1},
        "meta": {"message_id": "a"},
        "snapshot": {"chat": {"chat": {"history": {"messages": nodes}}}},
    }
    with pytest.raises(ValueError, match="circle"):
        list(events_of("open_webui", record))


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    (tmp_path / "webui.json").write_text(json.dumps([OPEN_WEBUI]))
    (tmp_path / "logs.jsonl").write_text(json.dumps(OPENAI) + "\n" + json.dumps(OPENPIPE) + "\n")
    with (tmp_path / "flags.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, GRADIO)
        writer.writeheader()
        writer.writerow(GRADIO)
    wanted = [("webui", "webui.json", "open_webui"), ("logs", "logs.jsonl", "openai"), ("flags", "flags.csv", "gradio")]
    sources = [
        CaseSource.model_validate({"name": n, "path": tmp_path / p, "format": f, "tenant": "t"}) for n, p, f in wanted
    ]
    read = Reader(Personal(), b"k" * 32, "KEY", 100_000).read(sources)
    assert [event.case_id.split(":")[0] for _, event in read.events] == ["webui", "logs", "logs", "flags"]
    assert not read.quarantined and read.rows == 4
    assert all(not event.user_id and event.tenant == "t" for _, event in read.events)
    assert {len(event.user_hash) for _, event in read.events} == {0, 20}
