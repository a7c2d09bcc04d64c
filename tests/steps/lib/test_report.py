"""Figures from items, sentences from figures, and the three files of a report."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import example_report
import pytest
from pydantic import ValidationError

from steps.lib import figures, report, wording
from steps.lib.errors import DataError
from steps.lib.figures import Comparison, Figure, Item, Measure
from steps.lib.report import Report, StepRows
from steps.lib.stats import Interval, wilson

SHARE = Measure(name="rule_score", label_en="Rule score", label_zh="规则得分", unit="share", suite="s", score="rules")
BITS = Measure(
    name="bpb",
    label_en="Domain text",
    label_zh="领域文本",
    unit="bits/byte",
    better="lower",
    suite="s",
    score="bits",
    weight="bytes",
)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return example_report.items()


@pytest.fixture(scope="module")
def shown(items: list[Item]) -> Report:
    return example_report.report(items)


@pytest.fixture(scope="module")
def folder(shown: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    report.write(shown, path)
    return path


def item(name: str, model: str, error: str = "", **scores: float | None) -> Item:
    return Item(model=model, suite="s", item_id=name, cluster_id=name, scores=scores, error=error)


def change(value: float, low: float, high: float, measure: Measure = SHARE) -> Comparison:
    return Comparison(
        **measure.model_dump(),
        model="dpo",
        against="sft",
        interval=Interval(value=value, low=low, high=high, n=9, method="m"),
    )


def test_items_come_back_as_they_were(items: list[Item], tmp_path: Path) -> None:
    figures.write_items(tmp_path / "items.parquet", items)
    assert figures.read_items(tmp_path / "items.parquet") == items
    with pytest.raises(DataError, match="missing"):
        figures.read_items(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="not readable as Parquet"):
        figures.read_items(tmp_path / "text.parquet")


def test_figures_find_the_truth(shown: Report) -> None:
    """The made-up items have known levels; each interval holds its own."""
    found = {(figure.name, figure.model): figure.interval for figure in shown.figures}
    for suite, levels in example_report.BITS.items():
        for model, level in zip(example_report.CHAIN, levels, strict=True):
            interval = found[f"{suite.removeprefix('heldout_')}_bits_per_byte", model]
            assert interval.low < level < interval.high, (suite, model)


def test_errors_count_as_failures_and_gaps_do_not_count() -> None:
    rows = [
        item("a", "m", rules=1.0),
        item("b", "m", error="boom"),
        item("c", "m", rules=None),
        item("d", "other", rules=0.0),
    ]
    interval = figures.measure(rows, SHARE, "m").interval
    assert (interval.value, interval.n) == (0.5, 2)
    with pytest.raises(DataError, match="got error 'boom'"):
        figures.measure([item("b", "m", error="boom", bytes=3.0)], BITS, "m")
    with pytest.raises(DataError, match="has no items"):
        figures.measure(rows, SHARE, "nobody")
    with pytest.raises(DataError, match="stands twice"):
        figures.measure([rows[0], rows[0]], SHARE, "m")
    with pytest.raises(DataError, match="has no 'bytes'"):
        figures.measure([item("a", "m", bits=1.0)], BITS, "m")


def test_models_on_other_items_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"not paired: got 1 items of one model only \(first: 'b'\)"):
        figures.compare(
            [item("a", "x", rules=1.0), item("a", "y", rules=1.0), item("b", "y", rules=1.0)], SHARE, "x", "y"
        )


def test_a_sentence_says_what_the_interval_says() -> None:
    good, open_end = change(0.188, 0.178, 0.198), change(0.01, -0.02, 0.04)
    bits = change(-38.5, -38.7, -38.3, BITS)
    assert (good.outcome, open_end.outcome, bits.outcome) == ("better", "unclear", "better")
    found = wording.verdict("dpo", [good, open_end, bits], [])
    assert found is not None and found.outcome == "better"
    plain = found.english.replace("\u00a0", " ")
    assert (
        plain == "Domain text (bits/byte) down by 38.5 % (38.3 to 38.7 %); rule score up by 18.8 points (17.8 to 19.8)."
    )
    assert (
        found.chinese.replace("\u00a0", " ")
        == "领域文本 (bits/byte)下降 38.5 %（38.3 至 38.7 %）；规则得分上升 18.8 个百分点（17.8 至 19.8）。"
    )
    mixed = wording.verdict("dpo", [good, change(3.0, 2.0, 4.0, BITS)], [])
    assert mixed is not None and mixed.outcome == "mixed"
    nothing = wording.verdict("dpo", [open_end], [])
    assert nothing is not None and nothing.outcome == "unclear" and nothing.english.startswith("No clear change")
    assert wording.verdict("base", [good], []) is None


def test_numbers_in_words() -> None:
    figure = Figure(
        **SHARE.model_dump(), model="dpo", interval=Interval(value=0.917, low=0.819, high=0.964, n=60, method="Wilson")
    )
    assert wording.value(figure).replace("\u00a0", " ") == "91.7 %"
    assert wording.span(figure).replace("\u00a0", " ") == "81.9 to 96.4 %"
    assert wording.change(change(-0.05, -0.1, 0.0)).replace("\u00a0", " ") == "−5.0 points"
    assert wording.change_span(change(-0.05, -0.1, 0.0004)) == "−10.0 to 0.0"


def test_no_sentence_without_its_figures(shown: Report, folder: Path, tmp_path: Path) -> None:
    """Other figures, other sentences: nothing in the page is hard-coded."""
    flat = [
        c.model_copy(update={"interval": Interval(value=0, low=-0.1, high=0.1, n=9, method="m")})
        for c in shown.comparisons
    ]
    report.write(shown.model_copy(update={"comparisons": flat}), tmp_path)
    stages = re.findall(r'card stage (\w+)"', (tmp_path / "report.html").read_text())
    assert stages == ["unclear"] * 3
    assert re.findall(r'card stage (\w+)"', (folder / "report.html").read_text()) == ["mixed", "better", "better"]


def test_files_are_the_same_bytes_again(shown: Report, folder: Path, tmp_path: Path) -> None:
    report.write(shown, tmp_path)
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert report.read(folder) == shown


def test_the_page_asks_for_nothing_and_trusts_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text()

    class Links(HTMLParser):
        found: list[str] = []
        scripts = 0

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("iframe", "img", "object", "link", "base", "meta refresh"), tag
            assert not [name for name, _ in attributes if name.startswith("on")], attributes
            self.scripts += tag == "script"
            self.found += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    parser = Links()
    parser.feed(page)
    assert all(link.startswith("#") for link in parser.found) and parser.scripts == 1
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|innerHTML", page)
    assert "&lt;script&gt;alert" in page


def test_the_policy_of_the_page_names_its_one_script(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    named = re.search(r"script-src 'sha256-([^']+)'", page)
    assert script and named
    assert base64.b64decode(named[1]) == hashlib.sha256(script[1].encode()).digest()
    assert "'unsafe-inline'" not in (re.search(r"script-src[^;\"]*", page) or [""])[0]


def test_every_part_is_shown(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text().replace("\u00a0", " ").replace("&#39;", "'")
        for part in (
            "逐项配对差异",
            "全部指标",
            "样例对照",
            "各步行数",
            "来历",
            "评测指纹",
            "备注",
            "scripted desk",
            "near_copy",
            "no_refund_promise",
            "✓",
            "✗",
            "我的保温杯漏水了",
            "教师是脚本规则",
            "2.13.0",
            "466 candidates",
            example_report.lineage()[4].key.partition("/")[2],
            "paired, Newcombe",
            "always A",
            "two verdicts agree on 0 % of the items",
            "equal length",
            "case-07",
            "still failing",
            "仍失败",
            "The holdout was used 9 times",
            "Cost and time",
            "0.42 USD",
            "2.1 s",
            "612 MiB",
        ):
            assert part in text, (name, part)
    assert (folder / "report.html").read_text().count('<svg role="img"') == 4 + 5 + 1 + 1 + 1


def test_lineage_stands_in_the_order_in_which_it_was_made(shown: Report, folder: Path) -> None:
    steps = [node.step for node in shown.lineage]
    assert steps == ["generate", "clean", "base", "pretrain", "sft", "pairs", "reference", "dpo"]
    places = {node.key: place for place, node in enumerate(shown.lineage)}
    edges = {(places[key], places[node.key]) for node in shown.lineage for key in node.inputs}
    assert edges == {
        (0, 1),
        (1, 2),
        (1, 3),
        (2, 3),
        (1, 4),
        (3, 4),
        (1, 5),
        (4, 5),
        (4, 6),
        (5, 6),
        (4, 7),
        (5, 7),
        (6, 7),
    }
    assert all(re.fullmatch(r"[a-z]+/[0-9a-f]{12}", node.key) for node in shown.lineage)
    text = (folder / "report.md").read_text()
    sft, dpo = (node.key.replace("/", "_") for node in (shown.lineage[4], shown.lineage[7]))
    assert f"  {sft} --> {dpo}\n" in text and text.count(" --> ") == 13 and "```mermaid\ngraph TD\n" in text


def test_lineage_without_some_ancestors_or_with_any_order_is_the_same(shown: Report) -> None:
    manifests = [
        {"step": step, "key": f"{step}/{place:020}", "inputs": {"x": {"key": above}}, "rows": {"out": {}}}
        for place, (step, above) in enumerate([("dpo", f"sft/{1:020}"), ("sft", f"base/{9:020}"), ("sft", "gone/1")])
    ]
    for order in (manifests, manifests[::-1]):
        found = report.nodes(order)
        assert [(node.step, node.inputs) for node in found] == [
            ("sft", []),
            ("sft", []),
            ("dpo", [f"sft/{1:020}"[:16]]),
        ]
    assert report.nodes([]) == []


def test_markdown_cannot_be_broken_by_an_answer(shown: Report, tmp_path: Path) -> None:
    sample = shown.samples[0].model_copy(update={"outputs": {"dpo": "```\n# not a heading\n````"}})
    report.write(shown.model_copy(update={"samples": [sample], "histories": {}}), tmp_path)
    assert "`````\n```\n# not a heading\n````\n`````" in (tmp_path / "report.md").read_text()


def test_a_small_report_is_a_report(tmp_path: Path) -> None:
    rows = [item(str(n), "base", rules=float(n % 2)) for n in range(6)]
    small = Report(
        title="t",
        seed=0,
        models=[report.ModelCard(name="base", digest="d")],
        figures=[figures.measure(rows, SHARE, "base")],
    )
    report.write(small, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Rule score" in page and 'class="graph"' not in page
    assert "mermaid" not in (tmp_path / "report.md").read_text(), "a report without nodes has no graph"


def test_a_reason_that_met_no_row_is_not_shown() -> None:
    ledger = {"in": {"a": 3, "b": 1}, "out": {"c": 3}, "dropped": {"a": {"never": 0}, "b": {"never": 0, "bad": 1}}}
    assert StepRows.from_ledger("pretrain", ledger).dropped == {"b": {"bad": 1}}


def test_what_is_not_a_report_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        report.read(tmp_path)
    content = json.loads((folder / "report.json").read_text())
    content["extra"] = 1
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="field extra"):
        report.read(tmp_path)
    with pytest.raises(ValidationError):
        Interval(value=float("nan"), low=0, high=1, n=1, method="m")


def test_the_funnel_comes_from_the_metrics_of_generate() -> None:
    metrics = {
        "answer/asked": 9, "big/requests": 9, "funnel/answer/org/big/asked": 8, "funnel/answer/org/big/answered": 7,
        "funnel/answer/org/big/parsed": 6, "funnel/answer/org/big/kept": 5, "funnel/answer/org/big/failed:http_500": 1,
        "funnel/answer/org/big/dropped:truncated": 2, "funnel/answer//asked": 1, "funnel/answer//failed:over_budget": 1,
    }  # fmt: skip
    big, nobody = report.funnels(metrics)
    assert (big.stage, big.teacher, big.asked, big.answered, big.parsed, big.kept) == ("answer", "org/big", 8, 7, 6, 5)
    assert list(big.lost.items()) == [("truncated", 2), ("http_500", 1)]
    assert (nobody.teacher, nobody.asked, nobody.failed) == ("", 1, {"over_budget": 1}) and report.funnels(
        {"x": 1}
    ) == []


def test_the_funnel_stands_in_both_pages_and_not_in_the_result(shown: Report, folder: Path) -> None:
    html, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "funnel" not in json.loads((folder / "report.json").read_text(encoding="utf-8")), (
        "how rows came to be is a record"
    )
    assert report.read(folder).funnel == shown.funnel and len(shown.funnel) == 4
    assert "| answer | scripted desk | 300 | 300 | 281 | 281 | unparsed 14, schema 5 |" in markdown
    assert "| answer | – | 12 | 0 | 0 | 0 | over_budget 12 |" in markdown
    for text in (
        "Requests of generate",
        "请求漏斗",
        "Teacher answers",
        "教师回答",
        "1,151  95.0%",
        "1,212",
        "big 教师",
        "nobody 未分配",
    ):
        assert text in html, text


def test_a_name_in_the_funnel_is_text(tmp_path: Path, shown: Report) -> None:
    evil = report.Funnel(stage="a|b", teacher="<script>alert(1)</script>|$x$", asked=1, failed={"<b>x": 1})
    report.write(shown.model_copy(update={"funnel": [evil]}), tmp_path)
    html, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert html.count("<script") == 1 and "<b>x" not in html and "&lt;script&gt;" in html
    assert "a\\|b" in markdown and "&lt;script>" in markdown


def test_without_answers_of_teachers_there_is_no_funnel(tmp_path: Path, shown: Report) -> None:
    report.write(shown.model_copy(update={"funnel": []}), tmp_path)
    assert "Teacher answers" not in (tmp_path / "report.html").read_text(encoding="utf-8") + (
        tmp_path / "report.md"
    ).read_text(encoding="utf-8")


def with_champion(shown: Report, items: list[Item]) -> tuple[Report, list[Item]]:
    """The report with the sft model's items as those of a champion, which stands last."""
    more = [row.model_copy(update={"model": "champion"}) for row in items if row.model == "sft"]
    rows = [*items, *more]
    card = shown.models[2].model_copy(update={"name": "champion"})
    rule = example_report.MEASURES[3]
    return shown.model_copy(
        update={
            "models": [*shown.models, card],
            "figures": [*shown.figures, figures.measure(rows, rule, "champion")],
            "comparisons": [*shown.comparisons, figures.compare(rows, rule, "dpo", "champion")],
            "histories": {},
            "funnel": [],
        }
    ), rows


def test_the_candidate_is_never_an_incumbent(shown: Report, items: list[Item], tmp_path: Path) -> None:
    both, _ = with_champion(shown, items)
    assert (shown.candidate, both.candidate) == ("dpo", "dpo")
    report.write(both, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert page.count('<article class="card stage') == 4, "three stages, and the candidate against the champion"
    tile = page[page.index("Rule score</span>") :]
    rule = next(one for one in both.figures if (one.name, one.model) == ("rule_score", "dpo"))
    assert wording.value(rule).replace("\u00a0", " ") in tile[: tile.index("champion <b>")]
    assert re.search(r'<li class="now"><b>dpo</b>', page)
    assert "**dpo** against champion" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_slices_stand_by_figure_and_part(shown: Report, folder: Path) -> None:
    found = shown.by_slice()
    assert [(name, [part for part, _ in parts]) for name, parts in found] == [
        ("rule_score", ["lang=en", "lang=zh"]),
        ("domain_bits_per_byte", ["lang=en", "lang=zh"]),
    ]
    assert all([one.model for one in own] == shown.chain for _, parts in found for _, own in parts)
    assert "| lang=zh |" in (folder / "report.md").read_text(encoding="utf-8")


def test_differences_stand_by_the_two_models(shown: Report, folder: Path) -> None:
    assert [(model, against, len(own)) for model, against, own in shown.by_pair()] == [
        ("dpo", "sft", 4),
        ("pretrained", "base", 2),
        ("sft", "pretrained", 2),
    ]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<details( open)?>\n<summary><b>(\w+) − ", page) == [
        (" open", "dpo"),
        ("", "pretrained"),
        ("", "sft"),
    ]


def test_cases_and_times_come_from_those_who_know() -> None:
    state = {"item_id": "c1", "state": "error", "severity": "major", "slices": ["major", "format"], "lang": "zh"}
    found = report.Case.of(state, "json")
    assert (found.id, found.state, found.severity, found.tags, found.detail) == (
        "c1",
        "error",
        "major",
        ["format"],
        "json",
    )
    times = {"p50_s": 1.0, "p95_s": 2.0, "tokens_per_s": 9.0, "first_p50_s": 0.1, "peak_mib": 3.0, "requests": 4.0}
    assert report.Speed.of("dpo", times) == report.Speed(
        model="dpo", p50_s=1.0, p95_s=2.0, tokens_per_s=9.0, first_token_s=0.1, peak_mib=3.0
    )
    assert report.Speed.of("dpo", {"p50_s": 1.0, "p95_s": 2.0, "tokens_per_s": 9.0}).peak_mib is None


def test_costs_come_from_the_manifests_each_once() -> None:
    manifests = example_report.manifests()
    found = report.report_costs([*manifests, manifests[0]])
    assert [one.step for one in found] == [node.step for node in example_report.lineage()]
    assert sum(one.dollars for one in found) == 0.42 and found[0].seconds == 20.0 and found[1].tokens == 1000
    bare = {"step": "sft", "key": f"sft/{'0' * 20}", "inputs": {}, "rows": {"out": {}}}
    assert report.report_costs([bare])[0].seconds == 0.0 and report.report_costs([]) == []


def test_time_money_and_speed_are_no_part_of_the_result(shown: Report, folder: Path) -> None:
    said = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert not {"costs", "speeds"} & said.keys() and {"slices", "judging", "cases", "warnings"} <= said.keys()
    assert report.read(folder) == shown


def test_a_judge_tells_its_facts() -> None:
    rates = [
        Figure(**{**SHARE.model_dump(), "name": name}, model="dpo", against="sft", interval=wilson(hits, 40))
        for name, hits in (("win_rate", 30), ("lc_win_rate", 28))
    ]
    facts = {
        "suite": "pairwise", "new": "dpo", "old": "sft", "judge": "j", "judge_model": "org/j", "n": 42, "asked": 40,
        "unparsed": 1, "failed": 1, "consistency": 0.8, "first_position": None, "problems": ["p"], "phi": 0.1,
    }  # fmt: skip
    found = report.Judging.of(facts, rates)
    assert (found.judge, found.n, found.missing, found.first, found.problems) == ("org/j", 42, 0.05, None, ["p"])
    assert found.win_rate == rates[0].interval and found.lc_win_rate == rates[1].interval
    other = report.Judging.of({**facts, "old": "base", "asked": 0, "judge_model": ""}, rates)
    assert (other.judge, other.win_rate, other.missing) == ("j", None, None)
