"""Garbled copies of answers."""

from steps.lib.figures import Item
from steps.lib.planted import garbled, planted_among


def test_garbled_text_has_the_same_parts() -> None:
    for text in ("one two three four five six", "我们会在七天之内把钱退给您，请您放心。", '{"intent":"refund"}'):
        broken = garbled(text, "k")
        assert broken != text and sorted(broken.split() if " " in text else broken) == sorted(
            text.split() if " " in text else text
        )
        assert garbled(text, "k") == broken != garbled(text, "other")


def test_long_answers_are_drawn_by_their_ids() -> None:
    texts = ["short", "the parcel is on its way to you now", "the money comes back in seven days", "a" * 40]
    rows = [Item(model="m", suite="s", item_id=str(n), cluster_id="c", output=text) for n, text in enumerate(texts)]
    found = planted_among(rows, 9)
    assert {row.item_id for row, _ in found} == {"1", "2"}, "short ones, and one that cannot be garbled, are left out"
    assert found == planted_among(rows[::-1], 9) and planted_among(rows, 0) == []
