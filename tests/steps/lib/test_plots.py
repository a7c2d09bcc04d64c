"""Plots: same bytes each time, text stays text, every value and bilingual title is there."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from steps.lib import plots, row_plots
from steps.lib.stats import wilson

HISTORY = [
    {"step": step, "loss": 2.0 / step, "rewards/margins": step / 10, "rewards/accuracies": 0.5 + step / 200}
    for step in range(1, 80)
]
VALUES = {"base": wilson(0, 60), "sft": wilson(55, 60)}
NODES = [
    ("clean", "clean/1a2b", "1,022 corpus, " + "x" * 80),
    ("sft", "sft/3c4d", "421 <trained>"),
    ("dpo", "dpo/5e6f", ""),
]
EDGES = [(0, 1), (0, 2), (1, 2)]
ROWS = [
    ("clean · chats", 300, 250, {"near_copy": 30, "a": 5, "b": 5, "c": 4, "d": 3, "e": 2, "f": 1}),
    ("empty · x", 0, 0, {}),
]


def drawn() -> dict[str, str]:
    return {
        "loss": plots.loss_curve("sft", HISTORY),
        "reward": plots.reward_curve(HISTORY),
        "answers": plots.answers_curve(
            [{"step": n + 1, "reward": 0.1 * n, "completions/mean_length": 20.0 - n} for n in range(9)]
        ),
        "bars": plots.bars("Format <rate>", "格式率", "share", VALUES),
        "rows": row_plots.rows(ROWS),
        "lineage": plots.lineage(NODES, EDGES),
    }


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return drawn()


def test_bytes_do_not_depend_on_the_process(pages: dict[str, str]) -> None:
    folder = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path[:0] = ['.', {folder!r}]; from test_plots import drawn; sys.stdout.write(repr(drawn()))"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert again == repr(pages) == repr(drawn())


def test_every_plot_is_a_picture_of_its_own(pages: dict[str, str]) -> None:
    for page in pages.values():
        tree = ElementTree.fromstring(page)
        assert tree.get("role") == "img" and tree.get("aria-label") and tree.get("viewBox") and not tree.get("width")
        assert "Noto Sans CJK SC" in (tree.get("style") or "")
        assert "<metadata" not in page and "<style" not in page and "DejaVu" not in page and "<image" not in page


def test_ids_of_two_plots_do_not_meet(pages: dict[str, str]) -> None:
    import re

    ids = [set(re.findall(r' id="([^"]+)"', page)) for page in pages.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for page, own in zip(pages.values(), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page)) == own


def test_values_and_titles_are_text(pages: dict[str, str]) -> None:
    for said in ("Format &lt;rate&gt;  格式率", "0.0 %", "91.7 %", "higher is better 越高越好", ">base<", ">sft<"):
        assert said in pages["bars"], said
    for said in ("clean · chats", "250 / 300", "near_copy", "other reasons 其他原因", "kept 保留"):
        assert said in pages["rows"], said
    assert "empty" not in pages["rows"]
    for said in ("Made from  来历", ">clean<", ">1a2b<", "421 &lt;trained&gt;", "1,022 corpus, xxx", "…"):
        assert said in pages["lineage"], said
    assert "损失" in pages["loss"] and "last 末值 0.025" in pages["loss"]
    assert "accuracy 准确率" in pages["reward"]


def test_every_edge_is_a_curve_and_long_ones_stand_out(pages: dict[str, str]) -> None:
    import re

    curves = re.findall(r'd="M (\S+) \S+\nC (\S+) \S+ \S+ \S+ (\S+) \S+\n"', pages["lineage"])
    assert len(curves) == len(EDGES) and all(start == end for start, _, end in curves)
    assert [float(out) < float(start) - 10 for start, out, _ in curves] == [False, True, False], (
        "round the node between"
    )


def test_nothing_logged_is_no_plot() -> None:
    assert (
        plots.loss_curve("sft", [])
        == plots.reward_curve([{"step": 1, "loss": 0.1}])
        == plots.answers_curve([{"step": 1, "loss": 0.1}])
        == row_plots.rows([])
        == plots.lineage([], [])
        == ""
    )


def test_numbers_have_three_digits() -> None:
    assert [plots.number(value) for value in (0.01234, 1.2345, 12.345, 123.45, -2.5)] == [
        "0.012",
        "1.23",
        "12.3",
        "123",
        "-2.50",
    ]
