"""The store on a URL, against a real server on loopback that speaks S3."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3_server import Act, Asked, Server, machine

from steps.lib import objects
from steps.lib.artifact import MANIFEST, Artifact, lineage
from steps.lib.errors import ArtifactError, ConfigError
from steps.lib.models import model_folder, write_location
from steps.lib.objects import Trouble, UrlPlace
from steps.lib.publishing import publish
from steps.lib.remote import RemoteStore
from steps.lib.store import Store, work_folder
from steps.lib.stores import open_store

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.server


@pytest.fixture
def place(url: str, tmp_path: Path) -> UrlPlace:
    store = open_store(url, tmp_path)
    assert isinstance(store, RemoteStore)
    return store.remote


def build(store: Store, key: str, files: dict[str, bytes] | None = None, *inputs: Artifact) -> Artifact:
    """Make and publish an artifact on this machine, as a step does; nothing is kept at the URL yet."""
    work = work_folder(store.folder(key))
    work.mkdir(parents=True)
    for name, data in (
        files or {"model/weights.bin": b"w" * 3000, "record/log.jsonl": b"{}\n", "a b/ü.txt": b""}
    ).items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    links = {f"input{n}": {"key": one.key, "digest": one.digest} for n, one in enumerate(inputs)}
    return publish(work, store.folder(key), {"key": key, "step": key.split("/")[0], "inputs": links})


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    paths = (path for path in artifact.path.rglob("*") if path.is_file())
    return {path.relative_to(artifact.path).as_posix(): path.read_bytes() for path in paths}


def objects_of(store: RemoteStore, folder: str) -> list[str]:
    return sorted(store.remote.below(folder))


def reasons(store: RemoteStore) -> list[str]:
    """Why artifacts were set aside at the URL."""
    names = [name for name in store.remote.names("broken") if name.endswith(".reason.txt")]
    return [(store.remote.read(f"broken/{name}") or b"").decode() for name in names]


def hidden(store: RemoteStore) -> list[str]:
    """What lies in the cache besides artifacts."""
    return [path.name for path in store.root.rglob(".*")]


# --- small files -----------------------------------------------------------------------------------------------------


def test_a_place_reads_what_was_written(place: UrlPlace) -> None:
    assert place.read(".locks/a/1") is None and place.names(".locks/a") == []
    place.write(".locks/a/1", b"one")
    place.write(".locks/a/10", b"ten")
    place.write(".locks/a/b/c", b"deep")
    place.write(".locks/ab/1", b"another")
    assert place.read(".locks/a/1") == b"one"
    assert place.names(".locks/a") == ["1", "10"] and place.names(".locks") == []
    place.write(".locks/a/1", b"")
    assert place.read(".locks/a/1") == b""
    place.delete(".locks/a/1")
    place.delete(".locks/a/1")
    assert place.read(".locks/a/1") is None and place.names(".locks/a") == ["10"]


def test_listings_are_fresh(place: UrlPlace, url: str, tmp_path: Path) -> None:
    """Also after another process wrote: nothing of this one can have told it."""
    place.write("a/1", b"")
    assert place.names("a") == ["1"] and list(place.below("a")) == ["a/1"]
    code = (
        f"from pathlib import Path; from steps.lib.stores import open_store; p = open_store({url!r}, Path('.')).place\n"
    )
    subprocess.run([sys.executable, "-c", code + "p.write('a/2', b''); p.delete('a/1')"], cwd=ROOT, check=True)
    assert place.names("a") == ["2"] and list(place.below("a")) == ["a/2"]


def test_more_names_than_a_page_of_the_server(place: UrlPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    for number in range(23):
        place.write(f"many/{number:02d}", b"")
    assert place.names("many") == [f"{number:02d}" for number in range(23)] and len(place.below("many")) == 23


def test_create_does_not_overwrite(place: UrlPlace) -> None:
    assert place.create("lock", b"mine")
    assert not place.create("lock", b"yours") and not place.create("lock", b"mine")
    assert place.read("lock") == b"mine"
    place.delete("lock")
    assert place.create("lock", b"yours")


def test_of_many_threads_one_creates(place: UrlPlace) -> None:
    for turn in range(6):
        barrier = threading.Barrier(8)

        def create(number: int, turn: int = turn, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return place.create(f"turn/{turn}", b"%d" % number)

        with ThreadPoolExecutor(8) as pool:
            won = [number for number, made in enumerate(pool.map(create, range(8))) if made]
        assert len(won) == 1 and place.read(f"turn/{turn}") == b"%d" % won[0]


def test_of_many_processes_one_creates(url: str, place: UrlPlace) -> None:
    code = (
        "import sys; from pathlib import Path; from steps.lib.stores import open_store\n"
        f"place = open_store({url!r}, Path('.')).place; place.read('warm'); print('ready', flush=True); sys.stdin.readline()\n"
        "print(*[n for n in range(40) if place.create(f'race/{n}', sys.argv[1].encode())])"
    )
    crowd = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT, stdin=-1, stdout=-1, text=True)
        for n in range(3)
    ]
    for process in crowd:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in crowd:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    won = {str(n): process.communicate(timeout=60)[0].split() for n, process in enumerate(crowd)}
    assert sorted(int(name) for names in won.values() for name in names) == list(range(40))
    assert all(place.read(f"race/{name}") == who.encode() for who, names in won.items() for name in names)


def test_a_create_whose_answer_is_lost_counts_once(place: UrlPlace, s3: Server) -> None:
    """The request is sent again by the package, and refused: by what we wrote ourselves."""
    assert place.create("warm", b"")
    lost: list[Asked] = []

    def lose_the_first(asked: Asked) -> Act | None:
        if asked.path.endswith("/lock") and asked.conditional and not lost:
            lost.append(asked)
            return Act(lose=True)
        return None

    s3.decide = lose_the_first
    assert place.create("lock", b"same") is True
    assert lost and len(s3.puts("/lock")) == 2
    assert place.create("lock", b"same") is False


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_creates_that_meet_are_sent_again(place: UrlPlace, s3: Server, code: str) -> None:
    acts = iter([Act(refuse=(409, code)), Act(refuse=(409, code))])
    assert place.create("warm", b"")
    s3.decide = lambda asked: next(acts, None) if asked.path.endswith("/lock") else None
    assert place.create("lock", b"mine") is True and place.create("lock", b"yours") is False


def test_a_refusal_that_does_not_name_its_condition(place: UrlPlace, s3: Server) -> None:
    """S3 says which condition failed, others do not."""
    assert place.create("lock", b"mine")
    s3.decide = lambda asked: Act(refuse=(412, "PreconditionFailed")) if asked.conditional else None
    assert place.create("lock", b"yours") is False


@pytest.mark.parametrize("act", [Act(overwrite=True), Act(refuse=(501, "NotImplemented"))])
def test_a_server_without_conditional_create_is_refused(place: UrlPlace, s3: Server, act: Act) -> None:
    s3.decide = lambda asked: act if asked.conditional else None
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot be used: got a second \.prefline in place of a refusal"):
            place.create("lock", b"")
    assert place.read("lock") is None


# --- what cannot be reached ------------------------------------------------------------------------------------------


def test_a_bucket_that_may_only_be_read(one: RemoteStore, two: RemoteStore, s3: Server) -> None:
    """All that is there can be used; the first thing that a build needs, its lock, says no at once."""
    base = build(one, "base/1")
    one.keep(base)
    chat = build(one, "sft/1", None, base)
    one.keep(chat)
    two = machine(two.name, two.cache)
    s3.decide = lambda asked: Act(refuse=(403, "AccessDenied")) if asked.method in ("PUT", "DELETE", "POST") else None
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(chat)
    assert two.find("sft/2") is None
    with pytest.raises(Trouble, match="refuses: got AccessDenied .* allow them to list the bucket") as error:
        two.place.create(".locks/sft-2/1", b"")
    assert error.value.errno == errno.EACCES
    build(two, "sft/2")
    assert two.find("sft/2"), "what is only here can be used, too"


def test_a_bucket_that_does_not_exist(s3: Server, tmp_path: Path) -> None:
    store = machine("s3://no-such-bucket/x", tmp_path)
    said = "store s3://no-such-bucket/x is not there: got NoSuchBucket .* make the bucket, or correct the URL"
    with pytest.raises(ArtifactError, match=said):
        store.find("sft/1")
    with pytest.raises(ArtifactError, match=said):
        list(store.keys())
    with pytest.raises(Trouble, match=said):
        store.place.create("x", b"")


def test_a_server_that_is_not_there(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match="does not answer: got EndpointConnectionError .* check AWS_ENDPOINT_URL"):
        machine("s3://bucket/x", tmp_path).find("sft/1")


def test_a_server_that_does_not_answer(place: UrlPlace, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat must not hang for minutes."""
    monkeypatch.setattr(objects, "PATIENCE", 0.5)
    s3.decide = lambda asked: Act(delay=3)
    for ask in (place.read, place.names, lambda name: place.write(name, b""), place.delete):
        started = time.monotonic()
        with pytest.raises(Trouble, match="does not answer: got FSTimeoutError"):
            ask("x")
        assert time.monotonic() - started < 2


def test_wrong_credentials(one: RemoteStore, s3: Server) -> None:
    s3.decide = lambda asked: Act(refuse=(403, "InvalidAccessKeyId"))
    with pytest.raises(ArtifactError, match="refuses: got InvalidAccessKeyId"):
        one.find("sft/1")


def test_no_credentials(url: str, tmp_path: Path) -> None:
    """In a process of its own: the package keeps the credentials that it once found."""
    code = (
        f"from pathlib import Path; from steps.lib.stores import open_store; open_store({url!r}, Path('.')).find('a/b')"
    )
    hidden = {name: value for name, value in os.environ.items() if "ACCESS_KEY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=hidden, capture_output=True, text=True, check=False
    )
    assert "cannot be opened: got NoCredentialsError" in done.stderr and "set AWS_ACCESS_KEY_ID" in done.stderr


def test_a_server_that_fails_once_in_a_while(one: RemoteStore, two: RemoteStore, s3: Server) -> None:
    """Any request may fail once with a server's error, and one in three may lose its answer."""
    seen: set[Asked] = set()

    def decide(asked: Asked) -> Act | None:
        if asked in seen:
            return None
        seen.add(asked)
        return Act(lose=True) if len(seen) % 3 == 0 else Act(refuse=(503, "SlowDown")) if len(seen) % 3 == 1 else None

    s3.decide = decide
    artifact = build(one, "sft/1")
    one.keep(artifact)
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(artifact)


# --- URLs ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("data/artifacts", tmp_path) == Store(tmp_path / "data" / "artifacts")
    assert open_store(f"file://{tmp_path}/a%20b", tmp_path) == Store(tmp_path / "a b")


def test_each_url_has_a_cache_of_its_own(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["s3://bucket/a/b", "s3://bucket/a-b", "s3://bucket/a", "s3://bucket", "s3://bucket-a/b", "s3://bucket/A/b"]
    roots = [open_store(url, tmp_path).root for url in urls]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    roots.append(open_store(urls[0], tmp_path).root)
    assert len({str(root).lower() for root in roots}) == len(roots) and {root.parent for root in roots} == {tmp_path}
    same = [open_store(url, tmp_path).root for url in ("s3://bucket/a/b/", "s3a://bucket/a/b", "S3://bucket//a/b")]
    assert set(same) == {roots[-1]}


def test_a_store_is_opened_again_by_its_name(one: RemoteStore, tmp_path: Path) -> None:
    """The engine tells a step's process the name and the cache of its store."""
    assert open_store(one.name, one.cache) == one


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "memory://x",
            r"got 'memory://', because a store is a folder, or an object store .* give a folder, file:///folder, s3://",
        ),
        ("https://host/x", "got 'https://'"),
        ("abfs://bucket/x", "got 'abfs://'"),
        ("simplecache::s3://bucket/x", "got 'simplecache:'"),
        ("s3:/bucket/x", "got 's3:'"),
        ("file://folder", "got 'file://'"),
        ("s3://", "names no bucket: got nothing behind s3://; give s3://bucket/prefix"),
        ("s3:///x", "names no bucket"),
    ],
)
def test_other_urls_are_refused(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        open_store(url, tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    block = "import sys; sys.modules['s3fs'] = sys.modules['gcsfs'] = None; from pathlib import Path\n"
    code = block + "from steps.lib.stores import open_store\nopen_store(sys.argv[1], Path('.'))"
    for protocol, install in (("s3", "pip install 'prefline[s3]'"), ("gs", "pip install gcsfs")):
        argv = [sys.executable, "-c", code, f"{protocol}://bucket/x"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"store {protocol}://bucket/x needs" in done.stderr and f"install it with `{install}`" in done.stderr


def test_the_module_imports_no_package_of_a_protocol() -> None:
    code = "import sys, steps.lib.remote; print([n for n in ('fsspec', 's3fs', 'botocore', 'aiohttp') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- two machines ----------------------------------------------------------------------------------------------------


def test_built_on_one_machine_read_on_another(one: RemoteStore, two: RemoteStore) -> None:
    base = build(one, "base/b1", {"model/config.json": b"{}", "model/weights.bin": b"w" * 5000})
    data = build(one, "clean/d1", {"chats.parquet": b"p" * 100})
    chat = build(one, "sft/s1", {"adapter/weights.bin": b"a" * 700}, base, data)
    write_location(chat.path, path="", key="base/b1")
    (one.root / "policy").mkdir()
    work = work_folder(one.folder("dpo/p1"))
    work.mkdir(parents=True)
    (work / "adapter.bin").write_bytes(b"d" * 50)
    write_location(work, path="nowhere", key="base/b1")
    facts = {"key": "dpo/p1", "inputs": {"policy": {"key": "sft/s1"}, "pairs": {"key": "clean/d1"}}}
    policy = publish(work, one.folder("dpo/p1"), facts)
    (chat.path / "record" / "location.json").unlink()
    for artifact in (base, data, chat, policy):
        one.keep(artifact)

    found = two.find("dpo/p1")
    assert found is not None and found.digest == policy.digest and not found.path.exists()
    here = two.fetch(found)
    assert here.path == two.folder("dpo/p1") and bytes_of(here) == bytes_of(policy)
    assert [one["key"] for one in lineage(here.path)] == ["dpo/p1", "sft/s1", "clean/d1", "base/b1"]
    assert model_folder(here.path) == two.folder("base/b1") / "model"
    assert [one.digest for one in two.artifacts()] == [one.digest for one in (base, data, policy, chat)]
    assert hidden(two) == [] and all(Artifact.read(two.folder(key), deep=True) for key in list(two.keys()))


def test_what_is_here_is_not_fetched_again(one: RemoteStore, two: RemoteStore, s3: Server) -> None:
    one.keep(build(one, "base/1"))
    found = two.find("base/1")
    assert found
    two.fetch(found)
    s3.log.clear()
    again = two.find("base/1")
    assert again and again.path.exists()
    two.fetch(again)
    assert [asked.path.rpartition("/")[2] for asked in s3.log if asked.path.count("/") > 1] == [MANIFEST]


def test_the_manifest_comes_last(one: RemoteStore, s3: Server) -> None:
    one.keep(build(one, "sft/1"))
    puts = s3.puts("sft/1")
    assert len(puts) == 4 and [path.endswith(f"sft/1/{MANIFEST}") for path in puts] == [False, False, False, True]
    assert [asked.conditional for asked in s3.log if asked.path == puts[-1] and asked.method == "PUT"] == [True]


def test_what_is_only_here_is_kept_at_the_next_look(one: RemoteStore, two: RemoteStore) -> None:
    """As after a kill between publishing and the end of the upload."""
    artifact = build(one, "sft/1")
    assert two.find("sft/1") is None
    assert one.find("sft/1") == artifact
    assert two.find("sft/1") == Artifact(two.folder("sft/1"), artifact.manifest)


def test_an_upload_that_was_cut_off_goes_on(one: RemoteStore, two: RemoteStore, s3: Server) -> None:
    """Whole files are not sent twice; half of an old one, or a foreign one, is."""
    artifact = build(one, "sft/1", {"a": b"a" * 10, "b": b"b" * 10, "c": b"c" * 10, "d": b"d" * 10})
    refused = Act(refuse=(403, "AccessDenied"))
    s3.decide = lambda asked: refused if asked.path.endswith(MANIFEST) and asked.method == "PUT" else None
    with pytest.raises(ArtifactError, match="refuses"):
        one.keep(artifact)
    s3.decide = lambda asked: None
    assert two.find("sft/1") is None
    at = f"sft/1/{artifact.manifest['seal'][:12]}"
    one.remote.write(f"{at}/a", b"half")
    one.remote.write(f"{at}/b", b"B" * 10)
    one.remote.delete(f"{at}/c")
    one.remote.write("sft/1/0123456789ab/x", b"of an upload that nobody finished")
    s3.log.clear()
    one.keep(artifact)
    assert [path.rpartition("/")[2] for path in sorted(s3.puts("sft/1"))] == ["a", "b", "c", MANIFEST]
    assert objects_of(one, "sft/1") == [*(f"{at}/{name}" for name in "abcd"), f"sft/1/{MANIFEST}"]
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(artifact)


def test_large_files_go_in_pieces(
    one: RemoteStore, two: RemoteStore, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "CHUNK", 5 << 20)
    artifact = build(one, "sft/1", {"weights.bin": os.urandom(1 << 20) * 23 + b"end"})
    one.keep(artifact)
    assert len(s3.puts("weights.bin")) == 5
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(artifact)
    ranges = [asked for asked in s3.log if asked.method == "GET" and asked.path.endswith("weights.bin")]
    assert len(ranges) == 6, "one look and five pieces"
    s3.log.clear()
    two.remote.delete(f"sft/1/{MANIFEST}")
    one.keep(artifact)
    assert not s3.puts("weights.bin"), "its digest stands with the object"


# --- damage ----------------------------------------------------------------------------------------------------------


def spoil_manifest(data: bytes) -> bytes:
    manifest = json.loads(data)
    manifest["files"]["../../outside"] = manifest["files"].pop("w")
    return json.dumps(manifest).encode()


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "truncated": ("w", lambda data: data[:-1], "w of 2999 bytes, where the manifest says 3000"),
    "missing": ("w", lambda data: None, "no file w, which the manifest lists"),
    "altered": ("w", lambda data: b"W" + data[1:], "w with other bytes (sha256 "),
    "manifest truncated": (MANIFEST, lambda data: data[:-9], "a manifest.json that does not parse"),
    "manifest empty": (MANIFEST, lambda data: b"", "a manifest.json that does not parse"),
    "manifest altered": (MANIFEST, lambda data: data.replace(b'"size": 3000', b'"size": 3001'), "was changed after it was written"),
    "manifest of another": (MANIFEST, lambda data: "sft/2", "the artifact sft/2 at the place of sft/1"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "late"), [*((one, False) for one in DAMAGE), *((one, True) for one in DAMAGE if "manifest" not in one)]
)
def test_damage_at_the_url_is_set_aside_and_built_again(
    one: RemoteStore, two: RemoteStore, damage: str, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``late``: it happens after the look, which reads the manifest and the sizes."""
    name, spoil, said = DAMAGE[damage]
    artifact = build(one, "sft/1", {"w": b"w" * 3000, "x": b"x"})
    one.keep(artifact)
    one.keep(build(one, "sft/2"))
    found = two.find("sft/1") if late else None
    path = f"sft/1/{MANIFEST}" if name == MANIFEST else f"sft/1/{artifact.manifest['seal'][:12]}/{name}"
    data = spoil(one.remote.read(path))
    if data == "sft/2":
        data = one.remote.read(f"sft/2/{MANIFEST}")
    one.remote.delete(path)
    if data is not None:
        one.remote.write(path, data)
    with caplog.at_level(logging.WARNING, "prefline.store"):
        if found is None and damage != "altered":
            assert two.find("sft/1") is None
        else:
            found = found or two.find("sft/1")
            assert found
            with pytest.raises(
                ArtifactError, match="artifact sft/1 at s3://.* is damaged: got .* run the same command again"
            ):
                two.fetch(found)
    logged = [record.getMessage() for record in caplog.records]
    assert [line for line in logged if "artifact sft/1 is set aside in s3://" in line and said in line], logged
    assert len(reasons(two)) == 1 and said in reasons(two)[0]
    left = [name.partition("/")[2].partition("/")[2] for name in objects_of(two, "broken") if not name.endswith(".txt")]
    assert left == sorted(name for name in (MANIFEST, "w", "x") if (damage, name) != ("missing", "w"))
    assert objects_of(two, "sft/1") == [] and hidden(two) == [] and not two.folder("sft/1").exists()
    assert two.find("sft/1") is None
    again = build(two, "sft/1", {"w": b"w" * 3000, "x": b"x"})
    two.keep(again)
    assert again.digest == artifact.digest
    third = machine(two.name, two.cache.parent / "three")
    found = third.find("sft/1")
    assert found and bytes_of(third.fetch(found)) == bytes_of(again)


def test_a_machine_that_has_it_whole_mends_the_url(one: RemoteStore, two: RemoteStore) -> None:
    artifact = build(one, "sft/1", {"w": b"w" * 3000})
    one.keep(artifact)
    one.remote.delete(f"sft/1/{artifact.manifest['seal'][:12]}/w")
    assert one.find("sft/1") == artifact
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(artifact) and len(reasons(two)) == 1


def test_a_manifest_that_points_outside(one: RemoteStore, two: RemoteStore) -> None:
    """Whoever writes to the bucket must not write anywhere else on this machine."""
    from steps.lib.artifact import seal

    artifact = build(one, "sft/1", {"w": b"w" * 30})
    changes: list[dict[str, Any]] = [
        {"files": {name: {"size": 30, "sha256": ""}}} for name in ("../../w", "/w", "a//b")
    ]
    changes.append({"inputs": {"base": {"key": "../../base"}}})
    for change in changes:
        manifest = {**artifact.manifest, **change}
        manifest["seal"] = seal(manifest)
        one.remote.write(f"sft/1/{MANIFEST}", json.dumps(manifest).encode())
        assert two.find("sft/1") is None
    assert all("outside its folder" in reason for reason in reasons(two)) and len(reasons(two)) == 4


def test_damage_of_the_copy_here_is_fetched_again(one: RemoteStore, two: RemoteStore) -> None:
    artifact = build(one, "sft/1", {"w": b"w" * 3000})
    one.keep(artifact)
    (artifact.path / "w").write_bytes(b"W" * 3000)
    found = one.find("sft/1")
    assert found and not found.path.exists()
    assert (one.fetch(found).path / "w").read_bytes() == b"w" * 3000
    assert reasons(one) == [] and len(list((one.root / "broken").glob("*.reason.txt"))) == 1


def test_damage_of_an_ancestor(one: RemoteStore, two: RemoteStore) -> None:
    base = build(one, "base/1", {"w": b"w" * 3000})
    chat = build(one, "sft/1", {"a": b"a"}, base)
    one.keep(base)
    one.keep(chat)
    one.remote.write(f"base/1/{base.manifest['seal'][:12]}/w", b"W" * 3000)
    found = two.find("sft/1")
    assert found
    with pytest.raises(ArtifactError, match="artifact base/1 at .* is damaged"):
        two.fetch(found)
    assert two.find("base/1") is None and two.find("sft/1") is not None


def test_an_ancestor_that_was_collected_is_left_out(
    one: RemoteStore, two: RemoteStore, caplog: pytest.LogCaptureFixture
) -> None:
    data = build(one, "clean/1")
    chat = build(one, "sft/1", {"a": b"a"}, data)
    one.keep(data)
    one.keep(chat)
    one.remove("clean/1")
    found = two.find("sft/1")
    assert found and two.fetch(found).path.exists()
    assert "artifact clean/1, of which sft/1 was made, is not at s3://" in caplog.text


def test_what_was_built_anew_meanwhile_is_not_set_aside(one: RemoteStore, two: RemoteStore) -> None:
    """A slow reader finds damage in what another has replaced already."""
    artifact = build(one, "sft/1", {"w": b"w" * 3000})
    one.keep(artifact)
    found = two.find("sft/1")
    assert found
    one.set_aside("sft/1", "for this test")
    newer = build(one, "sft/1", {"w": b"n" * 3000})
    one.keep(newer)
    with pytest.raises(ArtifactError, match="is damaged: got no file w"):
        two.fetch(found)
    now = two.find("sft/1")
    assert now and now.manifest == newer.manifest and bytes_of(two.fetch(now)) == bytes_of(newer)


# --- two results of one key ------------------------------------------------------------------------------------------


def test_of_two_results_one_counts_everywhere(one: RemoteStore, two: RemoteStore) -> None:
    """Two builders that did not know of each other, at once: no mixture, and both go on with the same bytes."""
    results = {
        store.cache.name: build(store, "sft/1", {f"f{n}": os.urandom(2000) for n in range(6)}) for store in (one, two)
    }
    barrier = threading.Barrier(2)

    def keep(store: RemoteStore) -> None:
        barrier.wait()
        store.keep(results[store.cache.name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, (one, two)))
    here = [Artifact.read(store.folder("sft/1"), deep=True) for store in (one, two)]
    assert here[0].manifest == here[1].manifest and here[0].manifest in [
        artifact.manifest for artifact in results.values()
    ]
    assert sum(len(list(store.root.glob("broken/*.reason.txt"))) for store in (one, two)) == 1
    third = machine(one.name, one.cache.parent / "three")
    found = third.find("sft/1")
    assert found and bytes_of(third.fetch(found)) == bytes_of(here[0])
    assert one.find("sft/1") == here[0] and two.find("sft/1") == here[1]


def test_the_same_result_kept_by_many(one: RemoteStore) -> None:
    artifact = build(one, "sft/1")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one.keep, [artifact] * 4))
    assert one.find("sft/1") == artifact and len(objects_of(one, "sft/1")) == 4 and reasons(one) == []


def test_the_url_counts_where_a_machine_has_another_result(one: RemoteStore, two: RemoteStore) -> None:
    first = build(one, "sft/1", {"w": b"1"})
    one.keep(first)
    build(two, "sft/1", {"w": b"2"})
    found = two.find("sft/1")
    assert found and found.manifest == first.manifest and bytes_of(two.fetch(found)) == bytes_of(first)


def test_built_again_on_request_replaces(one: RemoteStore, two: RemoteStore) -> None:
    one.keep(build(one, "sft/1", {"w": b"1"}))
    one._here.set_aside("sft/1", "built again on request")
    again = build(one, "sft/1", {"w": b"2"})
    one.keep(again, replace=True)
    found = two.find("sft/1")
    assert found and bytes_of(two.fetch(found)) == bytes_of(again)
    assert reasons(one) == ["built again on request\n"]


# --- what status and gc need -----------------------------------------------------------------------------------------


def test_keys_and_artifacts_are_those_of_the_url(one: RemoteStore, two: RemoteStore) -> None:
    for key in ("sft/2", "sft/1", "base/1"):
        one.keep(build(one, key, {"w": b"w" * 10, "deep/er/manifest.json": b"{}"}))
    build(one, "sft/3")
    one.place.create(".locks/sft-1/1", b"")
    one.remote.write("sft/9/0123456789ab/w", b"of an upload that goes on")
    one.set_aside("sft/2", "for this test")
    assert (
        list(two.keys()) == ["base/1", "sft/1"] and list(two.keys("sft")) == ["sft/1"] and list(two.keys("dpo")) == []
    )
    found = list(two.artifacts())
    assert [artifact.key for artifact in found] == ["base/1", "sft/1"] and found[0].size == 12
    assert [artifact.path for artifact in found] == [two.folder("base/1"), two.folder("sft/1")]
    one.remote.write(f"base/1/{MANIFEST}", b"{")
    assert [artifact.key for artifact in two.artifacts()] == ["sft/1"]


def test_set_aside_takes_it_from_everyone(one: RemoteStore, two: RemoteStore) -> None:
    artifact = build(one, "base/1")
    one.keep(artifact)
    broken = one.set_aside("base/1", "its source changed")
    assert not artifact.path.exists() and (broken / MANIFEST).exists()
    assert two.find("base/1") is None and one.find("base/1") is None
    assert reasons(two) == ["its source changed\n"]
    two.set_aside("base/1", "again")
    assert len(reasons(two)) == 1


def test_remove_takes_the_manifest_first(one: RemoteStore, two: RemoteStore, s3: Server) -> None:
    artifact = build(one, "sft/1")
    one.keep(artifact)
    s3.log.clear()
    one.remove("sft/1")
    deleted = [asked.path for asked in s3.log if asked.method == "DELETE"]
    assert deleted[0].endswith(f"sft/1/{MANIFEST}") and len(deleted) == 4
    assert objects_of(one, "sft/1") == [] and not artifact.path.exists() and two.find("sft/1") is None
    two.remove("sft/1")


def test_a_cache_that_cannot_be_written(one: RemoteStore, url: str, tmp_path: Path) -> None:
    one.keep(build(one, "sft/1"))
    (tmp_path / "file").write_text("")
    store = machine(url, tmp_path / "file")
    found = store.find("sft/1")
    assert found
    with pytest.raises(ArtifactError, match=r"cannot be fetched into .* got Not a directory.*\(cache=FOLDER\)"):
        store.fetch(found)


def test_a_cache_without_room(one: RemoteStore, url: str, tmp_path: Path) -> None:
    """On a small disk of its own."""
    one.keep(build(one, "sft/1", {"small": b"s" * 1000, "large": b"l" * 2_000_000}))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: only root may")
    try:
        store = machine(url, disk)
        found = store.find("sft/1")
        assert found
        with pytest.raises(ArtifactError, match=r"cannot be fetched into .* no room for 2\.0 MB.*\(cache=FOLDER\)"):
            store.fetch(found)
        assert hidden(store) == [] and reasons(store) == [] and store.find("sft/1") == found
    finally:
        subprocess.run(["umount", disk], check=True)
