"""--dry-run and samples: what people see before and after asking; a server that counts proves that nothing is sent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from looking import prefline
from openai_server import Act, Server, serve
from rich.cells import cell_len
from rich.console import Console

from flows.commands import plan as plan_command
from flows.commands import run as run_command
from flows.commands import samples, show, step
from steps.lib.errors import ConfigError, TeacherError
from steps.lib.excerpts import Excerpt, Shown
from steps.lib.store import Store

ROOT = Path(__file__).parents[2]


def words(folder: Path, server: Server, number: int = 30) -> list[str]:
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"p{n}", "lang": "en", "prompt": f"question {n}"}) + "\n" for n in range(number))
    )
    teacher = {"kind": "http", "name": "big", "endpoint": "e", "base_url": server.url, "model": "m", "max_tokens": 64,
               "price": {"input": 2.0, "output": 8.0}, "budget_usd": 1.0, "timeout_seconds": 5, "attempts": 1}  # fmt: skip
    return [
        f"store={folder / 'store'}",
        f"generate.prompts=[{{name: train, path: {path}}}]",
        "generate.prompt_file=configs/prompts/plain.yaml",
        f"generate.teachers=[{json.dumps(teacher)}]",
        "generate.samples=2",
        "generate.min_kept_share=0",
    ]


def cells(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.split():
            found.setdefault(line.split()[0], " ".join(line.split()))
    return found


@pytest.mark.parametrize("whole_line", [False, True])
def test_a_dry_run_sends_nothing_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole_line: bool
) -> None:
    with serve() as server:
        given = words(tmp_path, server)
        if whole_line:
            run_command.run(*given, dry_run=True)
        else:
            step.step("generate", *given, dry_run=True)
        assert server.bodies == []
    said = capsys.readouterr().out
    found = cells(said)
    assert found["generate"].startswith("generate built generate/") and ("clean" in found) is whole_line
    assert found["answer"].startswith("answer big 60 0 ") and found["answer"].endswith(
        " 960 (3.84k) 0.014 (0.05) unknown"
    )
    assert "budget_usd 1.00 USD is enough: at most" in said and "nothing was run and nothing was sent" in said
    assert not (tmp_path / "store").exists()
    if whole_line:
        assert found["clean"] == "clean built, behind others for generate, badcases"


def test_a_dry_run_says_what_a_stopped_run_left_and_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run fails on half of its prompts; its ledger has the rest. Then it is built, and cached."""
    broken = True

    def decide(number: int, body: dict[str, Any]) -> Act:
        odd = int(body["messages"][-1]["content"].split()[1]) % 2
        return Act(status=422) if broken and odd else Act(text="fine")

    with serve(decide) as server:
        given = words(tmp_path, server)
        with pytest.raises(TeacherError, match="lacks 30 of 60"):
            step.step("generate", *given)
        capsys.readouterr()
        asked = len(server.bodies)
        step.step("generate", *given, dry_run=True)
        found = cells(capsys.readouterr().out)
        assert found["generate"].startswith("generate gone on with generate/") and found["answer"].startswith(
            "answer big 30 30 "
        )
        assert "about " in found["answer"], "thirty answers say how long the others take"
        assert len(server.bodies) == asked
        broken = False
        step.step("generate", *given)
        assert len(server.bodies) == asked + 30
        capsys.readouterr()
        run_command.run(*given, until="generate", dry_run=True)
        said = capsys.readouterr().out
        assert "Cached" in cells(said)["generate"] and "answer" not in cells(said)
        run_command.run(*given, until="generate", force=["generate"], dry_run=True)
        said = capsys.readouterr().out
        assert "built again" in cells(said)["generate"] and cells(said)["answer"].startswith("answer big 0 60 ")
        other = [*given, "generate.drop_flags=[]"]
        step.step("generate", *other, dry_run=True)
        assert cells(capsys.readouterr().out)["answer"].startswith("answer big 0 60 "), "the first run's ledger has all"
        step.step("generate", *other)
        assert len(server.bodies) == asked + 30, "as the estimate said"


def test_dry_run_and_samples_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda number, body: Act(text=f"Re: {body['messages'][-1]['content']} 茶")) as server:
        given = words(tmp_path, server, 5)

        done = prefline("step", "generate", "--dry-run", *given)
        assert done.returncode == 0 and server.bodies == [] and "answer" in done.stdout, done.stderr
        step.step("generate", *given)
        assert len(server.bodies) == 10
        capsys.readouterr()
        done = prefline("show", "generate", "--samples", "2", *given)
        assert "2 of 5 prompts" in done.stdout and "Re: question" in done.stdout and "agrees 1.00" in done.stdout, (
            done.stderr
        )
        show.show("generate", *given, samples=2, json=True)
        page = json.loads(capsys.readouterr().out)
        assert (
            page["samples_of"] == 5
            and len(page["samples"]) == 2
            and page["samples"][0]["answers"][0]["agreement"] == 1.0
        )
        show.show("generate", *given, flag="refusal")
        assert "0 of 0 prompts (refusal)" in capsys.readouterr().out
        show.show("generate", *given)
        assert "prompts (" not in capsys.readouterr().out, "without a word of samples all is as it was"


def test_samples_are_of_generate_only(tmp_path: Path) -> None:
    artifact = Store(tmp_path)
    with pytest.raises(ConfigError, match=r"got an artifact of clean.*prefline show generate --samples 5"):
        show._samples("clean", artifact, 3, None, False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got --samples -1"):
        show._samples("generate", artifact, -1, None, False)  # type: ignore[arg-type]


def printed(found: list[Excerpt], width: int) -> list[str]:
    out = io.StringIO()
    samples.print_samples(Console(file=out, width=width, highlight=False), found, 9, "prompts")
    return out.getvalue().splitlines()


def excerpt(*texts: str) -> Excerpt:
    answers = tuple(
        Shown(f"p/{n}", f"teacher-{n}", text, ("refusal",) if n else (), 0.25 * n) for n, text in enumerate(texts)
    )
    return Excerpt("What is tea? 什么是茶？", "zh", "train", answers)


@pytest.mark.parametrize("width", [20, 40, 79, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Chinese characters are two columns wide."""
    lines = printed([excerpt("绿茶是不发酵的茶，" * 12, "Tea is a drink made of leaves. " * 8, "短")], width)
    assert max(map(cell_len, lines)) <= width
    assert "".join("".join(lines).split()).count("茶") >= 12


def test_answers_stand_side_by_side_where_there_is_room() -> None:
    wide = printed([excerpt("first answer", "second answer")], 120)
    assert any("first answer" in line and "second answer" in line for line in wide)
    assert any(
        "teacher-0" in line and "teacher-1" in line and "refusal" in line and "agrees 0.25" in line for line in wide
    )
    narrow = printed([excerpt("first answer", "second answer")], 60)
    assert not any("first answer" in line and "second answer" in line for line in narrow)
    assert any("first answer" in line for line in narrow) and any("second answer" in line for line in narrow)


def test_text_of_a_teacher_is_shown_and_does_nothing() -> None:
    """No markup, no escape sequence, no turned lines."""
    evil = "[bold]x[/bold] \x1b[31mred\x1b]8;;http://e\x07 \u202eabc [link=http://e]y[/link]"
    out = "\n".join(printed([Excerpt(evil, "en", evil, (Shown("p/0", evil, evil, (evil,), None),))], 200))
    assert "\x1b" not in out and "\u202e" not in out and "\x07" not in out
    assert "[bold]x[/bold]" in out and "[link=http://e]y[/link]" in out and "\ufffd[31mred" in out


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_of_an_estimate_fits(width: int) -> None:
    """It folds, and nothing is cut off."""
    from steps.lib.bill import Estimate, Line

    lines = tuple(
        Line(stage, teacher, 12_000, 3_000, 5_400_000, 900_000, 9_000_000, 9_200_000, 12.34, 345.6, 4000.0, "b")
        for stage in ("questions", "answer")
        for teacher in ("scripted-aftersales", "教师二号")
    )
    out = io.StringIO()
    plan_command.print_estimate(Console(file=out, width=width), Estimate(lines, ("big: budget",), ("a note",)))
    text = out.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("9,000") == text.count("3,000") == text.count("900k") == 4
    assert (
        text.count("-") >= 2
        and text.count("号") == 2
        and "36,000 requests" in text
        and "big: budget" in text
        and "a note" in text
    )
    if width == 120:
        assert "5.4M (9M)" in text and "12.34 (345.60)" in text
