"""The store on a URL: artifacts as objects, and a folder on this machine as a cache that is read through.

Below the URL::

    <step>/<hash20>/manifest.json       written last, by a conditional create: every file that it lists is there
    <step>/<hash20>/<seal12>/<file>     the files; the folder is named by the manifest's seal, so that what two machines made of
                                        one key never mixes
    broken/<step>-<hash20>-<time>/      set aside, with the reason beside it
    .locks/ .runs/ .pins/               small files (``UrlPlace``)

The URL is the truth. An artifact is visible when its manifest is there: it is created last and taken away first.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steps.lib.artifact import MANIFEST, Artifact, parse
from steps.lib.errors import ArtifactError, Damaged
from steps.lib.objects import NO_ROOM, Trouble, UrlPlace
from steps.lib.place import Place
from steps.lib.store import BROKEN, LOG, Store
from steps.lib.tickets import abandoned, mark
from steps.lib.transfer import download, files_of, misfit, rename, settle, upload

HERE = "in the copy on this machine: "
FETCH = ".fetch-"
"""In the names of folders into which something is fetched."""


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store on a URL. ``root`` is the local cache."""

    remote: UrlPlace

    @property
    def cache(self) -> Path:
        """The folder that ``open_store`` was given: this store's copies lie in a folder of it."""
        return self.root.parent

    @property
    def name(self) -> str:
        """Its URL."""
        return self.remote.url

    @property
    def place(self) -> Place:
        """Where its small shared files lie: at the URL."""
        return self.remote

    def find(self, key: str) -> Artifact | None:
        """Look an artifact up. One that is only at the URL comes with its manifest alone; ``fetch`` brings its bytes.

        A damaged one is set aside where it lies. One that is only here (its upload was cut off) is kept now.

        Raises:
            ArtifactError: the URL cannot be read.
        """
        here = self._here.find(key)
        with _clear():
            there = self._there(key)
        if here is not None and there is None:
            try:
                self.keep(here)
            except ArtifactError as error:
                LOG.warning("artifact %s is on this machine only, and stays so: %s", key, error)
            return self._here.find(key)
        if here is not None and there is not None:
            if here.seal == there.seal:
                return here
            self._here.set_aside(key, f"another result of the same key counts, the one at {self.name}")
        return there

    def look(self, key: str) -> Artifact | str | None:
        """What lies at a key: at the URL by manifest and sizes (bytes are proved when they are fetched), else in the cache."""
        with _clear():
            found = self._examine(key, self.remote.read(f"{key}/{MANIFEST}"))
        return self._here.look(key) if found is None else found

    def prove(self, key: str) -> str | None:
        """What is wrong with an artifact after reading all of its bytes at the URL, and in the cache where it lies there."""
        with _clear():
            found = self._examine(key, self.remote.read(f"{key}/{MANIFEST}"))
            if not isinstance(found, Artifact):
                return found if found else f"no {MANIFEST}"
            with tempfile.TemporaryDirectory(prefix="prefline-") as folder:
                problem = download(self.remote, found, Path(folder))
        here = self._here.prove(key) if found.path.exists() else None
        return problem or (f"{HERE}{here}" if here else None)

    def fetch(self, artifact: Artifact, *, alone: bool = False) -> Artifact:
        """Bring all bytes of an artifact and (unless ``alone``) of its ancestors into the cache, each file proved by its digest.

        Raises:
            Damaged: one was damaged, and is set aside.
            ArtifactError: the URL cannot be read, or the cache not written.
        """
        done = {artifact.key}
        waiting = [artifact]
        with _clear():
            while waiting:
                one = self._bring(waiting.pop())
                for key in () if alone else sorted({entry["key"] for entry in one.manifest["inputs"].values()} - done):
                    done.add(key)
                    found = self._here.find(key) or self._there(key)
                    if found is not None:
                        waiting.append(found)
                    else:
                        LOG.warning("artifact %s, of which %s was made, is not at %s any more", key, one.key, self.name)
        return Artifact(self.folder(artifact.key), artifact.manifest)

    def keep(self, artifact: Artifact, *, replace: bool = False) -> None:
        """Upload a published artifact: files, then the manifest. What an earlier try had sent is not sent again.

        Args:
            artifact: whole, in the cache.
            replace: set another result of the same key aside. Otherwise that one counts, and comes here in place of ours.

        Raises:
            ArtifactError: the URL cannot be read or written. The artifact stays here, and the next look-up keeps it.
        """
        key = artifact.key
        with _clear():
            there = self._there(key)
            if replace and there is not None and there.seal != artifact.seal:
                self._set_aside_there(key, "built again on request")
                there = None
            if there is None:
                left = upload(self.remote, artifact)
                if self.remote.create(f"{key}/{MANIFEST}", (artifact.path / MANIFEST).read_bytes()):
                    self.remote.together([partial(self.remote.drop, name) for name in left])
                    return
                there = self._there(key)
        if there is not None and there.seal != artifact.seal:
            self._here.set_aside(key, f"another result of the same key was first at {self.name}")
            self.fetch(there)

    def keys(self, step: str | None = None) -> Iterator[str]:
        """Keys of what looks like an artifact (nothing is checked), in order."""
        with _clear():
            steps = [step] if step else [name for name, kind in self.remote.entries("") if kind == "directory"]
            names = [name for one in steps if one != BROKEN and one[0] != "." for name in self.remote.below(one)]
        yield from sorted(name.rpartition("/")[0] for name in names if re.fullmatch(f"[^/]+/[^/]+/{MANIFEST}", name))

    def artifacts(self, step: str | None = None) -> Iterator[Artifact]:
        """Every artifact with a whole manifest, in the order of its key; its bytes may not be here."""
        return self.manifests(step)

    def manifests(self, step: str | None = None) -> Iterator[Artifact]:
        """The same: at a URL nothing else is looked at."""
        keys = list(self.keys(step))
        with _clear():
            texts = self.remote.together([partial(self.remote.get, f"{key}/{MANIFEST}") for key in keys], most=16)
        for key, data in zip(keys, texts, strict=True):
            manifest = None if data is None else parse(data, key)
            if isinstance(manifest, dict):
                yield Artifact(self.folder(key), manifest)

    def set_aside(self, key: str, reason: str) -> Path:
        """Move an artifact to ``broken/``, at the URL and here, write the reason beside it, and warn.

        A reason that is only of the copy on this machine (``prove``) moves that alone.

        Raises:
            ArtifactError: the URL or the cache cannot be written.
        """
        if reason.startswith(HERE):
            return self._here.set_aside(key, reason)
        with _clear():
            self._set_aside_there(key, reason)
        return self._here.set_aside(key, reason) if self.folder(key).exists() else self._broken(key)

    def remove(self, key: str) -> None:
        """Delete an artifact at the URL, its manifest first, and here.

        Raises:
            ArtifactError: the URL cannot be written.
        """
        with _clear():
            self.remote.delete(f"{key}/{MANIFEST}")
            self.remote.together([partial(self.remote.drop, name) for name in self.remote.below(key)], most=16)
        if self.folder(key).exists():
            self._here.remove(key)

    @property
    def _here(self) -> Store:
        return Store(self.root)

    def _there(self, key: str) -> Artifact | None:
        """The artifact at the URL, by its manifest and its files' sizes. A damaged one is set aside."""
        data = self.remote.read(f"{key}/{MANIFEST}")
        found = self._examine(key, data)
        if isinstance(found, str):
            self._set_aside_there(key, found, lambda now: now == data)
        return found if isinstance(found, Artifact) else None

    def _examine(self, key: str, data: bytes | None) -> Artifact | str | None:
        """The artifact that a manifest at the URL stands for, or what is wrong with it or its files' sizes."""
        if data is None:
            return None
        manifest = parse(data, key)
        if isinstance(manifest, str):
            return manifest
        artifact = Artifact(self.folder(key), manifest)
        return misfit(artifact, self.remote.below(files_of(artifact))) or artifact

    def _bring(self, artifact: Artifact) -> Artifact:
        """One artifact's bytes into the cache, by way of a folder beside it."""
        key = artifact.key
        here = self._here.find(key)
        if here is not None and here.seal == artifact.seal:
            return here
        if here is not None:
            self._here.set_aside(key, f"another result of the same key counts, the one at {self.name}")
        folder = self.folder(key)
        work = folder.with_name(f".{folder.name}{FETCH}{mark()}")
        for left in abandoned(folder.parent, f".*{FETCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            work.mkdir(parents=True)
            problem = download(self.remote, artifact, work)
            if problem is None:
                settle(work, artifact.manifest)
                with suppress(FileExistsError):  # another process was quicker
                    rename(work, folder)
                return Artifact.read(folder)
        except OSError as error:
            if isinstance(error, Trouble) and error.errno not in NO_ROOM:
                raise
            raise ArtifactError(
                f"artifact {key} cannot be fetched into {self.root}: got {error.strerror or error}, because the folder has no "
                f"room for {artifact.size / 1e6:.1f} MB, or may not be written; free some space, or name another folder "
                "(cache=FOLDER)"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._set_aside_there(key, problem, lambda now: artifact.seal.encode() in now)
        raise Damaged(
            f"artifact {key} at {self.name} is damaged: got {problem}, because it was changed after it was uploaded; it is "
            "set aside there: run the same command again, which builds it again"
        )

    def _set_aside_there(self, key: str, reason: str, meant: Callable[[bytes], bool] = lambda now: True) -> None:
        """Take the manifest away, so that nobody sees the artifact any more, then move its files.

        Args:
            key: the artifact's.
            reason: what is wrong with it.
            meant: whether the manifest that is there now is the one with the problem; a newer one stays.
        """
        now = self.remote.read(f"{key}/{MANIFEST}")
        if now is None or not meant(now):
            return
        target = self._broken(key).relative_to(self.root).as_posix()
        self.remote.write(f"{target}.reason.txt", (reason + "\n").encode())
        self.remote.write(f"{target}/{MANIFEST}", now)
        self.remote.delete(f"{key}/{MANIFEST}")
        to = f"{self.name}/{target}"
        LOG.warning("artifact %s is set aside in %s: %s; it is built again when it is needed", key, to, reason)
        names = {name: name.removeprefix(f"{key}/").partition("/")[2] for name in self.remote.below(key)}
        jobs = [partial(self.remote.move, name, f"{target}/{rest}") for name, rest in names.items() if rest]
        self.remote.together(jobs)


@contextmanager
def _clear() -> Iterator[None]:
    """Trouble of the place is an error of the store."""
    try:
        yield
    except Trouble as error:
        raise ArtifactError(str(error)) from error
