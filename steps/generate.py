"""Teachers answer prompts.

Every prompt is answered ``samples`` times; shares say which teacher gives which sample. Each answer is written to a
request ledger the moment it arrives, before it is read: a killed run asks only for what it had not received, and for
failures again.

Reads:  prompt sources (any layout that gives Prompt rows), a prompt file, and what the teachers are made of.
Writes: candidates.parquet (Candidate, in the order of the prompts), dropped.parquet (Dropped: answers that did not come
        or that a flag in ``drop_flags`` keeps back, prompts that could not be read), record/requests.sqlite (every
        request, as it came).
Source: Self-Instruct (arXiv 2212.10560), section 2.2, for prompting with drawn examples; deviation: no new prompts are
        made.

Run:  python -m steps.generate --config generate.yaml --out DIR
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from steps.lib.asking import Request, Tally, ask, make_request
from steps.lib.config import Neutral, Section
from steps.lib.door import main
from steps.lib.errors import DataError, TeacherError
from steps.lib.ledger import Reply, RequestLedger, RowLedger
from steps.lib.prompts import OverBudget, PromptFile
from steps.lib.rows import Candidate, Dropped, Prompt, write_parquet
from steps.lib.runtime import stop_signals
from steps.lib.sources import Opened, Rejected, Source, digest, open_sources
from steps.lib.step import Context, Metrics
from steps.lib.teacher import ScriptedTeacherConfig, Teacher, assign, identities, open_client

VERSION = "1"
RECORDS = ("dropped.parquet",)

Flag = Literal["truncated", "empty", "unparsed", "schema", "refusal", "think_tag"]


class GenerateConfig(Section):
    """Prompts x teachers -> candidates."""

    prompts: list[Source] = Field(
        default=[Source(name="train", path=Path("data/seed/task/prompts_train.jsonl"))], min_length=1
    )
    """Sources of prompts."""
    prompt_file: Annotated[Path, Neutral] = Path("configs/prompts/aftersales.yaml")
    """What teachers are told (steps/lib/prompts.py); its content is in the key."""
    teachers: list[Teacher] = Field(
        default=[
            ScriptedTeacherConfig(kind="scripted", name="scripted-aftersales", path=Path("data/seed/task/teacher.yaml"))
        ],
        min_length=1,
    )
    """Who answers, each with a weight ``share``."""
    samples: int = Field(default=1, gt=0)
    """Answers to each prompt."""
    drop_flags: list[Flag] = ["truncated", "empty", "unparsed", "schema"]
    """Flags that keep an answer out of the candidates; other flags are only noted on it."""
    max_failed_share: float = Field(default=0.02, ge=0, le=1)
    """Share (0 to 1) of the answers that may fail to come; above it the step fails, and running again asks for
    those only."""

    @model_validator(mode="after")
    def _names_differ(self) -> GenerateConfig:
        for what, names in (("prompts", [s.name for s in self.prompts]), ("teachers", [t.name for t in self.teachers])):
            if twice := sorted(name for name, count in Counter(names).items() if count > 1):
                raise ValueError(f"{what} has the name {twice[0]!r} twice; give each its own name")
        return self


@dataclass(frozen=True)
class _Slot:
    """One answer that is wanted: sample ``sample`` of a prompt, from one teacher."""

    prompt: Prompt
    sample: int
    teacher: str
    request: Request
    fewer: int
    """Examples that were left out, over the context budget or equal to the prompt."""


def externals(config: GenerateConfig) -> dict[str, str]:
    """Content of the prompt sources, the prompt file and the teachers."""
    return {
        "prompt file": PromptFile.read(config.prompt_file).digest(),
        **{f"source {source.name}": digest(source) for source in config.prompts},
        **identities(config.teachers),
    }


def run(config: GenerateConfig, *, out: Path, context: Context) -> Metrics:
    """Ask the teachers for what is missing, then read all answers in the order of the prompts."""
    prompt_file = PromptFile.read(config.prompt_file)
    metrics = Metrics()
    prompts, dropped = _read(config, context, metrics.rows)
    clients = {
        teacher.name: open_client(teacher, context.seed, folder=context.resume, log=context.log)
        for teacher in config.teachers
    }
    slots: list[_Slot] = []
    for row in context.progress(prompts, "rendering", len(prompts)):
        try:
            rendered = prompt_file.render(row, context.seed)
        except OverBudget as error:
            if prompt_file.over_budget == "error":
                raise
            dropped += [_dropped(row, sample, "over_budget", str(error)) for sample in range(config.samples)]
            continue
        chosen = assign([teacher.share for teacher in config.teachers], config.samples, row.prompt, context.seed)
        for sample, index in enumerate(chosen):
            name = config.teachers[index].name
            request = make_request(
                clients[name],
                rendered.messages,
                prompt=row.prompt,
                seed=context.seed,
                sample=sample,
                source=row.id,
                schema=_sent_schema(prompt_file),
            )
            slots.append(_Slot(row, sample, name, request, rendered.fewer))
    context.log.info(
        "%d prompts x %d samples from %s",
        len(prompts),
        config.samples,
        ", ".join(f"{teacher.name} ({teacher.kind})" for teacher in config.teachers),
    )
    work = {
        name: (client, [slot.request for slot in slots if slot.teacher == name]) for name, client in clients.items()
    }
    tallies: dict[str, Tally] = {}
    with stop_signals() as stop, RequestLedger(context.resume / "requests.sqlite", context.log) as ledger:
        held = sum(ledger.get(slot.request.key) is not None for slot in slots)
        for _ in context.progress(ask(work, ledger, stop, context.log, tallies), "asking", len(slots) - held):
            pass
        replies = {slot.request.key: ledger.get(slot.request.key) for slot in slots}
        failures = ledger.failures()
        (out / "record").mkdir(exist_ok=True)
        ledger.save(out / "record" / "requests.sqlite")
    stop.check()
    _check_failures(config, slots, replies, failures)
    candidates: list[Candidate] = []
    for slot in slots:
        result = _read_reply(config, prompt_file, slot, replies[slot.request.key], failures)
        if isinstance(result, Candidate):
            candidates.append(result)
        else:
            dropped.append(result)
    _count(metrics, len(prompts) * config.samples, candidates, dropped)
    if not candidates:
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in Counter(row.reason for row in dropped).most_common()
        )
        raise DataError(
            f"generate has no candidate: got {len(prompts)} prompts x {config.samples} samples, all dropped "
            f"({reasons}); "
            "look at the answers in requests.sqlite of the partial folder, then mend the prompt file or drop_flags"
        )
    write_parquet(out / "candidates.parquet", candidates, Candidate)
    write_parquet(out / "dropped.parquet", dropped, Dropped)
    fewer = len({slot.prompt.id for slot in slots if slot.fewer})
    _measure(metrics, tallies, slots, replies, candidates, fewer)
    if fewer:
        context.log.info("%d prompts were shown fewer examples than shots says", fewer)
    context.log.info(
        "%d candidates, %d dropped; asked %d, from the ledger %d",
        len(candidates),
        len(dropped),
        sum(t.answered for t in tallies.values()),
        sum(t.from_ledger for t in tallies.values()),
    )
    return metrics


def _read(config: GenerateConfig, context: Context, rows: RowLedger) -> tuple[list[Prompt], list[Dropped]]:
    prompts: list[Prompt] = []
    dropped: list[Dropped] = []
    for opened in open_sources([(source, Prompt) for source in config.prompts]):
        opened_prompts: Opened[Prompt] = opened
        context.log.info("%s", opened_prompts)
        for row in opened_prompts:
            rows.took("prompts", row.count if isinstance(row, Rejected) else 1)
            if isinstance(row, Rejected):
                rows.drop("prompts", row.reason, row.count)
                dropped.append(row.dropped("generate"))
            else:
                rows.gave("asked prompts")
                prompts.append(row)
    rows.balance({"prompts": ["asked prompts"]})
    # Two sources may use the same ids; the source's name tells them apart.
    twice = {name for name, count in Counter(row.id for row in prompts).items() if count > 1}
    return [
        row.model_copy(update={"id": f"{row.source}/{row.id}"}) if row.id in twice else row for row in prompts
    ], dropped


def _sent_schema(prompt_file: PromptFile) -> dict[str, object] | None:
    """The schema to hold a teacher to: none where it is to think in words first."""
    return prompt_file.schema_ if prompt_file.chain_of_thought.mode == "none" else None


def _check_failures(
    config: GenerateConfig, slots: list[_Slot], replies: dict[str, Reply | None], failures: dict[str, str]
) -> None:
    failed = [slot for slot in slots if replies[slot.request.key] is None]
    if len(failed) <= config.max_failed_share * len(slots):
        return
    counts = Counter((slot.teacher, failures.get(slot.request.key, "not asked").partition(":")[0]) for slot in failed)
    what = ", ".join(f"{teacher} {reason} {count}" for (teacher, reason), count in sorted(counts.items()))
    last = failures.get(failed[-1].request.key, "not asked")
    raise TeacherError(
        f"generate lacks {len(failed)} of {len(slots)} answers: got {what} (such as {last!r}), because "
        f"max_failed_share is {config.max_failed_share}; repair the teacher and run again: only these are asked for, "
        "or raise max_failed_share"
    )


def _read_reply(
    config: GenerateConfig, prompt_file: PromptFile, slot: _Slot, reply: Reply | None, failures: dict[str, str]
) -> Candidate | Dropped:
    if reply is None:
        reason, _, detail = failures[slot.request.key].partition(": ")
        return _dropped(slot.prompt, slot.sample, reason, detail, slot.teacher)
    parsed = prompt_file.parse(reply.text)
    flags = [*(["truncated"] if reply.finish_reason == "length" else []), *parsed.flags]
    if bad := next((flag for flag in flags if flag in config.drop_flags), None):
        return _dropped(slot.prompt, slot.sample, bad, reply.text, slot.teacher)
    return Candidate(
        id=f"{slot.prompt.id}/{slot.sample}",
        lang=slot.prompt.lang,
        source=slot.prompt.source,
        prompt=slot.prompt.prompt,
        answer=parsed.answer,
        thought=parsed.thought,
        teacher=slot.teacher,
        sample=slot.sample,
        flags=flags,
        request=slot.request.key,
    )


def _dropped(row: Prompt, sample: int, reason: str, detail: str, teacher: str = "") -> Dropped:
    kept = {**row.model_dump(), "sample": sample, "teacher": teacher}
    return Dropped(
        id=f"{row.id}/{sample}",
        lang=row.lang,
        source=row.source,
        step="generate",
        reason=reason,
        detail=detail,
        row=json.dumps(kept, ensure_ascii=False),
    )


def _count(metrics: Metrics, wanted: int, candidates: list[Candidate], dropped: list[Dropped]) -> None:
    metrics.rows.took("answers", wanted)
    metrics.rows.gave("candidates", len(candidates))
    for row in dropped:
        if "sample" in json.loads(row.row):
            metrics.rows.drop("answers", row.reason)
    metrics.rows.balance({"answers": ["candidates"]})


def _measure(
    metrics: Metrics,
    tallies: dict[str, Tally],
    slots: list[_Slot],
    replies: dict[str, Reply | None],
    candidates: list[Candidate],
    fewer: int,
) -> None:
    """Requests are counted for this run alone; tokens and seconds for all answers, whichever run asked for them."""
    values: dict[str, float | int | str] = {}
    for name, tally in tallies.items():
        keys = {slot.request.key for slot in slots if slot.teacher == name}
        answers = [reply for key in keys if (reply := replies[key])]
        tokens = sum(reply.tokens_in for reply in answers), sum(reply.tokens_out for reply in answers)
        values |= {
            f"{name}/requests": tally.requests,
            f"{name}/from_ledger": tally.from_ledger,
            f"{name}/answered": tally.answered,
            f"{name}/failed": tally.failed.total(),
            f"{name}/attempts": tally.attempts,
            f"{name}/tokens_in": tokens[0],
            f"{name}/tokens_out": tokens[1],
            f"{name}/seconds": round(math.fsum(reply.seconds for reply in answers), 3),
            f"{name}/candidates": sum(row.teacher == name for row in candidates),
        }
        metrics.tokens += sum(tokens)
    for flag, count in sorted(Counter(flag for row in candidates for flag in row.flags).items()):
        values[f"flags/{flag}"] = count
    values["prompts_with_fewer_examples"] = fewer
    metrics.values |= values


if __name__ == "__main__":
    main("generate")
