"""``prefline chat`` on the micro line: in a pipe, with --ask, and in a real terminal."""

from __future__ import annotations

import functools
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from minimal import ROOT, Line, line_recipe
from rich.cells import cell_len

from flows.commands import chat
from flows.commands.repl import COMMANDS, Repl, Stopped
from flows.plan import walk
from steps.lib import chat as chats
from steps.lib import inference, models
from steps.lib.conversation import Conversation, Speaker
from steps.lib.errors import ArtifactError, ConfigError, DataError, ModelError
from steps.lib.opened import open_source
from steps.lib.registry import Registry
from steps.lib.rows import Chat, Message
from steps.lib.sources import Rejected, Source
from steps.lib.stages import Stages
from steps.lib.stopping import stop_signals
from steps.lib.store import Store

pytestmark = pytest.mark.tiny
QUESTIONS = ["Where is my parcel 7?", "我的包裹到哪里了？", "Is it fine?"]
TOKENS = 8


@pytest.fixture(scope="module")
def line(minimal_line: Line, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Nothing here writes into it."""
    return minimal_line.copy(tmp_path_factory.mktemp("chat") / "line")


@pytest.fixture(scope="module")
def folders(line: Line) -> dict[str, Path]:
    store = Store(line.folder / "store")
    return {look.step: look.artifact.path for look in walk(line.config(), store) if look.artifact}


policy_of = functools.cache(models.load_policy)


def alone(folder: Path, turns: list[dict[str, str]], tokens: int = TOKENS) -> str:
    """What a model answers that nothing was switched on."""
    tokenizer = models.load_tokenizer(models.model_folder(folder))
    ids = chats.encode_prompt(tokenizer, turns)
    greedy = inference.Sampling(0.0, 1.0, tokens)
    [found] = inference.generate(policy_of(folder), tokenizer, [ids], greedy, seed=0, batch_size=1)
    return found.text


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def words(line: Line, *more: str) -> list[str]:
    return [*more, "--recipe", str(line.recipe), "--max-tokens", str(TOKENS)]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the weights that were loaded."""
    found: list[Path] = []
    real = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *a, **k: found.append(Path(a[0])) or real(*a, **k))
    return found


def conversation(tokens: int = TOKENS, **settings: Any) -> Conversation:
    return Conversation(Stages("auto", bases=None), inference.Sampling(0.0, 1.0, tokens), 0, **settings)


def speakers(line: Line, *names: str) -> list[Speaker]:
    return chat.chosen(names, line.config(), Store(line.folder / "store"))


# --- which models ----------------------------------------------------------------------------------------------------


def test_a_model_is_named_by_step_key_alias_and_version(line: Line, folders: dict[str, Path]) -> None:
    version = Registry(line.folder / "registry").champion("after-sales")
    assert version
    key = f"sft/{folders['sft'].name[:8]}"
    names = ["base", "pretrain", "sft", "dpo", key, folders["sft"].name[:8], "champion", version.name, "v0001"]
    found = {one.name: one for one in speakers(line, *names, "sft")}
    assert list(found) == names, "each once, in the order in which they were named"
    wanted = {name: folders[name] for name in ("base", "pretrain", "sft", "dpo")}
    wanted |= dict.fromkeys((key, folders["sft"].name[:8]), folders["sft"])
    wanted |= dict.fromkeys(("champion", version.name, "v0001"), folders["dpo"])
    assert {name: one.artifact for name, one in found.items()} == wanted
    assert {one.digest for one in found.values()} == {inference.identity(folder) for folder in wanted.values()}


def test_without_a_name_it_is_the_newest_model_that_is_there(line: Line, tmp_path: Path) -> None:
    import shutil

    one = line.copy(tmp_path / "line")
    for step, before in (("dpo", "sft"), ("sft", "pretrain"), ("pretrain", "base")):
        assert [found.name for found in speakers(one)] == [step]
        shutil.rmtree(one.folder / "store" / step)
        assert [found.name for found in speakers(one)] == [before]
    shutil.rmtree(one.folder / "store" / "base")
    with pytest.raises(ArtifactError, match=r"no model is there .* got none .*; build one with `prefline run"):
        speakers(one)


def test_a_registered_version_answers_when_the_store_has_its_artifact_no_more(line: Line, tmp_path: Path) -> None:
    import shutil

    one = line.copy(tmp_path / "line")
    [before] = speakers(one, "champion")
    asked = [Message(role="user", content=QUESTIONS[0])]
    expected = conversation().answer(before, asked)
    shutil.rmtree(one.folder / "store" / "dpo")
    [version] = speakers(one, "champion")
    assert version.artifact.is_relative_to(one.folder / "registry") and version.digest == before.digest
    assert conversation().answer(version, asked) == expected
    weights = version.artifact / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="is damaged"):
        speakers(one, "champion")


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("stf", ArtifactError, "got no key that begins so"),
        ("clean", ModelError, "holds no model"),
        ("v0009", ArtifactError, "has no alias or version 'v0009'"),
    ],
)
def test_a_word_that_names_no_model_says_so(line: Line, word: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        speakers(line, "sft", word)


def test_a_model_that_gives_scores_is_refused(line: Line, folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    one = line.copy(tmp_path / "line")
    folder = tmp_path / "line" / "store" / "sft" / folders["sft"].name
    settings = folder / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace("CAUSAL_LM", "SEQ_CLS"))
    with pytest.raises(ModelError, match="cannot be talked with: got SEQ_CLS"):
        Speaker.of("reward", folder)
    shutil.rmtree(one.folder)


def test_a_model_that_is_not_built_names_the_command_that_builds_it(line: Line, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "chat", *words(line, "sft", "sft.lora.rank=2")]
    done = subprocess.run(command, cwd=ROOT, input=b"hello\n", capture_output=True)
    text = " ".join(done.stderr.decode().split())
    assert done.returncode == 5 and "model sft is not built: got state stale, because sft.lora.rank 4 -> 2" in text
    assert f"`prefline step sft --upstream sft.lora.rank=2 --recipe {line.recipe}`" in text and not done.stdout
    line_recipe(tmp_path)
    with pytest.raises(ArtifactError, match="got state waits, because it waits for generate; build it with"):
        chat.chosen(["dpo"], Line(tmp_path).config(), Store(tmp_path / "store"))


def test_wrong_numbers_are_named_together(line: Line) -> None:
    with pytest.raises(ConfigError) as caught:
        chat.chat("sft", recipe=[line.recipe], temperature=-1, top_p=0, max_tokens=0)
    assert [one.partition(" is wrong")[0] for one in caught.value.problems] == [
        "--temperature",
        "--top-p",
        "--max-tokens",
    ]


# --- in a pipe -------------------------------------------------------------------------------------------------------


def test_prompts_in_a_pipe_become_rows_with_models_and_digests(line: Line, folders: dict[str, Path]) -> None:
    """Also where the locale knows no Chinese."""
    given = "\ufeff" + "\n\n".join(QUESTIONS) + "\r\n"
    code = "import sys; from flows.cli import main\ntry: main()\nfinally: print({'prefect', 'torch'} & {*sys.modules}, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", *words(line, "sft", "pretrain", "dpo")],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        input=given.encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().splitlines()[-1] == "{'torch'}", "never prefect"
    rows = [json.loads(row) for row in done.stdout.decode().splitlines()]
    assert [(row["prompt"], row["model"]) for row in rows] == [
        (prompt, name) for prompt in QUESTIONS for name in ("sft", "pretrain", "dpo")
    ]
    for row in rows:
        assert row["text"] == alone(folders[row["model"]], user(row["prompt"]))
        assert row["digest"] == inference.identity(folders[row["model"]]) and row["tokens"] <= TOKENS
    assert len({row["text"] for row in rows}) > 2
    assert "订" in done.stdout.decode() or "我" in done.stdout.decode(), "not escaped"


def piped(monkeypatch: pytest.MonkeyPatch, given: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))


def test_bytes_that_are_not_utf8_are_named_with_their_line(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "fine\n好\n".encode("gbk"))
    with pytest.raises(DataError, match="line 2 of standard input is not UTF-8: got byte 0xba"):
        chat.chat("base", recipe=[line.recipe], max_tokens=2)
    assert len(capsys.readouterr().out.splitlines()) == 1, "the line before it was answered"


def test_nothing_in_the_pipe_is_an_error(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b" \n\n")
    with pytest.raises(DataError, match="standard input has no prompt"):
        chat.chat("base", recipe=[line.recipe], max_tokens=2)


def test_a_prompt_that_is_too_long_is_a_row_with_an_error(
    line: Line, loaded: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, ("word " * 600 + "\nshort\n").encode())
    with pytest.raises(DataError, match="1 of 2 answers are missing"):
        chat.chat("sft", recipe=[line.recipe], max_tokens=4)
    long, short = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert "text" not in long and "conversation is too long for sft: got " in long["error"]
    assert "its context has 512; begin again" in long["error"] and short["text"] is not None and "error" not in short


def test_ask_answers_in_text_and_in_rows_and_loads_a_base_once(
    line: Line, folders: dict[str, Path], loaded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chat.chat("sft", recipe=[line.recipe], ask=QUESTIONS[:2], max_tokens=TOKENS)
    shown = capsys.readouterr().out
    place = 0
    for question in QUESTIONS[:2]:
        text = alone(folders["sft"], user(question)).translate(COMMANDS)
        assert text in shown[place:]
        place = shown.index(text, place) + len(text)
    loaded.clear()
    chat.chat("sft", "pretrain", "dpo", "base", recipe=[line.recipe], ask=QUESTIONS, max_tokens=TOKENS, json=True)
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12
    assert sorted(loaded) == sorted(folders[name] / "model" for name in ("base", "pretrain")), "each once"
    chat.chat("sft", "dpo", recipe=[line.recipe], ask=QUESTIONS[:1], max_tokens=TOKENS)
    said = capsys.readouterr().out
    texts = {name: alone(folders[name], user(QUESTIONS[0])).translate(COMMANDS) for name in ("sft", "dpo")}
    assert re.fullmatch(r"sft:\n(.*)\ndpo:\n(.*)\n", said, re.S) and all(text in said for text in texts.values())


@pytest.mark.parametrize("json", [True, False])
def test_where_nobody_reads_it_ends_at_the_first_word(line: Line, monkeypatch: pytest.MonkeyPatch, json: bool) -> None:
    """What becomes of the error is the command's (test_cli)."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as out:
        with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
            patch.setattr(sys, "stdout", out)
            chat.chat("sft", recipe=[line.recipe], ask=QUESTIONS[:1], max_tokens=2, json=json)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writer)  # for what is left in it


def test_the_seed_decides_what_is_drawn(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(seed: int) -> list[str]:
        hot = {"temperature": 1.5, "max_tokens": 12, "json": True}
        chat.chat("sft", recipe=[line.recipe], ask=QUESTIONS, seed=seed, **hot)
        return [json.loads(row)["text"] for row in capsys.readouterr().out.splitlines()]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_help_is_quick_and_light() -> None:
    code = (
        "import sys, flows.cli\ntry: flows.cli.app(['chat', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'prefect', 'transformers', 'pyarrow', 'peft'} & set(sys.modules))"
    )
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        took.append(time.perf_counter() - start)
        assert done.stdout.splitlines()[-1] == "set()" and "--ask" in done.stdout
    assert min(took) < 1.4, "0.4 s on a quiet machine"


# --- a conversation --------------------------------------------------------------------------------------------------


def repl(line: Line, tmp_path: Path, *names: str, tokens: int = TOKENS) -> tuple[Repl, Conversation]:
    talk = conversation(tokens)
    return Repl(speakers(line, *names), talk, tmp_path / "bad.jsonl"), talk


def test_switching_back_gives_the_same_answer_again(line: Line, folders: dict[str, Path], loaded: list[Path]) -> None:
    sft, dpo, base = speakers(line, "sft", "dpo", "base")
    talk = conversation(24)
    asked = [Message(role="user", content=QUESTIONS[0])]
    first = {one.name: talk.answer(one, asked) for one in (sft, dpo, base)}
    for one in (sft, base, dpo, sft, dpo, base):
        assert talk.answer(one, asked) == first[one.name]
    assert len(loaded) == 2 and not talk.turns
    assert {name: answer.text for name, answer in first.items()} == {
        name: alone(folders[name], user(QUESTIONS[0]), 24) for name in first
    }


def test_a_conversation_goes_on_with_another_model(line: Line, folders: dict[str, Path], tmp_path: Path) -> None:
    chatter, talk = repl(line, tmp_path, "sft", "dpo")
    chatter._take(QUESTIONS[0])
    chatter._take("/model dpo")
    chatter._take(f"//{QUESTIONS[1]}")
    said = [turn.content for turn in talk.turns]
    assert (
        said[0] == QUESTIONS[0]
        and said[2] == f"/{QUESTIONS[1]}"
        and [one.name for one in talk.answered] == ["sft", "dpo"]
    )
    assert said[1] == alone(folders["sft"], user(QUESTIONS[0]))
    assert said[3] == alone(folders["dpo"], chats.plain(talk.turns[:3]))
    chatter._take("/system Answer in JSON.")
    assert not talk.turns
    chatter._take(QUESTIONS[0])
    assert talk.turns[1].content == alone(
        folders["dpo"], [{"role": "system", "content": "Answer in JSON."}, *user(QUESTIONS[0])]
    )


def test_all_models_answer_the_same_turn(
    line: Line, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chatter, talk = repl(line, tmp_path, "dpo", "sft", "base")
    chatter._take(QUESTIONS[2])
    before = list(talk.turns)
    capsys.readouterr()
    chatter._take("/all")
    shown = capsys.readouterr().out
    texts = {name: alone(folders[name], user(QUESTIONS[2])).translate(COMMANDS) for name in ("dpo", "sft", "base")}
    assert all(f"{name}:\n{text}" in shown for name, text in texts.items()) and talk.turns == before
    chatter._take(f"/all {QUESTIONS[1]}")
    assert len(talk.turns) == 4 and [one.name for one in talk.answered] == ["dpo", "dpo"]
    assert talk.turns[3].content == alone(folders["dpo"], chats.plain(talk.turns[:3]))


def test_a_conversation_that_is_too_long_loses_no_turn(line: Line, tmp_path: Path) -> None:
    chatter, talk = repl(line, tmp_path, "sft", tokens=60)
    chatter._take("one " * 100)
    kept = list(talk.turns)
    with pytest.raises(DataError, match=r"too long for sft: got \d+ tokens, and 60 .* its context has 512; .*/reset"):
        chatter._take("two " * 100)
    assert talk.turns == kept and len(talk.answered) == 1
    chatter._take("three")
    assert len(talk.turns) == 4


def rows_of(path: Path) -> tuple[list[Chat], list[Rejected]]:
    """As clean reads a source of chats."""
    found = list(open_source(Source(name="kept", path=path), Chat))
    return [one for one in found if isinstance(one, Chat)], [one for one in found if isinstance(one, Rejected)]


def test_what_is_saved_is_read_by_clean(line: Line, tmp_path: Path) -> None:
    chatter, talk = repl(line, tmp_path, "sft", "dpo", tokens=3)
    file = tmp_path / "kept 好.jsonl"
    with pytest.raises(DataError, match="conversation is empty"):
        chatter._take(f"/save {file}")
    chatter._take("/system 用JSON。")
    chatter._take(QUESTIONS[1])
    chatter._take("/model dpo")
    chatter._take(QUESTIONS[0])
    chatter._take(f"/save {file}")
    chatter._take("/bad it says nothing 没用")
    chatter._take("/reset")
    chatter._take(QUESTIONS[2])
    chatter._take(f"/save {file}")
    kept = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in kept] == [
        ["system", "user", "assistant", "user", "assistant"],
        ["system", "user", "assistant"],
    ]
    assert [one["model"] for one in kept[0]["answered_by"]] == ["sft", "dpo"] and kept[0]["lang"] == "zh"
    good, rejected = rows_of(file)
    assert [one.id for one in good] == [row["id"] for row in kept] and not rejected
    assert [chats.plain(one.messages) for one in good] == [row["messages"] for row in kept]
    [bad] = [json.loads(row) for row in (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert bad["reason"] == "it says nothing 没用" and bad["label"] is False and bad["model"] == "dpo"
    assert bad["completion"] == [kept[0]["messages"][-1]] and bad["prompt"] == kept[0]["messages"][:-1]
    none, [refused] = rows_of(tmp_path / "bad.jsonl")
    assert not none and refused.reason == "label_false", "clean takes it for what it is"


@pytest.mark.parametrize(
    ("line_typed", "message"),
    [
        ("/modle sft", "command /modle is wrong: got no such one"),
        ("/model pretrain", r"model pretrain is not here: got sft, .*prefline chat sft pretrain"),
        ("/save", "/save has no file"),
        ("/bad", "bad case has no reason"),
        ("/bad why", "conversation is empty"),
        ("/all", "/all has nothing to ask"),
        ("/save /nowhere/at/all.jsonl", "conversation is empty"),
    ],
)
def test_what_cannot_be_done_is_said(line: Line, tmp_path: Path, line_typed: str, message: str) -> None:
    chatter, talk = repl(line, tmp_path, "sft")
    with pytest.raises(DataError, match=message):
        chatter._take(line_typed)
    assert not talk.turns and not list(tmp_path.glob("*.jsonl"))


def test_a_file_that_cannot_be_written_is_named(line: Line, tmp_path: Path) -> None:
    chatter, talk = repl(line, tmp_path, "sft")
    chatter._take("Hello")
    with pytest.raises(DataError, match=r"all.jsonl cannot be written: got No such file"):
        chatter._take(f"/save {tmp_path / 'nowhere' / 'all.jsonl'}")
    assert len(talk.turns) == 2


# --- in a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A real terminal with Python in it."""

    def __init__(self, *argv: str) -> None:
        self.pid, self.end = pty.fork()
        if not self.pid:
            os.environ |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "LC_ALL": "C.UTF-8"}
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, *argv])
        self.seen = ""
        self.place = 0
        self._left = b""

    def until(self, pattern: str, seconds: float = 90) -> str:
        """What is shown up to and with the next match; the match is behind what an earlier call found."""
        ends = time.monotonic() + seconds
        while not (found := re.compile(pattern, re.S).search(self.seen, self.place)):
            ready, _, _ = select.select([self.end], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen[self.place :]!r}"
            try:
                self._left += os.read(self.end, 65536)
            except OSError:  # the other side is gone
                raise AssertionError(f"ended without {pattern!r}: {self.seen[self.place :]!r}") from None
            whole = self._left.decode("utf-8", errors="ignore")
            self._left = b"" if whole.encode() == self._left else self._left
            if not self._left:
                self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", whole.replace("\r\n", "\n"))
        text = self.seen[self.place : found.end()]
        self.place = found.end()
        return text

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def close(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.end)
        return os.waitstatus_to_exitcode(status)


CHAT = ("-m", "flows.cli", "chat")


@contextmanager
def terminal(*argv: str) -> Iterator[Terminal]:
    shown = Terminal(*argv)
    try:
        yield shown
    except BaseException:
        os.kill(shown.pid, signal.SIGKILL)
        shown.close()
        raise


def test_the_terminal(line: Line, folders: dict[str, Path], tmp_path: Path) -> None:
    files = ["--bad-cases", str(tmp_path / "bad.jsonl")]
    with terminal(*CHAT, *words(line, "sft", "dpo"), *files) as shown:
        head = shown.until("sft> ")
        assert all(inference.identity(folders[name])[:12] in head for name in ("sft", "dpo"))
        answers = {name: alone(folders[name], user(QUESTIONS[1])) for name in ("sft", "dpo")}

        def answer(name: str) -> str:
            """As it stands on the screen."""
            shown.type(f"{QUESTIONS[1]}\n")
            text = shown.until(rf"{re.escape(QUESTIONS[1])}\s*\n.*?{name}> ")
            return "".join(text.partition("\n")[2].split())

        def expected(name: str) -> str:
            return "".join(answers[name].translate(COMMANDS).split())

        first = answer("sft")
        assert first.startswith(expected("sft")), first
        shown.type("/reset\n")
        shown.until("begins again.*sft> ")
        shown.type("/model dpo\n")
        shown.until("dpo> ")
        assert answer("dpo").startswith(expected("dpo"))
        shown.type("/reset\n/model sft\n")
        shown.until("begins again.*sft> ")
        assert answer("sft") == first, "switching back gives the same answer again"
        shown.type("/all\n")
        table = shown.until(r"─ *\n[^─]*sft> ")
        assert all(expected(name)[:4] in "".join(table.split()) for name in ("sft", "dpo")), table
        shown.type("/bad 没用\n")
        shown.until("the last answer of sft added to.*sft> ")
        shown.type("/oops\n")
        shown.until("command /oops is wrong.*sft> ")
        shown.type("\x03")
        shown.until("/quit or Ctrl-D leaves.*sft> ")
        shown.type("/help\n")
        assert "/save FILE" in shown.until("Ctrl-C stops.*sft> ")
        shown.type("\x04")
        assert shown.close() == 0
    [bad] = [json.loads(row) for row in (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert bad["reason"] == "没用" and bad["completion"][0]["content"] == answers["sft"]
    assert bad["prompt"] == user(QUESTIONS[1])


def test_ctrl_c_stops_an_answer_and_the_turn_is_not_kept(line: Line) -> None:
    """Of the base, which never ends: it is stopped among its first tokens, and answers again as if nothing had been."""
    more = ["base", "--recipe", str(line.recipe), "--max-tokens", "400"]
    with terminal(*CHAT, *more) as shown:
        shown.until("base> ")
        shown.type("Hello\n")
        shown.until("Hello\n.")
        shown.type("\x03")
        text = shown.until("stopped; the turn is not kept.*base> ")
        assert "cut at" not in text
        shown.type("/save /dev/null\n")
        shown.until("conversation is empty.*base> ")
        shown.type("/quit\n")
        assert shown.close() == 0


def test_ctrl_c_behind_the_last_word_is_heard(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatter, talk = repl(line, tmp_path, "sft")
    real = talk.answer

    def answer(*arguments: Any) -> inference.Answer:
        found = real(*arguments)
        signal.raise_signal(signal.SIGINT)
        return found

    with stop_signals(chatter._signals):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(talk, "answer", answer)
            chatter._take(QUESTIONS[0])
        assert not talk.turns
        chatter._take(QUESTIONS[0])
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):  # says so where the next line would be typed
            chatter._signals.line("> ")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            chatter._signals.line("> ")
    assert len(talk.turns) == 2 and ended.value.code == 143


TYPING = """
import ctypes, functools, readline, signal
from flows.commands.repl import Signals, Stopped
from steps.lib.stopping import stop_signals
readline.set_pre_input_hook(functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT))
with stop_signals(signals := Signals()):
    try:
        signals.line("first> ")
    except Stopped:
        readline.set_pre_input_hook()
        print("typed", signals.line("second> "))
"""
"""The hook is called behind the prompt and before the wait for a key; no line of Python comes after it, which would see the signal."""


def test_ctrl_c_between_the_prompt_and_the_wait_for_a_key_is_heard() -> None:
    with terminal("-c", TYPING) as shown:
        shown.until("first> ")
        shown.until("second> ", seconds=20)
        shown.type("你好\n")
        shown.until("typed 你好")
        assert shown.close() == 0


def test_columns_are_as_wide_as_the_terminal_also_in_chinese() -> None:
    from rich.console import Console

    from flows.commands.repl import _columns

    console = Console(width=60, file=io.StringIO())
    with console.capture() as captured:
        console.print(_columns({"sft": "订单已发货" * 12, "dpo": "[red]It is on its way."}))
    rows = captured.get().splitlines()
    assert max(map(cell_len, rows)) <= 60 and "[red]It is" in captured.get()
    assert "".join(re.findall("[订单已发货]", captured.get())) == "订单已发货" * 12
