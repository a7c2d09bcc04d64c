"""Every file in configs/ is loaded, every field is documented, and every field is read by somebody."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from rich.cells import cell_len

from flows.commands.config import show
from steps.lib.config import layers_of, load, profiles
from steps.lib.errors import ConfigError
from steps.lib.fields import choices, item_type, sections
from steps.lib.judge import JudgePrompt
from steps.lib.prices import PriceTable
from steps.lib.prompts import PromptFile
from steps.lib.reference import describe, reference_yaml
from steps.lib.rubric import RubricPrompt

ROOT = Path(__file__).parents[1]
if not (ROOT / "flows" / "line.py").is_file():
    pytest.skip("flows/line.py is not written yet", allow_module_level=True)

from flows.line import AlignConfig  # noqa: E402
from steps.reference import ReferenceConfig  # noqa: E402

CONFIGS = ROOT / "configs"
FILES = {"configs": 3, "profiles": 5, "prompts": 20, "recipes": 11}
"""YAML files in each folder of configs/. A new file is loaded by a test here first, then counted."""
PROFILES = ["cpu-small", "cpu-tiny", "gpu-24gb", "gpu-80gb", "gpu-8x80gb"]
OPTIONAL = ["generate", "pretrain", "pairs", "dpo", "kto", "reward", "rl", "promote"]


def models(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> Iterator[type[BaseModel]]:
    """The model and every section below it, once each."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        annotation = field.annotation
        while not sections(annotation) and item_type(annotation) is not None:
            annotation = item_type(annotation)
        for section in sections(annotation):
            yield from models(section, seen)


SECTIONS = sorted({*models(AlignConfig), *models(ReferenceConfig)}, key=lambda model: model.__name__)


def test_every_yaml_file_is_known() -> None:
    found = Counter(file.parent.name for file in CONFIGS.rglob("*.y*ml"))
    assert found == FILES
    assert profiles(CONFIGS) == PROFILES


def test_the_price_table_loads() -> None:
    table = PriceTable.read(CONFIGS / "prices.yaml")
    assert table.models and all(price.output >= price.input for price in table.models.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_load(profile: str) -> None:
    value = load(AlignConfig, layers_of(profile, root=CONFIGS)).value
    assert isinstance(value, AlignConfig)


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_recipes_load_over_cpu_tiny(recipe: Path) -> None:
    load(AlignConfig, layers_of("cpu-tiny", [recipe], CONFIGS))


@pytest.mark.parametrize("file", sorted((CONFIGS / "prompts").glob("*.yaml")), ids=lambda file: file.stem)
def test_prompt_files_load(file: Path) -> None:
    load({"judge": JudgePrompt, "rubric": RubricPrompt}.get(file.stem, PromptFile), [file])


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_opens_with_hardware_time_and_last_run(profile: str) -> None:
    text = (CONFIGS / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8")
    opening = text.partition("\n\n")[0]
    assert all(line.startswith("#") for line in opening.splitlines())
    for fact in ("# Hardware:", "# Wall time:", "# Last run:"):
        assert fact in opening


@pytest.mark.parametrize("step", OPTIONAL)
def test_a_step_can_be_left_out(step: str) -> None:
    alone = [f"{step}=null"] if step != "pairs" else ["pairs=null", "dpo=null"]
    loaded = load(AlignConfig, layers_of("cpu-tiny", root=CONFIGS), alone)
    assert getattr(loaded.value, step) is None
    assert [one.path for one in describe(AlignConfig, loaded, step)] == [step]


def test_a_mistyped_key_in_each_section_is_refused_with_the_right_one() -> None:
    for section in ("dpo.train", "sft.lora", "clean", "evaluate"):
        with pytest.raises(ConfigError) as caught:
            load(AlignConfig, layers_of("cpu-tiny", root=CONFIGS), [f"{section}.no_such_field=1"])
        assert f"{section}.no_such_field is wrong: got 1" in str(caught.value)
    with pytest.raises(ConfigError, match=r"did you mean 'dpo\.beta'\?"):
        load(AlignConfig, layers_of("cpu-tiny", root=CONFIGS), ["dpo.betta=0.1"])


def test_reference_is_current() -> None:
    written = (CONFIGS / "reference.yaml").read_text(encoding="utf-8")
    assert written == reference_yaml(AlignConfig), (
        "configs/reference.yaml is not what the code says; run `prefline config --write-reference`"
    )


def test_reference_is_loadable() -> None:
    load(AlignConfig, [CONFIGS / "reference.yaml"])


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    assert model.__doc__, f"{model.__name__} has no docstring"
    bare = [
        name
        for name, field in model.model_fields.items()
        # The tag of a variant and a field that is one section need no words: the section's docstring is there for them.
        if not field.description and len(choices(field.annotation)) != 1 and len(sections(field.annotation)) != 1
    ]
    assert not bare, f"{model.__name__} has fields without a docstring: {', '.join(bare)}; write one below each"


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_field_is_read_somewhere(model: type[BaseModel]) -> None:
    """A heuristic that finds the option that nothing reads.

    A field is read when ``.name`` or ``["name"]`` stands somewhere in the code or in a template, or ``"name"`` in a file that uses
    getattr.
    """
    files = [
        file.read_text(encoding="utf-8")
        for folder in ("flows", "steps")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".jinja")
    ]
    code, by_name = "\n".join(files), "\n".join(text for text in files if "getattr(" in text)
    unread = [
        name
        for name in model.model_fields
        if not re.search(rf"\.{name}\b(?!\s*=[^=])|\[\"{name}\"\]", code) and f'"{name}"' not in by_name
    ]
    assert not unread, f"{model.__name__} has fields that nothing reads: {', '.join(unread)}; read them or remove them"


def test_the_messages_in_the_docs_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    recipe, shown = re.search(r"```yaml\n(.*?)```.*?```\n(.*?)\n```", page, re.DOTALL).groups()  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(AlignConfig, [Path("my.yaml")], ["dpo.beta=-1"])
    assert str(caught.value) == shown


def test_the_table_aligns_with_chinese_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    show(overrides=["name=售后服务订单"])
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if line.split()[:4] == ["path", "value", "from", "doc"]]
    (row,) = [line for line in lines if line.split()[:1] == ["name"]]
    for column, text in (("value", "售后服务订单"), ("from", "override")):
        assert cell_len(row.partition(text)[0]) == cell_len(head.partition(column)[0])


def test_json_is_what_the_table_shows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    show("dpo.beta", overrides=["dpo.beta=0.05"], json=True)
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["path"], entry["value"], entry["from"]["kind"]) == ("dpo.beta", 0.05, "override")
