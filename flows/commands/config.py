"""``prefline config``: shows each value with where it came from and its doc; writes configs/reference.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.words import Json, Overrides, Profile, Recipe, print_json, terminal
from steps.lib.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from steps.lib.reference import Entry


def config(
    section: str | None = None,
    *overrides: Overrides,
    profile: Profile = "cpu-tiny",
    recipe: Recipe = None,
    json: Json = False,
    write_reference: bool = False,
) -> None:
    """Show each value of the configuration, where it came from, and its doc.

    Parameters
    ----------
    section
        Dotted path, such as dpo or sft.lora; without it, everything. A word with "=" is an override.
    write_reference
        Write configs/reference.yaml, which lists every field with its default and doc.
    """
    if write_reference:
        reference(write=True)
        return
    words = [word for word in (section, *overrides) if word is not None]
    sections = [word for word in words if "=" not in word]
    if len(sections) > 1:
        raise ConfigError(
            f"one section at a time: got {sections}, because a table shows one; name the first that you want to see"
        )
    show(
        sections[0] if sections else None,
        profile=profile,
        recipe=recipe,
        overrides=[w for w in words if "=" in w],
        json=json,
    )


SECTION_OF = {"reference": "dpo"}
"""Step without a section of its own -> the one that it is configured by."""
REFERENCE = Path("configs/reference.yaml")
WIDE = 120
"""columns from which paths and origins stay on one line."""


def show(
    section: str | None = None,
    *,
    profile: str = "cpu-tiny",
    recipe: Sequence[Path] | None = None,
    overrides: Sequence[str] = (),
    json: bool = False,
) -> None:
    """Prints each value of the configuration, where it came from, and its doc.

    Args:
        section: a dotted path, such as dpo or generate.teacher; without it, everything.
        profile: the name of a file in configs/profiles.
        recipe: YAML files over the profile, in this order.
        overrides: KEY=VALUE over the files.
        json: print JSON instead of a table.

    Raises:
        ConfigError: the configuration is wrong, or there is no such section.
    """
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load
    from steps.lib.reference import describe, settings

    loaded = load(AlignConfig, layers_of(profile, tuple(recipe or ())), overrides)
    entries = describe(AlignConfig, loaded, SECTION_OF.get(section or "", section))
    if json:
        print_json(list(settings(entries)))
        return
    console = terminal()
    console.print(_table(entries, wide=console.width >= WIDE))


def reference(write: bool = False) -> None:
    """Prints the reference of every field, or writes it to configs/reference.yaml.

    Args:
        write: write the file instead of printing.
    """
    from flows.line import AlignConfig
    from steps.lib.reference import reference_yaml

    text = reference_yaml(AlignConfig)
    if not write:
        print(text, end="")
    elif REFERENCE.is_file() and REFERENCE.read_text(encoding="utf-8") == text:
        print(f"{REFERENCE} is current")
    else:
        REFERENCE.parent.mkdir(parents=True, exist_ok=True)
        REFERENCE.write_text(text, encoding="utf-8")
        print(f"{REFERENCE} written")


def _table(entries: Sequence[Entry], wide: bool) -> Table:
    """One row an entry. rich counts a Chinese character as two columns, so the columns align."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from steps.lib.reference import yaml_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("path", overflow="fold", no_wrap=wide, ratio=None if wide else 3)
    table.add_column("value", overflow="fold", ratio=None if wide else 3, max_width=36 if wide else None)
    table.add_column("from", overflow="fold", no_wrap=wide, ratio=None if wide else 3)
    table.add_column("doc", overflow="fold", ratio=1 if wide else 5, min_width=30 if wide else None)
    for one in entries:
        doc = f"{one.doc} [{one.kind}]" if one.doc else f"[{one.kind}]"
        cells = (one.path, yaml_text(one.value), str(one.origin), doc)
        table.add_row(*(Text(cell) for cell in cells))
    return table
