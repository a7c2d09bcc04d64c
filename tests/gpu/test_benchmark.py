"""benchmarks/gpu.py from end to end on a tiny shape: every side, and the page that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "# Page\nbefore\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n"


@pytest.mark.long
@pytest.mark.tiny
def test_it_measures_every_side_and_writes_its_part_of_the_page(device: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    words = ["--shape", "tiny", "--lengths", "64", "--updates", "2", "--warm", "1", "--batch", "4", "--together"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *words, "--page", str(page)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    text = page.read_text()
    assert text.startswith("# Page\nbefore\n<!-- measured -->\n20") and text.endswith("<!-- /measured -->\nafter\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 64 |")]
    assert [row[1] for row in rows] == ["trl", "trl-packed", "ours", "trl", "ours"] and "old" not in text
    assert all(float(row[3]) > 0 and float(row[5].rstrip("%")) >= 0 for row in rows)
    losses = [float(row[7]) for row in rows]
    assert all(5.5 < loss < 6.5 for loss in losses[:3]), "near ln 400 = 5.99"
    assert losses[3:] == pytest.approx([0.6931, 0.6931], abs=2e-4)
    assert all(float(row[4]) > 0 for row in (rows[0], rows[1], rows[3])) and rows[2][4] == rows[4][4] == ""


def test_the_page_of_the_repository_has_a_place_for_the_figures() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert text.index("<!-- measured -->") < text.index("<!-- /measured -->")
