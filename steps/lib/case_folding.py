"""Events of a case as one row without personal data.

Events are put in the order of their moments. What the model was asked and what it answered is what the first event says: it is what
was recorded, and a later event that tells it otherwise is set aside. Of corrections the best author's counts, and of his the last;
of all else the last event that says it.

Source: EVALUATION.md section 7, steps 1 and 2.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from steps.lib.case_events import SEVERITIES, Correction, Event
from steps.lib.case_expected import Expected
from steps.lib.case_reading import CaseSource
from steps.lib.characters import normalise
from steps.lib.language import detect
from steps.lib.personal import Personal, redact
from steps.lib.personal_records import redact_json
from steps.lib.quality import Finding
from steps.lib.rows import BadCase, Dropped, Message

Came = tuple[CaseSource, Event]


@dataclass
class Folded:
    """Cases, and events that are part of none."""

    cases: list[tuple[BadCase, Finding | None]] = field(default_factory=list)
    """Each with the reason for which it may not be used, if there is one."""
    dropped: list[Dropped] = field(default_factory=list)
    events: int = 0
    """Events that are part of a case."""


def fold(came: Iterable[Came], personal: Personal, as_of: str) -> Folded:
    """Fold events into cases, in the order in which the cases were first seen.

    Args:
        came: events with their sources.
        personal: what becomes of personal data.
        as_of: day on which cases past their retention go, YYYY-MM-DD; empty: none does.
    """
    found = Folded()
    known: dict[str, Event] = {}
    own: dict[str, list[Came]] = defaultdict(list)
    for source, event in came:
        if (earlier := known.get(event.event_id)) is not None:
            same = _said(earlier) == _said(event)
            reason = "duplicate_event" if same else "event_conflict"
            detail = f"event {event.event_id} came before" + ("" if same else ", and said something else")
            found.dropped.append(dropped_event(event, reason, detail, personal))
            continue
        known[event.event_id] = event
        own[event.case_id].append((source, event))
    folded = []
    for events in own.values():
        events.sort(key=lambda one: (one[1].ts, one[1].ingest_ts, one[1].event_id))
        kept, others = _agreeing(events)
        found.dropped += [
            dropped_event(event, "other_exchange", "the case was recorded otherwise", personal) for event in others
        ]
        found.events += len(kept)
        folded.append(_case(kept, personal, as_of))
    found.cases = sorted(folded, key=lambda one: (one[0].first_seen, one[0].id))
    return found


def dropped_event(event: Event, reason: str, detail: str, personal: Personal) -> Dropped:
    """An event that is not taken, without personal data."""
    clean = redact_json(event.model_dump(mode="json", by_alias=True, exclude_defaults=True), personal)
    return Dropped(
        id=event.event_id,
        source=event.source,
        step="badcases",
        reason=reason,
        detail=detail,
        row=json.dumps(clean, ensure_ascii=False),
    )


def _said(event: Event) -> dict[str, Any]:
    """What an event says; when it was read, and by which file, is not part of it."""
    return event.model_dump(exclude={"ingest_ts", "source"})


def _agreeing(events: Sequence[Came]) -> tuple[list[Came], list[Event]]:
    """Events that tell the same exchange as the first which tells one, and the others."""
    request = next((event.request for _, event in events if event.request), None)
    response = next((event.response.text for _, event in events if event.response and event.response.text), "")
    kept: list[Came] = []
    others: list[Event] = []
    for source, event in events:
        agrees = event.request is None or request is None or event.request.messages == request.messages
        if event.response and event.response.text and event.response.text != response:
            agrees = False
        if agrees:
            kept.append((source, event))
        else:
            others.append(event)
    return kept, others


def _case(events: Sequence[Came], personal: Personal, as_of: str) -> tuple[BadCase, Finding | None]:
    own = [event for _, event in events]
    last = own[-1]
    facts: dict[str, Any] = {
        "id": last.case_id,
        "source": own[0].source,
        "first_seen": own[0].ts,
        "last_seen": last.ts,
        "events": [event.event_id for event in own],
        "user": _last(event.user_hash for event in own),
        "tenant": _last(event.tenant for event in own),
    }
    if any(event.deleted for event in own):
        return BadCase(**facts, prompt=[], status="deleted"), ("deleted", "its sender asked for it")
    until = _last(event.retention_until for event in own)
    if as_of and until and until < as_of:
        return BadCase(**facts, prompt=[], status="deleted"), ("expired", f"it could be kept until {until}")
    request = next((event.request for event in own if event.request), None)
    correction = _best([event.correction for event in own if event.correction])
    expected = next((event.expected for event in reversed(own) if event.expected), None) or Expected()
    prompt = [Message(role=turn.role, content=normalise(turn.content)) for turn in request.messages] if request else []
    response = next((event.response.text for event in own if event.response and event.response.text), "")
    texts = [*(turn.content for turn in prompt), normalise(response)]
    texts += [normalise(correction.text) if correction else "", normalise(_last(event.comment for event in own))]
    done = redact([[*texts, expected.dumped()]], personal)[0]
    *said, response, better, comment, wanted = done.texts
    case = BadCase(
        **facts,
        lang=detect("\n".join(said)) if said else "other",
        prompt=[Message(role=turn.role, content=text) for turn, text in zip(prompt, said, strict=True)],
        response=response,
        correction=better,
        correction_by=correction.author_kind if correction else "",
        verified=bool(correction and correction.verified_by),
        comment=comment,
        model=_last(event.model.name for event in own),
        model_digest=_last(event.model.version_digest for event in own),
        template_digest=_last(event.model.template_digest for event in own),
        signals=[f"{event.signal.kind}/{event.signal.annotator_kind}" for event in own if event.signal],
        tags=sorted({tag for event in own for tag in event.tags}),
        severity=next((event.severity for event in reversed(own) if event.severity), SEVERITIES[-1]),
        licence=_last(event.licence for event in own),
        redactions=json.dumps(dict(sorted(done.counts.items()))),
        status=next((event.status for event in reversed(own) if event.status), "new"),
    )
    finding = done.finding or _unusable(case, events)
    try:
        Expected.model_validate_json(wanted)
        case = case.model_copy(update={"expected": wanted})
    except ValidationError:
        finding = finding or ("expectation_redacted", "without its personal data, what it expects is no expectation")
    return case, finding


def _unusable(case: BadCase, events: Sequence[Came]) -> Finding | None:
    """Why a case may be used for nothing."""
    if case.status in ("rejected", "quarantined"):
        return case.status, "a person said so"
    if _last("yes" if event.consent else "no" for _, event in events if event.consent is not None) == "no":
        return "no_consent", "its sender does not agree"
    if not any(turn.content.strip() for turn in case.prompt):
        return "no_request", "no event says what the model was asked"
    signals = [event.signal.bad(source.bad_below) for source, event in events if event.signal]
    wanted = case.correction or any(event.expected for _, event in events)
    if not any(signals) and not wanted:
        return "not_bad", "no signal, correction or expectation says that the answer was bad"
    return None


def _best(corrections: Sequence[Correction]) -> Correction | None:
    """The correction that counts."""
    return max(enumerate(corrections), key=lambda one: (one[1].rank, one[0]))[1] if corrections else None


def _last(values: Iterable[str]) -> str:
    """The last that is not empty."""
    return next((value for value in reversed(list(values)) if value), "")
