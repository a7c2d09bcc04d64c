"""``prefline prompt``: what a prompt file makes of a row, message by message, and which prompt files there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, table, terminal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steps.generate import GenerateConfig
    from steps.lib.prompts import PromptFile
    from steps.lib.rendering import Rendered
    from steps.lib.rows import Prompt, Row
    from steps.lib.teacher_config import Teacher
    from steps.lib.tokens import Counter
    from steps.lib.told import Told

FOLDER = Path("configs/prompts")
SUFFIXES = (".yaml", ".md")
COLORS = {"system": "magenta", "user": "cyan", "assistant": "green"}
Name = Annotated[str, Parameter(help="A prompt file: its name in configs/prompts without the ending, or its path.")]


def render(
    name: Name,
    *overrides: Overrides,
    row: int = 1,
    set: list[str] | None = None,
    teacher: str | None = None,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
) -> None:
    """Show the exact messages that a prompt file makes of a row of the configuration's prompts, and their tokens.

    Parameters
    ----------
    row
        Number of the row, from 1, over all sources of generate.prompts in their order.
    set
        NAME=TEXT for each of the file's `variables`, which a recipe would give; NAME=@FILE reads the text from a file.
    teacher
        Name of the teacher whose tokenizer counts; without it, the first of generate.teachers.
    """
    from flows.plan import opened
    from steps.lib.errors import ConfigError
    from steps.lib.prompts import PromptFile
    from steps.lib.tokens import counter

    config, _ = opened(profile, recipe, overrides)
    if config.generate is None:
        raise ConfigError(
            "no row can be shown: got generate: null, because prompts come from the sources of generate; name a profile "
            "or a recipe that has it"
        )
    path = _path(name)
    file = PromptFile.read(path)
    seen = _seen(file, path, set or [])
    count = counter(_teacher(config.generate, teacher))
    prompt = _row(config.generate, row)
    rendered = file.render(prompt, config.seed, count, seen)
    if json:
        print_json(_page(path, file, prompt, rendered, count))
    else:
        _show(path, file, prompt, row, rendered, count)


def list_(*, json: Json = False) -> None:
    """Show all prompt files of configs/prompts: languages, examples, schema, digest. One that cannot be read says why."""
    from rich.text import Text

    from steps.lib.errors import ConfigError

    entries = [_entry(path) for path in _files()]
    if json:
        print_json(entries)
    else:
        names = ("name", "languages", "shots", "pick", "thought", "schema", "variables", "budget", "digest")
        grid = table(*names, right=("shots", "budget"), whole=("name", "digest"))
        for entry in entries:
            cells = [_cell(entry.get(column)) for column in names]
            grid.add_row(*(Text(cell, style="red" if "problem" in entry else "") for cell in cells))
        terminal().print(grid)
    if problems := [entry["problem"] for entry in entries if "problem" in entry]:
        raise ConfigError(problems)


def _files() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if path.suffix in SUFFIXES)


def _path(name: str) -> Path:
    """The file that a word names."""
    import difflib

    from steps.lib.errors import ConfigError

    if Path(name).suffix in SUFFIXES:
        return Path(name)
    found = [path for path in _files() if path.stem == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"prompt file {name!r} is not clear: got {' and '.join(map(str, found))}, because two files have that name; "
            "give a path"
        )
    names = [path.stem for path in _files()]
    near = difflib.get_close_matches(name, names, n=1)
    raise ConfigError(
        f"prompt file {name!r} is not there: got no file of that name in {FOLDER}, because it holds {', '.join(names)}; "
        + (f"did you mean {near[0]!r}?" if near else "name one of them, or give a path")
    )


def _seen(file: PromptFile, path: Path, words: Sequence[str]) -> dict[str, str]:
    """The values of ``variables`` from the command line."""
    from steps.lib.errors import ConfigError

    seen: dict[str, str] = {}
    problems: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in file.variables:
            known = ", ".join(file.variables) or "none"
            problems.append(
                f"--set {word[:60]!r} is wrong: got the name {name!r}, because the variables of {path} are: {known}; "
                "write NAME=TEXT with one of them"
            )
        elif text.startswith("@"):
            try:
                seen[name] = Path(text[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(
                    f"--set {name} is wrong: got {error}, because @ names a file; give a text file in UTF-8"
                )
        else:
            seen[name] = text
    named = {word.partition("=")[0] for word in words}
    if missing := [name for name in file.variables if name not in named]:
        problems.append(
            f"{path} lacks values: got none for {', '.join(missing)}, because a recipe gives them for each row; give them "
            + " ".join(f"--set {name}=TEXT" for name in missing)
        )
    if problems:
        raise ConfigError(problems)
    return seen


def _teacher(config: GenerateConfig, name: str | None) -> Teacher:
    from steps.lib.errors import ConfigError

    for teacher in config.teachers:
        if name in (None, teacher.name):
            return teacher
    raise ConfigError(
        f"teacher {name!r} is not there: got generate.teachers {', '.join(one.name for one in config.teachers)}, because the "
        "configuration names no other; name one of them"
    )


def _row(config: GenerateConfig, number: int) -> Prompt:
    """A row by its number over all sources; a row that cannot be read says why."""
    from steps.lib.errors import ConfigError, DataError
    from steps.lib.opened import open_sources
    from steps.lib.sources import Rejected

    passed = 0
    for opened in open_sources([(source, config.recipe.rows) for source in config.prompts]):
        for row in opened:
            if isinstance(row, Rejected) and row.reason == "limit":
                continue
            passed += 1
            if passed != number:
                continue
            if isinstance(row, Rejected):
                raise DataError(
                    f"row {number} cannot be shown: got {row.row[:80]} ({row.file}:{row.line}), because {row.reason}: "
                    f"{row.detail}; generate drops it, too; correct the row, or show another"
                )
            return _prompt(row)
    raise ConfigError(
        f"row {number} is not there: got {passed} rows in {', '.join(source.where for source in config.prompts)}, because rows "
        f"are counted from 1; give --row 1 to {passed}"
    )


def _prompt(row: Row) -> Prompt:
    """A row as templates see it: the text of a document, or what a thumb was given for, is its ``prompt``."""
    from steps.lib.rows import Prompt, Text, Thumb

    if isinstance(row, Prompt):
        return row
    assert isinstance(row, (Text, Thumb))
    text = row.text if isinstance(row, Text) else row.prompt[-1].content
    return Prompt(id=row.id, lang=row.lang, source=row.source, prompt=text)


def _page(path: Path, file: PromptFile, prompt: Prompt, rendered: Rendered, count: Counter) -> dict[str, Any]:
    """All that is shown, for programs."""
    return {
        "prompt_file": path.as_posix(),
        "digest": file.digest(),
        "row": {"id": prompt.id, "source": prompt.source, "lang": prompt.lang},
        "messages": rendered.messages,
        "tokens": rendered.tokens,
        "counted_by": count.name,
        "max_context_tokens": file.max_context_tokens,
        "over_budget": file.over_budget,
        "shots": rendered.shots,
        "fewer": rendered.fewer,
        "examples": [
            {
                "line": file.pool.index(example) + 1,
                "lang": example.lang,
                "prompt": example.prompt,
                **({"similarity": round(file.similarity(prompt, example), 4)} if file.pick == "similar" else {}),
            }
            for example in rendered.examples
        ],
        "schema": file.schema_,
    }


def _show(path: Path, file: PromptFile, prompt: Prompt, number: int, rendered: Rendered, count: Counter) -> None:
    from rich.rule import Rule
    from rich.text import Text

    console = terminal(120)
    console.print(Text(f"{path}  {file.digest()[:12]}   row {number}: {prompt.id} ({prompt.lang})", style="dim"))
    turns = len(rendered.messages)
    for place, turn in enumerate(rendered.messages, 1):
        shown = turns - 1 - 2 * rendered.shots < place < turns
        title = f"{turn['role']} (example)" if shown else turn["role"]
        console.print(Rule(Text(title, style=f"bold {COLORS[turn['role']]}"), align="left", style="dim"))
        console.print(Text(_visible(turn["content"]), style=COLORS[turn["role"]]), soft_wrap=True)
    console.print(Rule(style="dim"))
    if rendered.examples:
        grid = table("example", "language", "similarity", "prompt", right=("example", "similarity"))
        for example in rendered.examples:
            near = f"{file.similarity(prompt, example):.3f}" if file.pick == "similar" else ""
            grid.add_row(str(file.pool.index(example) + 1), example.lang, near, Text(_visible(example.prompt[:80])))
        console.print(grid)
    limit = file.max_context_tokens
    budget = f"of {limit:,} ({file.over_budget})" if limit else "(no limit)"
    fewer = f", {rendered.fewer} left out" if rendered.fewer else ""
    console.print(Text(f"examples  {rendered.shots} ({file.pick}){fewer}" if file.shots else "examples  none"))
    console.print(Text(f"tokens    {rendered.tokens:,} {budget}, by {count.name}"))


def _visible(text: str) -> str:
    """Text in which no control character reaches the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t\u3000" else repr(letter)[1:-1] for letter in text)


def _judges(path: Path) -> Told | None:
    """A judge's file of either kind; None: it is neither."""
    from steps.lib.errors import ConfigError
    from steps.lib.judge import JudgePrompt
    from steps.lib.rubric import RubricPrompt

    for kind in (JudgePrompt, RubricPrompt):
        try:
            return kind.read(path)
        except ConfigError:
            continue
    return None


def _entry(path: Path) -> dict[str, Any]:
    """One line of the list."""
    from steps.lib.errors import ConfigError
    from steps.lib.prompt_parts import LANGUAGES
    from steps.lib.prompts import PromptFile

    entry: dict[str, Any] = {"name": path.stem, "path": path.as_posix()}
    try:
        file = PromptFile.read(path)
    except ConfigError as error:
        judge = _judges(path)
        if judge is None:
            return {**entry, "problem": str(error)}
        languages = _languages({lang: (judge.system.of(lang), judge.user.of(lang)) for lang in LANGUAGES})
        return {**entry, "languages": languages, "variables": ["a judge's file"], "digest": judge.digest()}
    schema = file.answer_schema
    return {
        **entry,
        "languages": _languages({lang: file.texts(lang) for lang in LANGUAGES}),
        "shots": file.shots,
        "pick": file.pick if file.shots else "",
        "thought": file.chain_of_thought.mode,
        "schema": schema if isinstance(schema, str) else "inline" if schema else "",
        "variables": list(file.variables),
        "budget": file.max_context_tokens,
        "digest": file.digest(),
    }


def _languages(texts: Mapping[Any, Sequence[str]]) -> list[str]:
    """The languages in which no text is empty that another language has."""
    return [
        lang for lang, own in texts.items()
        if all(mine.strip() or not any(each[place].strip() for each in texts.values()) for place, mine in enumerate(own))
    ]  # fmt: skip


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return text[:12] if len(text) == 64 else text  # a digest
