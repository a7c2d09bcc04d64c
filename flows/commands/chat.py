"""``prefline chat``: talk with the models of a line; each base is loaded once, and adapters are switched on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.words import Json, Profile, Recipe

if TYPE_CHECKING:
    from flows.line import AlignConfig
    from steps.lib.conversation import Conversation, Speaker
    from steps.lib.inference import Sampling
    from steps.lib.registry import Version
    from steps.lib.store import Store

Words = Annotated[
    str,
    Parameter(
        help="Models: steps of this configuration, keys or starts of keys, champion or a version of the registry; none: the newest "
        "that is there. Words with = are changes, such as store=FOLDER."
    ),
]


def chat(
    *models: Words,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    ask: list[str] | None = None,
    system: str = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    seed: int | None = None,
    bad_cases: Path = Path("bad-cases.jsonl"),
    json: Json = False,
    web: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Talk with one or several models: in the terminal, with --ask, or with prompts on standard input.

    In a terminal, /help lists what can be said besides. Prompts that come through a pipe, one a line, each begin a conversation of
    their own; what comes out is JSONL, a row for each prompt and model, with the model's digest.

    Parameters
    ----------
    ask
        A prompt that every model answers; may be given several times.
    system
        The system turn.
    temperature
        0 is greedy, the same words every time; with more, the seed decides.
    top_p
        Share of the likeliest tokens that is drawn from.
    max_tokens
        Tokens of the longest answer; evaluate.max_tokens without it.
    seed
        Seed of the draws; the line's without it.
    bad_cases
        JSONL file that /bad adds to.
    json
        With --ask: JSONL in place of text.
    web
        A page in the browser in place of the terminal: the models side by side, with thumbs and corrections that go into the store
        of bad cases (retrain.feedback). Needs the extra web.
    host
        With --web: address to listen at; only this machine without it.
    port
        With --web: its port.
    """
    import io
    import sys

    from flows.plan import opened, split
    from steps.lib import runtime

    names, overrides = split(models)
    config, store = opened(profile, recipe, overrides)
    sampling = _sampling(temperature, top_p, config.evaluate.max_tokens if max_tokens is None else max_tokens)
    start = config.seed if seed is None else seed
    options = [*overrides, *(["--profile", profile] if profile != "cpu-tiny" else [])]
    options += [word for path in recipe or [] for word in ("--recipe", str(path))]
    speakers = chosen(names, config, store, options)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    runtime.prepare(start)
    runtime.seed_torch(start)

    from transformers.utils.logging import disable_progress_bar

    from flows.commands.repl import Repl
    from steps.lib.conversation import Conversation
    from steps.lib.stages import Stages

    disable_progress_bar()
    talk = Conversation(Stages(config.evaluate.precision, bases=None), sampling, start, system)
    if web:
        from flows.commands.playground import Playground

        Playground(speakers, talk, config.retrain.feedback).serve(host, port)
    elif not ask and sys.stdin.isatty():
        Repl(speakers, talk, bad_cases).run()
    elif ask and not json:
        Repl(speakers, talk, bad_cases).ask(ask)
    else:
        _answer_all(ask or _prompts(), speakers, talk)


def chosen(names: Sequence[str], config: AlignConfig, store: Store, options: Sequence[str] = ()) -> list[Speaker]:
    """The models that words name, each once; without a word, the newest of the line that is there.

    Args:
        names: the words.
        config: of the line.
        store: its store.
        options: words of the command line that lead to this configuration, for the hint how to build a model.

    Raises:
        ConfigError: a word names nothing, or several things.
        ArtifactError: it is not built.
        ModelError: it is no model that can be talked with.
    """
    from steps.lib.conversation import Speaker

    return [
        Speaker.of(name, _folder(name, config, store, options))
        for name in dict.fromkeys(names) or [_newest(config, store, options)]
    ]


def _folder(word: str, config: AlignConfig, store: Store, options: Sequence[str]) -> Path:
    """The folder of the artifact, or of the registered version, that a word names."""
    import shlex

    from flows.commands.status import note
    from flows.plan import resolve
    from steps.lib.errors import ArtifactError

    if version := _registered(word, config):
        return _artifact_of(version, store)
    look = resolve(word, config, store)
    if look.artifact is None:
        command = shlex.join(["prefline", "step", look.step, "--upstream", *options])
        reason = f"{'it waits ' if look.state == 'waits' else ''}{note(look, store)}" or "it was never built here"
        raise ArtifactError(
            f"model {word} is not built: got state {look.state}, because {reason}; build it with `{command}`"
        )
    return store.fetch(look.artifact).path


def _newest(config: AlignConfig, store: Store, options: Sequence[str]) -> str:
    """The last step of the line whose model is there."""
    import shlex

    from flows.plan import walk
    from steps.lib.conversation import Speaker
    from steps.lib.errors import ArtifactError, ModelError

    for look in reversed(walk(config, store)):
        files = look.artifact.manifest["files"] if look.there and look.artifact else {}
        if look.artifact and any(file.startswith(("adapter/", "model/")) or file == "base.json" for file in files):
            try:
                return Speaker.of(look.step, store.fetch(look.artifact).path).name
            except ModelError:
                continue
    raise ArtifactError(
        f"no model is there to talk with: got none in the store {store.name} that this configuration leads to, because nothing was "
        f"built, or the configuration changed; build one with `{shlex.join(['prefline', 'run', *options])}`, or name a key"
    )


def _registered(word: str, config: AlignConfig) -> Version | None:
    """The version of the registry that a word names: an alias, a version, or the start of one (v0001); None for other words."""
    import re

    from steps.lib.registry import Registry
    from steps.promote import PromoteConfig

    gate = config.promote or PromoteConfig()
    registry = Registry(gate.registry)
    history = registry.history(gate.name)
    known = [one for one in history.registered() if re.match(r"v\d{4}", word) and one.startswith(word)]
    if word not in history.aliases() and not re.match(r"champion$|v\d{4}", word):
        return None
    return registry.verify(gate.name, registry.resolve(gate.name, known[0] if len(known) == 1 else word).name)


def _artifact_of(version: Version, store: Store) -> Path:
    """The artifact that was registered, which knows where its base lies; the version's own files where the store has it no more."""
    same = [artifact for artifact in store.artifacts() if artifact.digest == version.facts["policy"]]
    newest = max(same, key=lambda one: str(one.manifest.get("finished", "")), default=None)
    return store.fetch(newest).path if newest else version.folder


def _answer_all(prompts: Iterable[str], speakers: Sequence[Speaker], talk: Conversation) -> None:
    """Print a row for each prompt and model; one that cannot be answered has an error in place of an answer.

    Raises:
        DataError: there was no prompt, or some were not answered.
    """
    import json

    from steps.lib.errors import DataError
    from steps.lib.rows import Message

    asked = failed = 0
    for prompt in prompts:
        for speaker in speakers:
            row: dict[str, Any] = {"prompt": prompt, "model": speaker.name, "digest": speaker.digest}
            try:
                row |= vars(talk.answer(speaker, [Message(role="user", content=prompt)]))
            except DataError as error:
                row["error"] = str(error)
                failed += 1
            print(json.dumps(row, ensure_ascii=False), flush=True)
            asked += 1
    if not asked:
        raise DataError(
            "standard input has no prompt: got nothing but blanks, because nothing was piped; give one prompt a line, or --ask TEXT"
        )
    if failed:
        raise DataError(
            f"{failed} of {asked} answers are missing: got errors in place of them, because of what their rows say (error); change "
            "those prompts, or --max-tokens"
        )


def _prompts() -> Iterator[str]:
    """Lines of standard input; blank ones are none.

    Raises:
        DataError: a line is not UTF-8.
    """
    import sys

    from steps.lib.errors import DataError

    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of standard input is not UTF-8: got byte {line[error.start]:#04x}, because it has another "
                "encoding; convert it (iconv -t UTF-8)"
            ) from None
        if text:
            yield text


def _sampling(temperature: float, top_p: float, max_tokens: int) -> Sampling:
    from steps.lib.errors import ConfigError
    from steps.lib.inference import Sampling

    problems = [
        f"--{name} is wrong: got {value}, because {why}; give another number"
        for name, value, wrong, why in (
            ("temperature", temperature, not temperature >= 0, "it divides the logits, and 0 stands for greedy"),
            ("top-p", top_p, not 0 < top_p <= 1, "it is a share of the probability, above 0 and at most 1"),
            ("max-tokens", max_tokens, max_tokens < 1, "an answer has a token at least"),
        )
        if wrong
    ]
    if problems:
        raise ConfigError(problems)
    return Sampling(temperature, top_p, max_tokens)
