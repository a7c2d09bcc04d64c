"""Exports of feedback tools as ``badcase.v1``: one function a format, from a record to events. Only files are read; no
service is asked.

An event's id holds its content, so the same record imported twice is one event, and a record that was edited in its tool (Phoenix
upserts by identifier) is a later event of the same case. A record without what the model was asked gives events without a request,
which other events of the case may bring.

Source: the layouts of Langfuse scores (GET /api/public/scores, with ``input`` and ``output`` of the trace beside them), Phoenix
span annotations, Open WebUI's feedback export, Gradio's flagging CSV, OpenAI-style request logs as OpenPipe exports them, Label
Studio's pairwise template (JSON export). EVALUATION.md section 7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from steps.lib.case_turns import answer_of, chain_of, turns_of

Format = Literal["badcase", "langfuse", "phoenix", "open_webui", "gradio", "openai", "label_studio"]
Record = Mapping[str, Any]
DAWN = "1970-01-01T00:00:00"
"""The moment of a record that has none: it is before every other event of its case."""


def events_of(kind: Format, record: Record) -> Iterator[dict[str, Any]]:
    """Events of one record, as JSON; not yet checked.

    Raises:
        ValueError: the record is not of that format.
    """
    return IMPORTERS[kind](record)


def _badcase(record: Record) -> Iterator[dict[str, Any]]:
    yield dict(record)


def _langfuse(record: Record) -> Iterator[dict[str, Any]]:
    targets = [name for name in ("traceId", "observationId", "sessionId", "datasetRunId") if record.get(name)]
    if not targets or ("observationId" in targets and "traceId" not in targets):
        raise ValueError(
            f"score {record.get('id')!r} has no target: one of traceId, sessionId (observationId with its traceId)"
        )
    trace = record.get("trace") or {}
    value = record.get("value")
    if record.get("dataType") == "CATEGORICAL" and value is None:
        word = str(record.get("stringValue", "")).strip().lower()
        value = {"bad": 0.0, "incorrect": 0.0, "negative": 0.0, "no": 0.0, "false": 0.0, "down": 0.0}.get(word)
    who = {"ANNOTATION": "human_expert", "EVAL": "llm", "API": "human_user"}[str(record.get("source") or "API")]
    yield _event(
        f"{record.get('observationId') or record.get('traceId') or record.get('sessionId') or record.get('datasetRunId')}",
        _moment(record.get("updatedAt") or record.get("timestamp")),
        record,
        trace_id=str(record.get("traceId") or ""),
        span_id=str(record.get("observationId") or ""),
        session_id=str(record.get("sessionId") or trace.get("sessionId") or ""),
        user_id=str(trace.get("userId") or record.get("userId") or ""),
        comment=str(record.get("comment") or ""),
        signal=_signal("judge" if who == "llm" else "rating", value, who),
        **_exchange(record.get("input", trace.get("input")), record.get("output", trace.get("output"))),
        **_model(record.get("model") or trace.get("model")),
    )


def _phoenix(record: Record) -> Iterator[dict[str, Any]]:
    span = record.get("span_id") or record.get("context.span_id")
    if not span:
        raise ValueError("annotation has no span_id")
    result = record.get("result") or {name: record.get(name) for name in ("label", "score", "explanation")}
    who = {"HUMAN": "human_user", "LLM": "llm", "AGENT": "llm", "CODE": "code", "DECISION": "code"}[
        str(record.get("annotator_kind") or "HUMAN").upper()
    ]
    score = result.get("score")
    if score is None:
        word = str(result.get("label") or "").strip().lower()
        negative = {"thumbs_down", "thumbs-down", "incorrect", "bad", "hallucinated", "unhelpful", "negative"}
        score = 0.0 if word in negative else 1.0 if word else None
    attributes = record.get("attributes") or {}

    def of(*names: str) -> Any:
        flat = next(
            (record[f"attributes.{name}"] for name in names if record.get(f"attributes.{name}") is not None), None
        )
        return (
            flat
            if flat is not None
            else next((found for name in names if (found := _deep(attributes, name)) is not None), None)
        )

    kind = {"llm": "judge", "code": "rule"}.get(who, "rating")
    yield _event(
        str(span),
        _moment(record.get("updated_at") or record.get("created_at")),
        record,
        trace_id=str(record.get("trace_id") or ""),
        span_id=str(span),
        user_id=str(record.get("user_id") or of("user.id") or ""),
        comment=str(result.get("explanation") or ""),
        signal=_signal(kind, score, who),
        **_exchange(of("llm.input_messages", "input.value"), of("llm.output_messages", "output.value")),
        **_model(of("llm.model_name")),
    )


def _open_webui(record: Record) -> Iterator[dict[str, Any]]:
    if record.get("type") not in ("rating", None) or not isinstance(record.get("data"), Mapping):
        raise ValueError(f"feedback of type {record.get('type')!r}, not a rating")
    data, meta = record["data"], record.get("meta") or {}
    chat = _deep(record, "snapshot.chat.chat") or _deep(record, "snapshot.chat") or {}
    asked, answered = chain_of(chat, str(meta.get("message_id") or ""))
    said = "; ".join(str(data[name]) for name in ("reason", "comment") if data.get(name))
    rating = data.get("rating")
    yield _event(
        str(meta.get("message_id") or record.get("id")),
        _moment(record.get("updated_at") or record.get("created_at")),
        record,
        session_id=str(meta.get("chat_id") or ""),
        user_id=str(record.get("user_id") or ""),
        comment=said,
        signal=_signal("thumb", None if rating is None else float(rating), "human_user"),
        **_exchange(asked, answered),
        **_model(data.get("model_id") or meta.get("model_id")),
    )


def _gradio(record: Record) -> Iterator[dict[str, Any]]:
    own = {str(name).strip().lower(): value for name, value in record.items()}
    flag = str(own.get("flag") or own.get("value") or own.get("liked") or "").strip().lower()
    if own.get("conversation"):
        turns = turns_of(own["conversation"])
        index = own.get("index")
        last = int(str(index).strip("[]( )").split(",")[0]) if str(index or "").strip() else len(turns) - 1
        asked: Any
        asked, answered = turns[:last], answer_of(turns[last : last + 1])
    else:
        asked = next((own[name] for name in ("input", "prompt", "question", "message", "text") if own.get(name)), None)
        answered = str(next((own[name] for name in ("output", "response", "answer", "reply") if own.get(name)), ""))
    good = flag in ("", "like", "liked", "true", "good", "correct", "1")
    yield _event(
        _digest([asked, answered]),
        _moment(own.get("timestamp")),
        record,
        user_id=str(own.get("username") or ""),
        comment="" if flag in ("", "like", "liked", "dislike", "disliked", "true", "false", "0", "1") else flag,
        signal=_signal("thumb", 1.0 if good and flag else -1.0 if flag else None, "human_user"),
        **_exchange(asked, answered),
        **_model(own.get("model")),
    )


def _openai(record: Record) -> Iterator[dict[str, Any]]:
    request = record.get("input") or record.get("request") or record.get("reqPayload") or record
    output = record.get("output") or record.get("response") or record.get("respPayload")
    turns = turns_of(request.get("messages") if isinstance(request, Mapping) else request)
    tags = record.get("tags") or record.get("metadata") or {}
    tags = tags if isinstance(tags, Mapping) else {"tags": tags}
    rejected = record.get("rejected_message") or record.get("rejected")
    correction = ""
    if output is None and turns and turns[-1]["role"] == "assistant":
        output, turns = turns[-1], turns[:-1]
    answered = answer_of(output)
    if isinstance(rejected, (Mapping, str)):  # OpenPipe: the message is the better one, and the rejected one was served
        correction, answered = answered, answer_of(rejected)
    rating = tags.get("rating", tags.get("feedback", record.get("rating")))
    bad = rejected is True or bool(correction)
    yield _event(
        str(record.get("id") or record.get("request_id") or _digest([turns, answered])),
        _moment(record.get("created_at") or record.get("requestedAt") or record.get("created")),
        record,
        user_id=str(record.get("user") or (request.get("user") if isinstance(request, Mapping) else "") or ""),
        comment=str(tags.get("comment") or ""),
        signal=_signal("thumb", -1.0 if bad else _number(rating), "human_user"),
        correction={"text": correction, "author_kind": "human_expert"} if correction else None,
        **_exchange(turns, answered, request.get("tools") if isinstance(request, Mapping) else None),
        **_model(record.get("model") or (request.get("model") if isinstance(request, Mapping) else None)),
    )


def _label_studio(record: Record) -> Iterator[dict[str, Any]]:
    data = record.get("data")
    if not isinstance(data, Mapping):
        raise ValueError("task has no data")
    asked = next((data[name] for name in ("prompt", "question", "input", "messages") if data.get(name)), None)
    sides = [next((data[n] for n in (f"answer{k}", f"text{k}", f"response{k}") if data.get(n)), None) for k in (1, 2)]
    if None in sides:
        raise ValueError(f"task {record.get('id')!r} has no answer1 and answer2")
    for annotation in record.get("annotations") or ():
        chosen = [
            result["value"].get("selected")
            for result in annotation.get("result") or ()
            if result.get("type") == "pairwise" and isinstance(result.get("value"), Mapping)
        ]
        if annotation.get("was_cancelled") or not chosen:
            continue
        better = {"left": 0, "right": 1}[str(chosen[0])]
        good, bad = answer_of(sides[better]), answer_of(sides[1 - better])
        yield _event(
            f"{record.get('id')}",
            _moment(annotation.get("updated_at") or annotation.get("created_at")),
            annotation,
            signal=_signal("rating", 0.0, "human_expert"),
            correction={"text": good, "author_kind": "human_expert"},
            **_exchange(asked, bad),
            **_model(data.get(f"model{2 - better}")),
        )


IMPORTERS: dict[Format, Callable[[Record], Iterator[dict[str, Any]]]] = {
    "badcase": _badcase,
    "langfuse": _langfuse,
    "phoenix": _phoenix,
    "open_webui": _open_webui,
    "gradio": _gradio,
    "openai": _openai,
    "label_studio": _label_studio,
}


def _event(case: str, moment: str, record: Record, **fields: Any) -> dict[str, Any]:
    """An event with what is known; its id holds the record's content."""
    known = {name: value for name, value in fields.items() if value not in (None, "")}
    return {"case_id": case, "event_id": f"{case}/{_digest(record)}", "ts": moment, **known}


def _exchange(asked: Any, answered: Any, tools: Any = None) -> dict[str, Any]:
    """Request and response, where there are any."""
    turns = turns_of(asked) if asked else []
    text = answer_of(answered)
    found: dict[str, Any] = {}
    if turns:
        found["request"] = {"messages": turns, "tools": list(tools or [])}
    if text:
        found["response"] = {"text": text}
    return found


def _model(name: Any) -> dict[str, Any]:
    return {"model": {"name": str(name)}} if name else {}


def _signal(kind: str, value: Any, who: str) -> dict[str, Any] | None:
    number = _number(value)
    return None if number is None else {"kind": kind, "value": number, "annotator_kind": who}


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        word = str(value or "").strip().lower()
        return -1.0 if word in ("down", "bad", "negative") else 1.0 if word in ("up", "good", "positive") else None


def _moment(value: Any) -> str:
    """A moment as ISO 8601; whole numbers are seconds, or milliseconds, or nanoseconds."""
    if not value:
        return DAWN
    number = _number(value) if not isinstance(value, str) or value.strip().replace(".", "", 1).isdigit() else None
    if number is None:
        return str(value).strip()
    while number > 1e11:
        number /= 1000
    return datetime.fromtimestamp(number, UTC).isoformat()


def _deep(value: Any, path: str) -> Any:
    """The value at a dotted path, of nested objects or of one with dotted names."""
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    head, _, rest = path.partition(".")
    return _deep(value.get(head), rest) if rest else value.get(head)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
