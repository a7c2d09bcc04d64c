"""One builder a key: real processes that are killed, stopped and woken, on short beats."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from steps.lib.errors import ArtifactError, Resumable
from steps.lib.locks import Held, hold, holder
from steps.lib.place import FolderPlace
from steps.lib.stopping import Stop
from steps.lib.tickets import Ticket

NAME = ".locks/sft-0123"
LOG = logging.getLogger("test_locks")
BEAT = 0.1
SILENCE = 0.8
SLOW = 30.0
"""Seconds of silence that no test waits for: what is quicker was not found by silence."""

PRELUDE = f"""
import logging, os, platform, signal, sys, time
from pathlib import Path
from steps.lib.locks import hold, holder
from steps.lib.place import FolderPlace
place, name, log = FolderPlace(Path(sys.argv[1])), {NAME!r}, logging.getLogger("child")
logging.basicConfig(level=logging.INFO)
beat, silence = float(sys.argv[2]), float(sys.argv[3])
"""

HOLD = """
if sys.argv[4:]:
    platform.node = lambda: sys.argv[4]
with hold(place, name, log=log, beat=beat, silence=silence):
    print("held", flush=True)
    time.sleep(60)
"""

COUNT = """
counter, rounds = Path(sys.argv[1]) / "counter", int(sys.argv[4])
for _ in range(rounds):
    with hold(place, name, log=log, beat=beat, silence=silence) as held:
        count = int(counter.read_text())
        time.sleep(0.002)
        counter.write_text(str(count + 1))
        held.check()
with hold(place, name, log=log, beat=beat, silence=silence):
    os.kill(os.getpid(), signal.SIGKILL)  # in mid-hold, while the others want it
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    """A fresh store."""
    return FolderPlace(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Python processes that have the store, the beat and the silence; ends those that are left."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, beat: float = BEAT, silence: float = SILENCE) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PRELUDE + code, *map(str, (tmp_path, beat, silence, *arguments))]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def wait_for(child: subprocess.Popen[str]) -> None:
    """Until the child holds the lock."""
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "held\n", child.stderr.read()


def write(place: FolderPlace, number: int, ticket: Ticket) -> None:
    """Put a ticket where its holder would."""
    place.write(f"{NAME}/{number}", ticket.dump())


def newest(place: FolderPlace) -> tuple[int, Ticket]:
    """Number and content of the ticket on top."""
    number = max(map(int, place.names(NAME)))
    ticket = Ticket.parse(place.read(f"{NAME}/{number}"))
    assert ticket is not None
    return number, ticket


@dataclass
class Losses:
    """A ``lost`` that only writes down what it was told."""

    messages: list[str]

    def __call__(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def losses() -> Losses:
    """Nothing lost yet."""
    return Losses([])


def eventually(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# One at a time


def test_nothing_is_lost_between_six_processes_even_when_each_is_killed_at_its_end(
    place: FolderPlace, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "counter").write_text("0")
    children = [start(COUNT, 25, beat=0.2, silence=SLOW) for _ in range(6)]
    for child in children:
        _, said = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, said
    assert (tmp_path / "counter").read_text() == "150"
    assert holder(place, NAME) is None, "the last one died holding it"
    assert newest(place)[0] >= 156


def test_one_who_comes_later_waits_and_knows_it(place: FolderPlace, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with hold(place, NAME, log=LOG, beat=BEAT, silence=SLOW) as held:
            order.append(f"second {held.waited}")

    caplog.set_level(logging.INFO)
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SLOW) as held:
        thread = threading.Thread(target=second)
        thread.start()
        eventually(lambda: "waiting for lock" in caplog.text)
        time.sleep(3 * BEAT)
        order.append(f"first {held.waited}")
        held.check()
    thread.join()
    assert order == ["first False", "second True"]
    assert [record.message.rpartition(" since")[0] for record in caplog.records] == [
        f"waiting for lock {NAME}: it is held by process {os.getpid()} on {platform.node()}"
    ]


def test_a_number_that_was_used_and_tidied_is_not_taken_for_the_lock(tmp_path: Path, start: Start) -> None:
    """One who was about to create ticket 1 is paused, while two others come and the second stays."""

    class Paused(FolderPlace):
        def create(self, name: str, data: bytes) -> bool:
            if name.endswith("/1"):
                with hold(FolderPlace(self.root), NAME, log=LOG):
                    pass
                others.append(start(HOLD, beat=BEAT, silence=SLOW))
                wait_for(others[0])
                eventually(lambda: FolderPlace(self.root).names(NAME) == ["2"])
                assert super().create(name, data), "the number is free again"
                return True
            return super().create(name, data)

    others: list[subprocess.Popen[str]] = []
    stop = Stop()
    threading.Timer(1.0, setattr, (stop, "signal", "SIGTERM")).start()
    with pytest.raises(Resumable), hold(Paused(tmp_path), NAME, log=LOG, stop=stop, beat=BEAT, silence=SLOW):
        pytest.fail("two hold the lock")
    assert FolderPlace(tmp_path).names(NAME) == ["2"], "and the stray ticket is gone"


@pytest.mark.parametrize("answer", ["no", "nothing"])
def test_a_create_that_succeeded_but_was_answered_wrongly_is_ours(tmp_path: Path, answer: str) -> None:
    """Object stores' clients send a conditional write again, and then see their own file."""

    class Lossy(FolderPlace):
        def create(self, name: str, data: bytes) -> bool:
            assert super().create(name, data)
            if answer == "nothing":
                raise TimeoutError("no answer")
            return False

    with hold(Lossy(tmp_path), NAME, log=LOG, beat=BEAT, silence=SLOW) as held:
        held.check()
        assert FolderPlace(tmp_path).names(NAME) == ["1"]


# Holders that died or fell silent


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_holder_on_this_machine_is_followed_at_once(
    place: FolderPlace, start: Start, caplog: pytest.LogCaptureFixture, reaped: bool
) -> None:
    child = start(HOLD, beat=BEAT, silence=SLOW)
    wait_for(child)
    shown = holder(place, NAME)
    assert shown is not None and (shown.host, shown.pid, shown.alive) == (platform.node(), child.pid, True)
    child.kill()
    if reaped:
        child.wait()
    else:
        eventually(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert holder(place, NAME) is None
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SLOW) as held:
        assert time.monotonic() - before < 1.0
        assert not held.waited, "nobody was working"
    assert f"process {child.pid} on" in caplog.text and "its process is gone" in caplog.text


def test_a_process_number_that_another_has_by_now_does_not_keep_the_lock(place: FolderPlace) -> None:
    mine = Ticket.new()
    write(place, 3, mine)
    shown = holder(place, NAME)
    assert shown is not None and shown.alive is True
    write(place, 3, replace(mine, started=str(int(mine.started) - 1)))
    assert holder(place, NAME) is None
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SLOW):
        eventually(lambda: place.names(NAME) == ["4"])


@pytest.mark.parametrize("difference", ["host", "boot", "space"])
def test_a_process_of_another_machine_boot_or_container_is_waited_for(place: FolderPlace, difference: str) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    dead = replace(Ticket.new(), pid=child.pid)
    write(place, 1, dead)
    assert holder(place, NAME) is None, "here it is known to be gone"
    write(place, 1, replace(dead, **{difference: "another"}))
    shown = holder(place, NAME)
    assert shown is not None and shown.alive is None
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=0.3) as held:
        assert 0.3 <= time.monotonic() - before < 1.3
        assert held.waited


@pytest.mark.parametrize("data", [b"", b'{"host": "x", "pi', b"[]", b'{"pid": 1, "new": "field"}'])
def test_a_ticket_that_is_not_legible_is_held_until_silence(place: FolderPlace, data: bytes) -> None:
    place.write(f"{NAME}/7", data)
    shown = holder(place, NAME)
    assert shown is not None and shown.alive is None
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=0.3):
        assert 0.3 <= time.monotonic() - before < 1.3
        assert newest(place)[0] == 8


def test_a_beating_holder_elsewhere_is_never_followed_and_a_silent_one_is(
    place: FolderPlace, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    child = start(HOLD, "elsewhere")
    wait_for(child)
    stop = Stop()
    threading.Timer(2 * SILENCE, setattr, (stop, "signal", "SIGINT")).start()
    with pytest.raises(Resumable, match="SIGINT"), hold(place, NAME, log=LOG, stop=stop, beat=BEAT, silence=SILENCE):
        pytest.fail("two hold the lock")
    child.kill()
    child.wait()
    shown = holder(place, NAME)
    assert shown is not None and (shown.host, shown.alive) == ("elsewhere", None), "nobody here can know"
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SILENCE):
        assert time.monotonic() - before >= SILENCE
    assert f"on elsewhere since {shown.since}: no heartbeat for {SILENCE:g} s" in caplog.text


def test_a_stopped_holder_is_followed_and_ends_when_it_wakes(place: FolderPlace, start: Start) -> None:
    child = start(HOLD)
    wait_for(child)
    os.kill(child.pid, signal.SIGSTOP)
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SILENCE) as held:
        assert time.monotonic() - before > SILENCE - 2 * BEAT
        os.kill(child.pid, signal.SIGCONT)
        _, said = child.communicate(timeout=5)
        assert child.returncode == Resumable.exit_code
        assert f"ArtifactError: lock {NAME} is lost: got a later ticket, of process {os.getpid()} on" in said
        held.check()
        number, top = newest(place)
        assert (number, top.pid, top.released) == (2, os.getpid(), False)
        assert place.names(NAME) == ["2"], "what it wrote on waking is gone"
    assert newest(place)[1].released


def test_time_in_which_the_waiting_one_was_stopped_is_no_silence(place: FolderPlace, start: Start) -> None:
    """Both are frozen and thawed together, as with a paused container: the holder keeps the lock."""
    first = start(HOLD, "elsewhere")
    wait_for(first)
    second = start(HOLD)
    assert second.stderr is not None and "waiting for lock" in second.stderr.readline()
    for child in (second, first):
        os.kill(child.pid, signal.SIGSTOP)
    time.sleep(1.5 * SILENCE)
    for child in (second, first):
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(SILENCE / 2)
    assert first.poll() is None and second.poll() is None
    number, top = newest(place)
    assert (number, top.pid) == (1, first.pid)


def test_clocks_that_are_set_back_change_nothing(place: FolderPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, 1, replace(Ticket.new(), host="elsewhere", since="2999-01-01T00:00:00Z"))
    wall = iter(range(10**9, 0, -3600))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: next(wall))
    monkeypatch.setattr(time, "gmtime", lambda *_: time.localtime(0))
    before = time.monotonic()
    with hold(place, NAME, log=LOG, beat=BEAT, silence=0.5) as held:
        assert 0.5 <= time.monotonic() - before < 1.5
        time.sleep(3 * BEAT)
        held.check()
        assert newest(place)[1].beat >= 2
        assert newest(place)[1].since.startswith("1970")


# Stopping, releasing, tidying


def test_waiting_ends_when_the_process_is_asked_to_stop(place: FolderPlace) -> None:
    write(place, 1, Ticket.new())
    stop = Stop()
    stop.signal = "SIGTERM"
    before = time.monotonic()
    with pytest.raises(Resumable, match="SIGTERM"), hold(place, NAME, log=LOG, stop=stop):
        pytest.fail("it is held by another")
    assert time.monotonic() - before < 0.5
    assert place.names(NAME) == ["1"]
    with hold(place, ".locks/free", log=LOG, stop=stop):
        pass  # the block itself looks at stop


def test_a_name_that_cannot_be_taken_does_not_keep_the_process_from_stopping(
    place: FolderPlace, tmp_path: Path
) -> None:
    (tmp_path / NAME / "1").mkdir(parents=True)
    stop = Stop()
    threading.Timer(0.3, setattr, (stop, "signal", "SIGTERM")).start()
    busy = time.process_time()
    with pytest.raises(Resumable), hold(place, NAME, log=LOG, stop=stop, beat=BEAT):
        pytest.fail("nothing was created")
    assert time.process_time() - busy < 0.2, "it sleeps between two tries"


def test_an_exception_in_the_block_releases_the_lock(place: FolderPlace) -> None:
    with pytest.raises(ValueError, match="of the block"), hold(place, NAME, log=LOG, beat=BEAT):
        raise ValueError("of the block")
    assert holder(place, NAME) is None
    with hold(place, NAME, log=LOG) as held:
        assert not held.waited
        assert place.names(NAME) == ["2"]


def test_a_release_that_fails_does_not_hide_the_exception_of_the_block(
    place: FolderPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="of the block"), hold(place, NAME, log=LOG):
        (tmp_path / NAME / "1").unlink()
        (tmp_path / NAME / "1").mkdir()
        raise ValueError("of the block")
    assert f"lock {NAME} was not released" in caplog.text


def test_the_new_holder_tidies(place: FolderPlace, tmp_path: Path) -> None:
    gone = replace(Ticket.new(), released=True)
    for number in (2, 9, 10):
        write(place, number, gone)
    (tmp_path / NAME / ".10.killed").write_bytes(b"half")
    with hold(place, NAME, log=LOG):
        assert os.listdir(tmp_path / NAME) == ["11"]
        assert place.names(NAME) == ["11"] and len(place.read(f"{NAME}/11") or b"") < 400
    number, top = newest(place)
    assert (number, top.released) == (11, True), "the highest is never deleted"
    assert not [one for one in threading.enumerate() if NAME in one.name], "no thread stays"


def test_holder_says_who(place: FolderPlace) -> None:
    assert holder(place, NAME) is None
    with hold(place, NAME, log=LOG):
        shown = holder(place, NAME)
        assert shown is not None and (shown.host, shown.pid, shown.alive) == (platform.node(), os.getpid(), True)
        assert time.strptime(shown.since, "%Y-%m-%dT%H:%M:%SZ")
        text = json.loads(place.read(f"{NAME}/1") or b"")
        assert (text["host"], text["pid"], text["released"]) == (platform.node(), os.getpid(), False)
    assert holder(place, NAME) is None


# Troubles with the place


def beats(place: FolderPlace) -> int:
    """Heartbeats of the ticket on top."""
    return newest(place)[1].beat


def test_a_heartbeat_survives_a_store_that_is_away_for_a_while(
    place: FolderPlace, tmp_path: Path, losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(place, NAME, log=LOG, beat=BEAT, silence=SLOW, lost=losses) as held:
        os.rename(tmp_path / NAME, tmp_path / "away")
        (tmp_path / NAME).write_text("no folder")
        eventually(lambda: "a heartbeat was not written" in caplog.text)
        time.sleep(3 * BEAT)
        threading.Timer(
            3 * BEAT, lambda: ((tmp_path / NAME).unlink(), os.rename(tmp_path / "away", tmp_path / NAME))
        ).start()
        held.check()  # waits for the store
        before = beats(place)
        eventually(lambda: beats(place) > before + 1)
    assert losses.messages == [] and caplog.text.count("a heartbeat was not written") == 1
    assert newest(place)[1].released


def test_a_holder_that_cannot_beat_for_the_silence_gives_up(place: FolderPlace, tmp_path: Path, losses: Losses) -> None:
    def lose(held: Held) -> None:
        shutil.rmtree(tmp_path / ".locks")
        (tmp_path / ".locks").write_text("no folder")
        before = time.monotonic()
        eventually(lambda: losses.messages)
        assert SILENCE - 2 * BEAT < time.monotonic() - before < SILENCE + 1.0
        with pytest.raises(ArtifactError, match=r"is lost: got no heartbeat written for 0.8 s \(.*Not a directory"):
            held.check()

    with hold(place, NAME, log=LOG, beat=BEAT, silence=SILENCE, lost=losses) as held:
        lose(held)
    assert len(losses.messages) == 1 and losses.messages[0].endswith("run the same command again to go on")


@pytest.mark.parametrize("by", ["heartbeat", "check"])
def test_a_lock_whose_folder_was_deleted_and_taken_by_another_is_lost(
    place: FolderPlace, tmp_path: Path, losses: Losses, by: str
) -> None:
    with hold(place, NAME, log=LOG, beat=BEAT if by == "heartbeat" else SLOW, lost=losses) as held:
        (tmp_path / NAME / "1").unlink()
        write(place, 1, replace(Ticket.new(), host="elsewhere"))
        if by == "heartbeat":
            eventually(lambda: losses.messages)
        with pytest.raises(ArtifactError, match=r"is lost: got a ticket of process \d+ on elsewhere"):
            held.check()
    assert newest(place)[1].host == "elsewhere" and not newest(place)[1].released


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_store_that_refuses_is_an_error_that_says_what_to_do(tmp_path: Path, code: int) -> None:
    class Refusing(FolderPlace):
        def create(self, name: str, data: bytes) -> bool:
            raise OSError(code, os.strerror(code), name)

    remedy = "free some space" if code == errno.ENOSPC else "make it writable for this user"
    message = f"cannot be taken: got .*{os.strerror(code)}.*, because .*; {remedy}"
    with pytest.raises(ArtifactError, match=message), hold(Refusing(tmp_path), NAME, log=LOG):
        pytest.fail("nothing was created")


def test_a_folder_without_permission_to_write_is_refused_at_once() -> None:
    """In another process, which is nobody where this one may write anywhere."""
    code = """
if os.getuid() == 0:
    os.setuid(65534)
try:
    with hold(place, name, log=log):
        print("held")
except Exception as error:
    print(type(error).__name__, error)
"""
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code, str(root), "1", "60"], capture_output=True, text=True, timeout=30
        )
    finally:
        shutil.rmtree(root)
    assert done.stdout.startswith(f"ArtifactError lock {NAME} cannot be taken: got [Errno 13] Permission denied"), done


def test_a_store_that_stays_away_while_we_wait_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Away(FolderPlace):
        def names(self, folder: str) -> list[str]:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    message = "got .*Connection reset by peer, because the store is not at hand; run the same command"
    place = Away(tmp_path)
    with pytest.raises(ArtifactError, match=message), hold(place, NAME, log=LOG, beat=BEAT, silence=0.3):
        pytest.fail("nothing was created")
    assert caplog.text.count("trying again") == 1


def test_importing_locks_needs_the_standard_library_only() -> None:
    code = "import sys; sys.path.insert(0, '.'); import steps.lib.locks, steps.lib.place"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=30)
