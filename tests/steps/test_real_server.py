"""generate against `transformers serve` with a small real model: a real server's JSON, usage and ends, and a kill in the middle.

The server is a process on a port of loopback; its access log says how often it was asked.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from served import Served, serving
from teachers import command

from steps.lib import models

pytestmark = [pytest.mark.smol, pytest.mark.server, pytest.mark.long]
PROMPTS = ["Where is my parcel?", "What is the capital of France?", "Name three colours.", "How do I clean a kettle?", "退货要多久？",
           "用一句话介绍北京。", "Write one sentence about rain.", "What is 2 + 2?"]  # fmt: skip
TOKENS = 24


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = os.environ.get("PREFLINE_SMOLLM2")
    if not folder:
        pytest.skip("needs the small real model: set PREFLINE_SMOLLM2 to its folder")
    with serving(folder, tmp_path_factory.mktemp("served") / "log") as found:
        yield found


def configured(served: Served, tmp_path: Path, **teacher: Any) -> list[str]:
    """The command of a step that asks the server."""
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{k}", "prompt": text}) + "\n" for k, text in enumerate(PROMPTS)), encoding="utf-8"
    )
    (tmp_path / "plain.yaml").write_text("user: '{{ prompt }}'\n")
    values = {
        "prompts": [{"name": "p", "path": str(tmp_path / "prompts.jsonl")}],
        "prompt_file": str(tmp_path / "plain.yaml"),
        "teachers": [{
            "kind": "http", "name": "served", "endpoint": "transformers", "base_url": served.url, "model": served.model,
            "temperature": 0, "max_tokens": TOKENS, "concurrency": 1, **teacher,
        }],
        "drop_flags": [],
    }  # fmt: skip
    (tmp_path / "generate.yaml").write_text(json.dumps(values))
    return command(tmp_path / "generate.yaml", tmp_path / "out")


def kept(path: Path) -> dict[str, tuple[Any, ...]]:
    """What a ledger holds: source -> (text, finish_reason, model, tokens_in, tokens_out)."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as base:
        rows = base.execute(
            "SELECT source, text, finish_reason, model, tokens_in, tokens_out FROM requests WHERE status!='failed'"
        )
        return {source: tuple(values) for source, *values in rows}


def ledgers(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("requests.sqlite") if "record" not in path.parts]


def test_a_killed_run_asks_only_for_the_rest(served: Served, tmp_path: Path) -> None:
    run, before = configured(served, tmp_path), served.asked()
    said = (tmp_path / "stderr").open("wb")
    process = subprocess.Popen(run, start_new_session=True, stderr=said)
    held: dict[str, tuple[Any, ...]] = {}
    for _ in range(600):
        if process.poll() is not None:
            break
        if found := ledgers(tmp_path):
            try:
                held = kept(found[0])
            except sqlite3.OperationalError:  # the table is not there yet
                held = {}
        if len(held) >= 3:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
    said.close()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "stderr").read_text()[-2000:]
    [ledger] = ledgers(tmp_path)
    held = kept(ledger)
    assert 3 <= len(held) < len(PROMPTS)
    time.sleep(5)  # the server may still answer what nobody waits for
    first = served.asked() - before
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert served.asked() - before - first == len(PROMPTS) - len(held), "only what was not received is asked for"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    values = manifest["metrics"]
    assert (values["served/from_ledger"], values["served/answered"]) == (len(held), len(PROMPTS) - len(held))
    all_of = kept(tmp_path / "out" / "record" / "requests.sqlite")
    assert len(all_of) == len(PROMPTS) and held.items() <= all_of.items(), "no received answer was touched"
    candidates = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "candidates.parquet").to_pylist()}
    assert set(candidates) == {f"p{k}/0" for k in range(len(PROMPTS))}
    tokenizer = models.load_tokenizer(served.model)
    for k, prompt in enumerate(PROMPTS):
        text, finish, model, tokens_in, tokens_out = all_of[f"p{k}"]
        turns = [{"role": "user", "content": prompt}]
        sent = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert (tokens_in, model) == (len(sent), f"{served.model}@main") and 0 < tokens_out <= TOKENS
        assert (
            finish == ("length" if tokens_out == TOKENS else "stop") and candidates[f"p{k}/0"]["answer"] == text.strip()
        )
        assert ("truncated" in candidates[f"p{k}/0"]["flags"]) == (finish == "length")
        assert not [one for one in tokenizer.all_special_tokens if one in text]
    assert {finish for _, finish, *_ in all_of.values()} == {"length", "stop"}, "both ends were seen"


def test_the_same_model_in_this_process_gives_the_same_greedy_answers(served: Served, tmp_path: Path) -> None:
    """Two roads to one model: over HTTP, and as `kind: local`."""
    run = configured(served, tmp_path)
    assert subprocess.run(run, capture_output=True).returncode == 0
    over_http = {key: values[:2] for key, values in kept(tmp_path / "out" / "record" / "requests.sqlite").items()}
    values = json.loads((tmp_path / "generate.yaml").read_text())
    values["teachers"] = [
        {"kind": "local", "name": "here", "model": served.model, "temperature": 0, "max_tokens": TOKENS}
    ]
    (tmp_path / "generate.yaml").write_text(json.dumps(values))
    done = subprocess.run([*run[:-1], str(tmp_path / "here")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    here = {key: values[:2] for key, values in kept(tmp_path / "here" / "record" / "requests.sqlite").items()}
    assert sum(here[key] == over_http[key] for key in here) >= len(PROMPTS) - 1, "one may turn on a rounding"


def test_a_wrong_model_name_is_refused_by_the_server_and_reported(served: Served, tmp_path: Path) -> None:
    done = subprocess.run(configured(served, tmp_path, model="another"), capture_output=True, text=True)
    assert done.returncode != 0 and "http_400" in done.stderr and "pinned" in done.stderr
