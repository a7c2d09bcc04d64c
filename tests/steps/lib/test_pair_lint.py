"""The linter of pairs finds each planted fault, leaves sound pairs alone, and fails where there are too many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minimal import ROOT, data_artifact, pair, turn

from steps.lib import tiny
from steps.lib.errors import DataError
from steps.lib.overlap import Decontaminate, Item
from steps.lib.pair_lint import ROW_FAULTS, Guarded, PairLimits, fault_of, format_only, lint
from steps.lib.pair_sources import Book, Made
from steps.lib.row_ledger import RowLedger
from steps.lib.rows import Pair

ASKED = "What is the warranty period of the blue kettle?"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.build_tokenizer([ASKED, "It is two years. 保修期是两年。"], tiny.TinyConfig(vocab_size=300))


def of(name: str, chosen: str, rejected: str, asked: str = ASKED) -> Pair:
    sides = [turn("assistant", text) for text in (chosen, rejected)]
    return Pair(id=name, prompt=[turn("user", asked)], chosen=[sides[0]], rejected=[sides[1]])


def sound(count: int) -> list[Pair]:
    return [
        of(f"sound-{n}", f"It is {n} years.", f"About {n}, who knows?", f"Question {n} of today?") for n in range(count)
    ]


def linted(
    pairs: list[Pair], tokenizer: Any, guarded: Guarded | None = None, kind: str = "imported", **limits: Any
) -> Any:
    book = Book(RowLedger())
    config = PairLimits.model_validate({"max_length": 200, **limits})
    made: Made = {kind: pairs}  # type: ignore[dict-item]
    found = lint(made, tokenizer, config, guarded, book)
    book.rows.balance({"made": ["sound pairs"]})
    assert book.rows.rows_in["made"] == len(pairs) == sum(map(len, found.made.values())) + len(book.dropped)
    return found, book, found.problems(config)


LONG = "long " * 90
PLANTED = {
    "empty": of("p", "It is two years.", " \n"),
    "identical": of("p", "It is two years.", "It is two years. "),
    "special_token": of("p", "It is two years.<|im_end|>", "No."),
    "identical_cut": of("p", f"{LONG} It is two years.", f"{LONG} No."),
    "empty_cut": of("p", "Two years.", "No.", "Tell me more! " * 60),
}


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_dropped_with_its_reason_and_fails_the_step_over_its_limit(
    tokenizer: Any, fault: str
) -> None:
    limit = ROW_FAULTS[fault][0]
    found, book, problems = linted([*sound(9), PLANTED[fault]], tokenizer, **{limit: 0.05})
    assert [(row.id, row.reason) for row in book.dropped] == [("p", fault)] and found.faults[fault] == 1
    assert Pair.model_validate_json(book.dropped[0].row) == PLANTED[fault], "the row is kept, whole"
    assert [row.id for row in found.made["imported"]] == [f"sound-{n}" for n in range(9)]
    [told] = problems
    assert f"pairs have the fault {fault}: got 1 of 10 (10.0%, where pairs.lint.{limit} allows 5.0%), because" in told
    for lenient in ({limit: 0.1}, {limit: None}):
        assert linted([*sound(9), PLANTED[fault]], tokenizer, **lenient)[2] == []


def changed(**fields: Any) -> Pair:
    return of("p", "It is two years.", "No.").model_copy(update=fields)


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (changed(prompt=[]), "ends with nothing"),
        (changed(prompt=[turn("user", "a"), turn("assistant", "b")]), "ends with assistant"),
        (changed(prompt=[turn("assistant", "b"), turn("user", "a")]), "begins with assistant"),
        (changed(chosen=[]), "chosen has the turns none"),
        (changed(rejected=[turn("user", "x"), turn("assistant", "y")]), "rejected has the turns user, assistant"),
        (changed(chosen=[turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")]), "says other things"),
        (changed(chosen=[turn("assistant", f"{ASKED}\nIt is two years.")]), "only chosen begins with the prompt"),
    ],
)
def test_sides_of_different_prompts_are_a_mismatch(tokenizer: Any, broken: Pair, detail: str) -> None:
    found, book, problems = linted([*sound(9), broken], tokenizer)
    assert [row.reason for row in book.dropped] == ["prompt_mismatch"] and detail in book.dropped[0].detail
    assert len(problems) == 1 and "because sides do not answer the same prompt; look" in problems[0]


def test_a_policy_that_repeats_the_prompt_answers_badly_and_that_is_no_fault_of_the_row() -> None:
    echo = of("p", "It is two years.", f"{ASKED} {ASKED}")
    assert fault_of(echo, set(), sampled=True) == ("", "")
    assert fault_of(echo, set(), sampled=False)[0] == "prompt_mismatch"


def test_marks_of_the_models_own_tokenizer_count_in_prompts_too(tokenizer: Any) -> None:
    own = of("p", "Two years.", "No.", "What does <<end>> mean?")
    assert fault_of(own, {"<<end>>"}, sampled=True) == ("special_token", "<<end>>")
    assert fault_of(own, set(), sampled=True)[0] == ""


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("It is two years.", "it is  TWO years", True),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": 1}', '```json\n{"a": 1}\n```', True),
        ("保修期是两年。", "**保修期**是两年", True),
        ('{"a": 1}', '{"a": 2}', False),
        ("1.5 years", "2.5 years", False),
        ("!!!", "???", False),
    ],
)
def test_answers_that_differ_by_format_alone(one: str, other: str, same: bool) -> None:
    assert format_only(of("p", one, other)) is same


def test_the_same_pair_twice_stays_once_and_a_contradiction_goes_on_both_sides(tokenizer: Any) -> None:
    first, again = of("a", "Two years.", "No."), of("b", "Two years.", "No.")
    pros, cons = of("c", "Yes.", "Never.", "Is it?"), of("d", "Never.", "Yes.", "Is  IT?")
    found, book, problems = linted([first, again, pros, cons, *sound(3)], tokenizer)
    assert {row.id: row.reason for row in book.dropped} == {
        "b": "duplicate",
        "c": "contradiction",
        "d": "contradiction",
    }
    assert [row.id for row in found.made["imported"]] == ["a", "sound-0", "sound-1", "sound-2"] and problems == []


HELD = (
    "The blue kettle of series nine was recalled in March because its handle came off when it was filled to the brim."
)


@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
def test_a_pair_with_a_held_out_text_fails_whatever_side_it_is_on(tmp_path: Path, tokenizer: Any, side: str) -> None:
    from minimal import texts

    held = [texts("domain", 1)[0].model_copy(update={"id": "held", "text": HELD})]
    data = data_artifact(tmp_path, heldout_domain=held)
    guarded = Guarded.of(data.path, Decontaminate())
    bad = of(
        "p",
        HELD if side == "chosen" else "Yes.",
        HELD if side == "rejected" else "No.",
        HELD if side == "prompt" else ASKED,
    )
    found, book, problems = linted([*sound(9), bad], tokenizer, guarded)
    assert [(row.id, row.reason) for row in book.dropped] == [("p", "heldout")] and '"held"' in book.dropped[0].detail
    assert len(problems) == 1 and "evaluation would be of no use" in problems[0]
    assert linted([*sound(9), bad], tokenizer, None)[2] == [], "decontaminate: null does not look"


def test_held_out_prompts_too_short_for_n_grams_and_other_guarded_texts_are_found(
    tmp_path: Path, tokenizer: Any
) -> None:
    data = data_artifact(tmp_path)
    guarded = Guarded.of(data.path, Decontaminate(), [Item("case:1/0", "Kettle broken??", runs=False)])
    asked = ["is 90 FINE", "Is 91 fine?", "kettle: BROKEN", "Is 17 fine?"]
    pairs = [pair(0).model_copy(update={"id": str(n), "prompt": [turn("user", text)]}) for n, text in enumerate(asked)]
    _, book, _ = linted(pairs, tokenizer, guarded)
    assert {row.id: row.detail for row in book.dropped} == {
        "0": "copy of p90",
        "1": "copy of p91",
        "2": "copy of case:1/0",
    }


@pytest.mark.parametrize("break_it", ["missing", "torn"])
def test_a_held_out_file_that_cannot_be_read_stops_the_step(tmp_path: Path, break_it: str) -> None:
    folder = data_artifact(tmp_path).path
    path = folder / "heldout_prompts.parquet"
    path.unlink() if break_it == "missing" else path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="heldout_prompts.parquet is (missing|not readable)"):
        Guarded.of(folder, Decontaminate())


@pytest.mark.parametrize("profile", ["cpu-small", "cpu-tiny", "gpu-24gb", "gpu-80gb", "gpu-8x80gb"])
def test_profiles_lint_at_the_length_at_which_dpo_cuts(profile: str) -> None:
    from flows.line import AlignConfig
    from steps.lib.config import layers_of, load

    config = load(AlignConfig, layers_of(profile, root=ROOT / "configs")).value
    assert config.pairs and config.dpo and config.pairs.lint.max_length == config.dpo.train.max_length


def test_the_seeds_own_pairs_are_sound(tokenizer: Any) -> None:
    lines = (ROOT / "data" / "seed" / "pairs" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [Pair.model_validate(json.loads(line)) for line in lines]
    found, _, problems = linted(pairs, tokenizer, max_length=2000)
    assert problems == [] and len(found.made["imported"]) == len(pairs) == 160
