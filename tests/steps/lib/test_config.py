"""The loader: layers, merging, origins, keys, and every message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, model_validator

from steps.lib.config import Added, Layer, Loaded, Neutral, Section, key_view, layers_of, load
from steps.lib.errors import ConfigError
from steps.lib.nodes import Node, Origin, merge
from steps.lib.reference import describe, reference_yaml, settings


class Remote(Section):
    """A server."""

    kind: Literal["remote"] = "remote"
    """Tag."""
    url: str
    """Address of the server."""
    api_key: SecretStr | None = None
    """Key of the server."""
    workers: Annotated[int, Neutral] = 2
    """requests at the same time."""


class Local(Section):
    """A folder."""

    kind: Literal["local"] = "local"
    """Tag."""
    path: Path = Path("models/x")
    """Folder of the model."""


Teacher = Annotated[Remote | Local, Field(discriminator="kind")]


class Dpo(Section):
    """Preferences."""

    beta: float = Field(0.1, gt=0)
    """1 / nat, the pull."""
    lr: float = 1e-6
    """per update, the rate."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """The loss."""
    layers: int | Literal["auto"] = "auto"
    """layers to train, or auto."""
    note: str | None = None
    """A remark."""


class Generate(Section):
    """Teachers."""

    teachers: list[Teacher] = []
    """The teachers."""
    names: list[str] = []
    """Names, for example 订单."""
    weights: dict[str, float] = {}
    """share of each name."""
    access_token: str = "none"
    """Token of the hub."""
    max_tokens: int = 5
    """tokens at most."""
    log: Annotated[str | None, Neutral] = None
    """Log file."""
    threads: Annotated[int, Neutral] | None = None
    """threads of the loader."""


class Root(Section):
    """All of it."""

    name: str = "run"
    """The name."""
    dpo: Dpo | None = Dpo(beta=0.5)
    """Preferences."""
    generate: Generate = Generate()
    """Teachers."""
    base: Teacher = Local(path=Path("here"))
    """The start."""
    pretrain: Dpo | None = None
    """More training."""

    @model_validator(mode="after")
    def check(self) -> Root:
        """A rule over two values."""
        if self.name == "bad":
            raise ValueError("the name bad is taken")
        if self.name == "taken twice":
            raise ValueError("name is wrong: got taken twice, because it was given away; take another one")
        return self


Run = Callable[..., Loaded[Root]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Writes YAML texts as 0.yaml, 1.yaml ... and loads them."""
    monkeypatch.chdir(tmp_path)

    def loaded(*texts: str, overrides: Sequence[str] = ()) -> Loaded[Root]:
        files = [Path(f"{index}.yaml") for index in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
        return load(Root, files, overrides)

    return loaded


def problems(run: Run, *texts: str, overrides: Sequence[str] = ()) -> list[str]:
    """The messages of a load that must fail."""
    with pytest.raises(ConfigError) as caught:
        run(*texts, overrides=overrides)
    return caught.value.problems


# Layers and merging


def test_defaults_alone(run: Run) -> None:
    loaded = run()
    assert loaded.value == Root()
    assert {str(origin) for origin in loaded.origins.values()} == {"default"}


def test_later_layer_wins_and_origins_name_the_line(run: Run) -> None:
    loaded = run("dpo:\n  beta: 0.2\n  lr: 1e-5\n", "# profile\ndpo:\n\n  lr: 5e-7\n", overrides=["dpo.loss=ipo"])
    assert loaded.value.dpo == Dpo(beta=0.2, lr=5e-7, loss="ipo")
    shown = {path: str(origin) for path, origin in loaded.origins.items() if path.startswith("dpo.")}
    assert shown == {
        "dpo.beta": "0.yaml:2",
        "dpo.lr": "1.yaml:4",
        "dpo.loss": "override 'dpo.loss=ipo'",
        "dpo.layers": "default",
        "dpo.note": "default",
    }


def test_a_partial_section_keeps_the_default_that_stands_there(run: Run) -> None:
    # pydantic alone would give the class's 0.1
    assert run("dpo:\n  lr: 1.0\n").value.dpo == Dpo(beta=0.5, lr=1.0)


def test_lists_are_replaced(run: Run) -> None:
    assert run("generate:\n  names: [a, b]\n", "generate:\n  names: [c]\n").value.generate.names == ["c"]


def test_null_clears_and_setting_again_starts_from_the_defaults(run: Run) -> None:
    cleared = run("dpo:\n  lr: 1.0\n", "dpo: null\n")
    assert cleared.value.dpo is None
    assert str(cleared.origins["dpo"]) == "1.yaml:1"
    assert run("dpo:\n  lr: 1.0\n", "dpo: null\n", "dpo:\n  loss: ipo\n").value.dpo == Dpo(beta=0.5, loss="ipo")
    assert run("dpo: null\n", overrides=["dpo.lr=1"]).value.dpo == Dpo(beta=0.5, lr=1.0)
    assert run(overrides=["pretrain.lr=1"]).value.pretrain == Dpo(lr=1.0)
    assert run(overrides=["dpo.lr=2", "dpo=null"]).value.dpo is None


def test_another_variant_starts_afresh(run: Run) -> None:
    local = "base:\n  kind: local\n  path: there\n"
    remote = "base:\n  kind: remote\n  url: http://x\n"
    assert run(local, remote).value.base == Remote(url="http://x")
    assert run("base:\n  path: there\n", remote).value.base == Remote(url="http://x")
    assert run(remote, "base:\n  kind: remote\n  workers: 3\n").value.base == Remote(url="http://x", workers=3)
    assert run(overrides=["base.url=http://x", "base.kind=remote"]).value.base == Remote(url="http://x")
    assert run("base:\n  path: there\n").value.base == Local(path=Path("there"))


def test_yaml_1_2_scalars(run: Run) -> None:
    text = "name: no\ndpo:\n  lr: 5e-7\n  note: 2026-11-22\ngenerate:\n  names: [yes, on, '5']\n  weights: {a: .5}\n"
    value = run(text).value
    assert (value.name, value.dpo and value.dpo.lr, value.dpo and value.dpo.note) == ("no", 5e-7, "2026-11-22")
    assert value.generate.names == ["yes", "on", "5"] and value.generate.weights == {"a": 0.5}


def test_numbers_in_every_yaml_1_2_form(run: Run) -> None:
    forms = {"0x1F": 31, "0o17": 15, "010": 10, "1_000": 1000, "-3": -3}
    for text, number in forms.items():
        assert run(f"dpo:\n  layers: {text}\n").value.dpo == Dpo(beta=0.5, layers=number)


def test_aliases_and_layers_in_memory() -> None:
    loaded = load(Root, [Layer({"dpo": {"lr": 1.0}, "generate": {"names": ("a",)}}, "the test")])
    assert loaded.value.dpo == Dpo(beta=0.5, lr=1.0) and str(loaded.origins["dpo.lr"]) == "the test"


def test_paths_and_variables_stay_as_written(run: Run) -> None:
    assert run("base:\n  path: ../$HOME/x\n").value.base == Local(path=Path("../$HOME/x"))


def test_flow_overrides(run: Run) -> None:
    text = "generate.teachers=[{kind: local}, {kind: remote, url: 'http://x:1/v1'}]"
    value = run(overrides=[text, "generate.weights={a: 1}", "name='a # b'", "dpo.note=''"]).value
    assert value.generate.teachers == [Local(), Remote(url="http://x:1/v1")]
    assert (value.generate.weights, value.name, value.dpo and value.dpo.note) == ({"a": 1.0}, "a # b", "")


def test_profiles(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    for name in ("cpu-tiny", "gpu-24gb"):
        (tmp_path / "profiles" / f"{name}.yaml").write_text("{}\n")
    expected = [tmp_path / "base.yaml", tmp_path / "profiles" / "cpu-tiny.yaml", Path("r.yaml")]
    assert layers_of("cpu-tiny", [Path("r.yaml")], tmp_path) == expected
    with pytest.raises(ConfigError) as caught:
        layers_of("cpu-tine", root=tmp_path)
    assert str(caught.value) == (
        f"profile is wrong: got 'cpu-tine', because {tmp_path.as_posix()}/profiles has no cpu-tine.yaml; "
        "did you mean 'cpu-tiny'? take one of: cpu-tiny, gpu-24gb"
    )


SHAPE: dict[str, Any] = {"a": None, "b": {"c": None, "d": {"e": None, "f": None}}, "g": {"h": None}}


def values(shape: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of one shape: at each path either always a mapping or never one."""
    leaf = st.one_of(st.none(), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=2))
    fields = {name: leaf if below is None else values(below) for name, below in shape.items()}
    return st.fixed_dictionaries({}, optional=fields)


def node(tree: Any, name: str) -> Node:
    """Nodes of a tree, all from one file."""
    origin = Origin("file", name)
    return Node({key: node(item, name) for key, item in tree.items()} if isinstance(tree, dict) else tree, origin)


@given(values(SHAPE), values(SHAPE), values(SHAPE))
def test_merge_is_associative_and_the_later_layer_wins(low: Any, mid: Any, top: Any) -> None:
    one, two, three = node(low, "low"), node(mid, "mid"), node(top, "top")
    left, right = merge(merge(one, two), three), merge(one, merge(two, three))
    assert left == right

    def check(merged: Node, layers: list[Any]) -> None:
        assert set(merged.value) == {key for layer in layers for key in layer}
        for key, found in merged.value.items():
            given_by = [layer[key] for layer in layers if key in layer]
            if isinstance(found.value, dict):
                check(found, given_by)
            else:
                assert found.value == given_by[-1]

    check(left, [low, mid, top])


# Keys


def test_key_view_leaves_added_fields_out_while_they_have_their_default() -> None:
    class Before(Section):
        """A section, before."""

        lr: float = 1.0
        """rate."""

    class Inner(Section):
        """What came later, too."""

        near: Annotated[float | None, Added] = 0.9
        """share."""

    class Now(Before):
        """The same section now."""

        thumbs: Annotated[list[str], Added] = []
        """Sources."""
        inner: Annotated[Inner, Added] = Inner()
        """More."""

    assert key_view(Now()) == key_view(Before()) == {"lr": 1.0}
    assert key_view(Now(thumbs=["a"], inner=Inner(near=None))) == {"lr": 1.0, "thumbs": ["a"], "inner": {"near": None}}


def test_key_view_leaves_neutral_fields_out_at_every_depth() -> None:
    root = Root(
        base=Remote(url="u", workers=1),
        generate=Generate(teachers=[Remote(url="u", workers=1), Local()], log="x", threads=3),
    )
    view = key_view(root)
    assert view["base"] == {"kind": "remote", "url": "u", "api_key": None}
    assert view["generate"]["teachers"] == [view["base"], {"kind": "local", "path": "models/x"}]
    assert set(view["generate"]) == {"teachers", "names", "weights", "access_token", "max_tokens"}
    other = Root(
        base=Remote(url="u", workers=9),
        generate=Generate(teachers=[Remote(url="u", workers=8), Local()], log="y", threads=4),
    )
    assert key_view(other) == view
    assert key_view(Root(name="other")) != key_view(Root())


def test_a_section_is_frozen_closed_and_checks_its_defaults() -> None:
    class Wrong(Section):
        count: int = "x"  # type: ignore[assignment]

    with pytest.raises(ValueError, match="frozen"):
        Dpo().beta = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="not permitted"):
        Dpo(gamma=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="valid integer"):
        Wrong()
    with pytest.raises(ValueError, match="finite"):
        Dpo(lr=float("inf"))


# Messages

MISTAKES = """\
name: 5
dpo:
  betta: 0.1
  beta: -1
  loss: sigmod
  layers: many
base:
  kind: lokal
generate:
  teachers:
    - kind: remote
      urll: http://x
      api_key: [hush]
    - kind: local
      url: http://x
    - path: models/y
  max_tokens: 1.5
lr: 3
zzzzzz: 1
"""


def test_all_problems_at_once_in_the_order_of_the_file(run: Run) -> None:
    expected = [
        """name is wrong: got 5 (0.yaml:1), because it should be a valid string; write it in quotes: "5\"""",
        "dpo.betta is wrong: got 0.1 (0.yaml:3), because there is no such key; did you mean 'dpo.beta'?",
        "dpo.beta is wrong: got -1 (0.yaml:4), because it should be greater than 0; "
        "write this: number, > 0; the default is 0.5",
        "dpo.loss is wrong: got 'sigmod' (0.yaml:5), because it should be 'sigmoid' or 'ipo'; "
        "write one of sigmoid, ipo; did you mean 'sigmoid'?",
        "dpo.layers is wrong: got 'many' (0.yaml:6), because it should be a valid integer or it should be 'auto'; "
        "write this: integer or one of auto; the default is auto",
        "base.kind is wrong: got 'lokal' (0.yaml:8), because there is no such kind; "
        "write one of remote, local; did you mean 'local'?",
        "generate.teachers[0].url is missing: got no value (0.yaml:11), because it has no default; "
        "write 'url: ...' under generate.teachers[0] (text)",
        "generate.teachers[0].urll is wrong: got 'http://x' (0.yaml:12), because there is no such key; "
        "did you mean 'generate.teachers[0].url'?",
        "generate.teachers[0].api_key is wrong: got *** (0.yaml:13), because it should be a valid string; "
        "write this: secret or null",
        "generate.teachers[1].url is wrong: got 'http://x' (0.yaml:15), because there is no such key; "
        "it belongs to kind: remote; remove it, or choose that kind",
        "generate.teachers[2].kind is missing: got no value (0.yaml:16), because it says which keys there are; "
        "write one of remote, local",
        "generate.max_tokens is wrong: got 1.5 (0.yaml:17), because it should be a valid integer, "
        "got a number with a fractional part; write this: integer; the default is 5",
        "lr is wrong: got 3 (0.yaml:18), because there is no such key; did you mean 'dpo.lr' or 'pretrain.lr'?",
        "zzzzzz is wrong: got 1 (0.yaml:19), because there is no such key; "
        "remove it, or take one of: name, dpo, generate, base, pretrain",
    ]
    assert problems(run, MISTAKES) == expected
    with pytest.raises(ConfigError, match="^14 problems in the configuration:\n"):
        run(MISTAKES)


def test_overrides_are_named_as_typed_and_come_last(run: Run) -> None:
    found = problems(run, "dpo:\n  lr: fast\n", overrides=["dpo.betta=0.1", "generate=null"])
    assert [message.partition(", because")[0] for message in found] == [
        "dpo.lr is wrong: got 'fast' (0.yaml:2)",
        "dpo.betta is wrong: got 0.1 (override 'dpo.betta=0.1')",
        "generate is wrong: got null (override 'generate=null')",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dpo.beta", "override 'dpo.beta' is wrong: got no '=',"),
        ("dpo.beta=", "override 'dpo.beta=' is wrong: got no value,"),
        ("=1", "override '=1' is wrong: got the key '',"),
        ("dpo..beta=1", "override 'dpo..beta=1' is wrong: got the key 'dpo..beta',"),
        ("generate.teachers[0].url=x", "override 'generate.teachers[0].url=x' is wrong: got the key"),
        ("generate.names=[a", "override 'generate.names=[a' is not valid YAML: got '[a',"),
        ("name=a: b", "override 'name=a: b' is wrong: got 'a: b', because YAML does not read this as one value;"),
        ("name=a # b", "override 'name=a # b' is wrong: got 'a # b', because YAML does not read this as one value;"),
        ("base.api_key=a: hush", "override 'base.api_key=***' is wrong: got ***,"),
    ],
)
def test_overrides_that_cannot_be_read(run: Run, text: str, expected: str) -> None:
    (message,) = problems(run, overrides=[text])
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "0.yaml is empty: got no key, because nothing but comments is in it; write keys, or '{}' for none"),
        ("# only a comment\n", "0.yaml is empty: got no key,"),
        ("- a\n", "0.yaml:1 is not a mapping: got a list, because a configuration file is 'key: value' lines;"),
        ("words\n", "0.yaml:1 is not a mapping: got 'words',"),
        ("name: x\ndpo: [1\n", "0.yaml:2 is not valid YAML: got 'dpo: [1', because expected ',' or ']',"),
        ("a:\tb\n\t- c\n", "0.yaml:1 is not valid YAML: got 'a:\\tb', because found character '\\t'"),
        ("name: x\n---\nname: y\n", "0.yaml:2 is not valid YAML: got '---', because expected a single document"),
        ("name: !!python/name:os x\n", "name (0.yaml:1) is wrong: got the tag"),
        (
            "generate:\n  weights: {1: 2}\n",
            "generate.weights (0.yaml:2) has a wrong key: got '1', because a key is text;",
        ),
        ("dpo: {}\n<<: {}\n", "the file (0.yaml:2) has a wrong key: got '<<', because merge keys are not YAML 1.2;"),
        ("generate:\n  weights: &x\n    a: *x\n", "generate.weights.a.a"),
    ],
)
def test_files_that_cannot_be_read(run: Run, text: str, expected: str) -> None:
    assert problems(run, text)[0].startswith(expected)


def test_a_duplicate_key_names_both_lines(run: Run) -> None:
    found = problems(run, "dpo:\n  beta: 0.1\n  lr: 1.0\n  beta: 0.2\nname: a\nname: b\n")
    assert found == [
        "dpo.beta (0.yaml:4) is written twice: got 0.2, because 0.yaml:2 already says 0.1; keep one of the two",
        "name (0.yaml:6) is written twice: got 'b', because 0.yaml:5 already says 'a'; keep one of the two",
    ]


def test_a_missing_file_hides_no_other_problem(run: Run, tmp_path: Path) -> None:
    Path("1.yaml").write_text("dpo:\n  betta: 1\nbase:\n  kind: remote\n")
    Path("latin.yaml").write_bytes("name: a\ndpo:\n  note: \xe9t\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(Root, [Path("no.yaml"), tmp_path, Path("latin.yaml"), Path("1.yaml")])
    # Nothing about base.url: it may stand in the file that cannot be read.
    assert caught.value.problems == [
        "no.yaml cannot be read: got no such file, because it was not written or lies elsewhere; write it, or correct the path",
        f"{tmp_path.as_posix()} cannot be read, because of this: is a directory; give a readable YAML file",
        "latin.yaml:3 cannot be read, because it is not UTF-8; save the file as UTF-8",
        "dpo.betta is wrong: got 1 (1.yaml:2), because there is no such key; did you mean 'dpo.beta'?",
    ]


def test_wrong_shapes(run: Run) -> None:
    found = problems(run, "dpo: 3\ngenerate:\n  teachers: {kind: local}\n  names: a\n  weights: {b: x}\n")
    assert found == [
        "dpo is wrong: got 3 (0.yaml:1), because it should be a mapping of keys; write its keys indented below it",
        "generate.teachers is wrong: got {'kind': 'local'} (0.yaml:3), because it should be a valid list; "
        "write [a, b], or one '- item' a line",
        "generate.names is wrong: got 'a' (0.yaml:4), because it should be a valid list; "
        "write [a, b], or one '- item' a line",
        "generate.weights.b is wrong: got 'x' (0.yaml:5), because it should be a valid number; write this: number",
    ]


def test_a_rule_over_several_values(run: Run) -> None:
    (message,) = problems(run, "name: bad\n")
    assert message == (
        "the configuration is wrong: got {'name': 'bad'} (0.yaml:1), because the name bad is taken; "
        "change one of these values"
    )


def test_a_rule_with_a_whole_message_is_shown_as_it_is(run: Run) -> None:
    """Not as a mapping of everything, with the rule's own words behind a second 'because'."""
    (message,) = problems(run, "name: taken twice\n")
    assert message == "name is wrong: got taken twice, because it was given away; take another one (0.yaml:1)"


def test_no_secret_in_a_message(run: Run) -> None:
    text = (
        "base:\n  kind: remote\n  api_key: hush1\n  x: {token: hush2}\ngenerate:\n  access_token: [hush3]\n  nane: a\n"
    )
    found = "\n".join(problems(run, text + "secret_keys: [hush5]\n", overrides=["base.api_key=[hush4]"]))
    assert "hush" not in found and "***" in found


# What a person sees


def test_describe(run: Run) -> None:
    loaded = run(
        "base:\n  kind: remote\n  url: http://x\n  api_key: hush\ngenerate:\n  access_token: hush\n  names: [订单, b]\n"
        "  teachers:\n    - kind: local\n      path: p\n"
    )
    entries = {one.path: one for one in describe(Root, loaded)}
    assert set(entries) == set(loaded.origins)
    assert entries["base.api_key"].value == "***" and entries["generate.access_token"].value == "***"
    assert entries["generate.max_tokens"].value == 5
    assert entries["generate.names"].value == ["订单", "b"]
    assert entries["dpo.beta"].kind == "number, > 0" and entries["dpo.beta"].doc == "1 / nat, the pull."
    assert entries["dpo.loss"].kind == "one of sigmoid, ipo"
    assert (entries["generate.teachers[0].path"].value, str(entries["generate.teachers[0].path"].origin)) == (
        "p",
        "0.yaml:10",
    )
    assert entries["generate.teachers[0].path"].doc == "Folder of the model."
    assert [one.path for one in describe(Root, loaded, "base")] == [
        "base.kind",
        "base.url",
        "base.api_key",
        "base.workers",
    ]
    assert [one.path for one in describe(Root, loaded, "pretrain")] == ["pretrain"]
    assert [one.path for one in describe(Root, loaded, "pretrain.beta")] == ["pretrain"]  # what is off shows as off
    assert next(settings(describe(Root, loaded, "base.url")))["from"] == {"kind": "file", "file": "0.yaml", "line": 3}
    assert "hush" not in repr(entries)
    with pytest.raises(ConfigError) as caught:
        describe(Root, loaded, "dpo.bata")
    assert str(caught.value) == (
        "section is wrong: got 'dpo.bata', because the configuration has no such path; did you mean 'dpo.beta'?"
    )


def test_the_reference_is_yaml_that_holds_the_defaults(run: Run) -> None:
    text = reference_yaml(Root)
    loaded = run(text)
    assert loaded.value == Root()
    assert max(map(len, text.splitlines())) <= 120
    for line in ("  beta: 0.5", "#   beta: 0.1", "  # 1 / nat, the pull. [number; > 0]", "# base:"):
        assert line in text.splitlines()
    # Every name of every variant is there, commented or not.
    for name in ("url", "api_key", "path", "workers", "access_token", "threads"):
        assert f"{name}:" in text


def test_a_key_pasted_in_place_of_its_variable_is_not_shown() -> None:
    class Endpoint(Section):
        api_key_env: str | None = None

    def shown(value: str) -> Any:
        return describe(Endpoint, load(Endpoint, [], [f"api_key_env={value}"]))[0]

    assert shown("OPENAI_API_KEY").value == "OPENAI_API_KEY"
    assert shown("sk-hush").value == "***" and "hush" not in repr(shown("sk-hush"))
