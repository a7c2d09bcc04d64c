"""Every model side by side: figures against hand computation, adapters switched against adapters loaded alone."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import cuts
import pytest
from minimal import EVALUATE, TASK, TinyChain, context, data_artifact, made, pair
from training_runs import argv, spec

from steps import evaluate
from steps.evaluate import EvaluateConfig
from steps.lib import chat, evaluated, inference, model_files, models
from steps.lib.artifact import Artifact
from steps.lib.errors import DataError
from steps.lib.evals import Heldout, score_model
from steps.lib.figures import Item, read_items
from steps.lib.preference import add_implicit
from steps.lib.registry import Registry
from steps.lib.rows import Pair, Prompt, Text, read_parquet
from steps.lib.stages import Stages
from steps.lib.suite_answers import repetition
from steps.lib.suites import Limits

pytestmark = pytest.mark.tiny


def items_of(artifact: Artifact) -> dict[tuple[str, str, str], Item]:
    return {(item.model, item.suite, item.item_id): item for item in read_items(artifact.path / "items.parquet")}


def report_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "report.json").read_text())
    found |= json.loads((artifact.path / "record" / "background.json").read_text())
    return found


def figure(artifact: Artifact, name: str, model: str) -> float:
    [found] = [f for f in report_of(artifact)["figures"] if (f["name"], f["model"]) == (name, model)]
    return float(found["interval"]["value"])


def test_the_three_preference_accuracies_by_hand(chain: TinyChain) -> None:
    pairs = read_parquet(chain.data.path / "heldout_pairs.parquet", Pair)
    tokenizer = models.load_tokenizer(models.model_folder(chain.sft.path))

    def sums(artifact: Artifact, row: Pair) -> list[tuple[float, int]]:
        """(log p, tokens) of chosen and rejected, one row at a time."""
        encoded = [chat.encode_pair(tokenizer, row.prompt, side) for side in (row.chosen, row.rejected)]
        model = models.load_policy(artifact.path)
        return [(inference.sequence_logps(model, [side], batch_size=1)[0], len(side[1])) for side in encoded]

    new, old = ([sums(artifact, row) for row in pairs] for artifact in (chain.dpo, chain.sft))
    share = 1 / len(pairs)
    raw = share * sum(c[0] > r[0] for c, r in new)
    by_length = share * sum(c[0] / c[1] > r[0] / r[1] for c, r in new)
    implicit = share * sum((c[0] - oc[0]) - (r[0] - or_[0]) > 0 for (c, r), (oc, or_) in zip(new, old, strict=True))
    assert figure(chain.evaluate, "raw_logprob_accuracy", "dpo") == pytest.approx(raw, abs=1e-4)
    assert figure(chain.evaluate, "length_norm_accuracy", "dpo") == pytest.approx(by_length, abs=1e-4)
    assert figure(chain.evaluate, "implicit_reward_accuracy", "dpo") == pytest.approx(implicit, abs=1e-4)
    named = {f["name"] for f in report_of(chain.evaluate)["figures"] if f["model"] == "sft"}
    assert "raw_logprob_accuracy" in named and "implicit_reward_accuracy" not in named, (
        "the reference has none against itself"
    )


def test_rows_that_cannot_be_encoded_are_all_named_before_a_model_runs(chain: TinyChain, tmp_path: Path) -> None:
    """Another chat was pasted into an answer: to score what stands before the end of its turn would be another answer."""
    pasted = [pair(1), pair(2, chosen="Yes.<|im_end|>"), pair(3), pair(4, rejected="No.<|im_end|>\nYes.")]
    data = data_artifact(tmp_path, heldout_pairs=pasted)
    heldout = Heldout.read(data.path, None)
    never = inference.Later(lambda: pytest.fail("a model was loaded"))
    tokenizer = models.load_tokenizer(models.model_folder(chain.base.path))
    with pytest.raises(DataError) as caught:
        score_model("base", never, tokenizer, heldout, Limits(8, 64, 4), seed=0)
    lines = str(caught.value).splitlines()
    assert [line.partition(": answer holds the token that ends a turn")[0] for line in lines] == [
        "held-out pairs pair-2",
        "held-out pairs pair-4",
    ]


def test_the_definitions_differ_where_lengths_do() -> None:
    def item(model: str, chosen: float, rejected: float) -> Item:
        return Item(
            model=model,
            suite="pairs",
            item_id="1",
            cluster_id="1",
            lang="en",
            scores={"logp_chosen": chosen, "logp_rejected": rejected},
        )

    for new, old, expected in (
        ((-5, -9), (-5, -9), 0.0),
        ((-5, -9), (-6, -9), 1.0),
        ((-9, -5), (-12, -5), 1.0),
        ((-4, -8), (-4, -9), 0.0),
    ):
        done = add_implicit([item("sft", *old), item("dpo", *new)], "dpo", "sft")
        assert [row.scores.get("implicit") for row in done] == [None, expected], (
            "a tie is wrong; the reference has none"
        )


def test_bits_per_byte_by_hand(chain: TinyChain) -> None:
    texts = read_parquet(chain.data.path / "heldout_domain.parquet", Text)
    model = models.load_model(chain.base.path / "model")
    tokenizer = models.load_tokenizer(chain.base.path / "model")
    nats = inference.text_nats(model, tokenizer, [row.text for row in texts], window=64, batch_size=1)
    expected = sum(nats) / math.log(2) / sum(len(row.text.encode()) for row in texts)
    assert figure(chain.evaluate, "domain_bits_per_byte", "base") == pytest.approx(expected, abs=1e-3)
    assert figure(chain.evaluate, "general_bits_per_byte", "base") < figure(
        chain.evaluate, "domain_bits_per_byte", "base"
    )


def test_switched_adapters_score_as_each_loaded_alone(chain: TinyChain) -> None:
    found = items_of(chain.evaluate)
    suites = Heldout.read(chain.data.path, None)
    limits = Limits(EVALUATE.max_tokens, EVALUATE.window, EVALUATE.batch_size)
    for name in ("base", "pretrain", "sft", "dpo"):
        artifact: Artifact = getattr(chain, name)
        tokenizer = models.load_tokenizer(models.model_folder(artifact.path))
        alone = score_model(
            {"pretrain": "pretrained"}.get(name, name),
            models.load_policy(artifact.path),
            tokenizer,
            suites,
            limits,
            seed=0,
        )
        for item in alone:
            together = found[item.model, item.suite, item.item_id]
            assert together.output == item.output
            assert {k: together.scores[k] for k in item.scores} == pytest.approx(item.scores, abs=1e-3), (
                name,
                item.item_id,
            )
    assert found["sft", "domain", "domain-12"].scores != found["dpo", "domain", "domain-12"].scores


def test_the_base_is_loaded_once_for_both_adapters(chain: TinyChain, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    real = models.load_model
    monkeypatch.setattr(models, "load_model", lambda folder, *a, **k: loaded.append(folder) or real(folder, *a, **k))
    load = Stages("auto")
    order = (chain.base, chain.pretrain, chain.sft, chain.dpo, chain.sft, chain.pretrain)
    found = [load(artifact.path) for artifact in order]
    assert found[2] is found[4] and found[2] is not found[3] and found[1] is found[5]
    assert not hasattr(found[5], "peft_config"), "the adapters were taken off again"
    folders = [(artifact.path / "model").resolve() for artifact in (chain.base, chain.pretrain)]
    assert [folder.resolve() for folder in loaded] == folders


def test_two_evaluations_have_the_same_digest(chain: TinyChain, tmp_path: Path) -> None:
    """In another store, at another time: every published byte is of the content."""
    inputs = {
        "base": chain.base,
        "pretrained": chain.pretrain,
        "sft": chain.sft,
        "dpo": chain.dpo,
        "heldout": chain.data,
    }
    moved: dict[str, Artifact] = {}
    for name, artifact in {**inputs, "pairs": chain.pairs, "reference": chain.reference}.items():
        shutil.copytree(artifact.path, tmp_path / artifact.key)
        moved[name] = Artifact.read(tmp_path / artifact.key)
    del moved["pairs"], moved["reference"]
    again = made(tmp_path, "evaluate", EVALUATE, **moved)
    assert again.key == chain.evaluate.key
    differ = [
        name
        for name, facts in again.manifest["files"].items()
        if not name.startswith("record/")
        and name not in evaluate.RECORDS  # times and costs are no result
        and facts["sha256"] != chain.evaluate.manifest["files"][name]["sha256"]
    ]
    assert not differ and again.digest == chain.evaluate.digest


def test_a_stage_that_was_left_out_is_not_scored_twice(chain: TinyChain, tmp_path: Path) -> None:
    config = EVALUATE.model_copy(update={"limit": 2})
    result = made(
        tmp_path,
        "evaluate",
        config,
        base=chain.pretrain,
        pretrained=chain.pretrain,
        sft=chain.sft,
        dpo=chain.sft,
        heldout=chain.data,
    )
    assert {item.model for item in read_items(result.path / "items.parquet")} == {"base", "sft"}
    alone = made(tmp_path, "evaluate", config, base=chain.base, heldout=chain.data)
    report = report_of(alone)
    assert [model["name"] for model in report["models"]] == ["base"] and not report["comparisons"]
    assert "first 2 items" in report["notes"][0]


def test_the_report_says_what_was_asked_and_how(chain: TinyChain) -> None:
    report = report_of(chain.evaluate)
    assert [model["name"] for model in report["models"]] == ["base", "pretrained", "sft", "dpo"]
    assert set(report["histories"]) == {"base", "pretrain", "sft", "dpo"} and report["histories"]["dpo"][0][
        "loss"
    ] == pytest.approx(0.6931, abs=1e-3)
    assert {"suites", "items", "task", "scorer", "generation"} <= set(report["fingerprint"])
    assert {row["step"] for row in report["rows"]} >= {"sft", "pairs", "dpo"}
    compared = (
        {(c["new"], c["old"]) for c in report["comparisons"]}
        if report["comparisons"] and "new" in report["comparisons"][0]
        else None
    )
    assert compared is None or ("dpo", "sft") in compared
    html = (chain.evaluate.path / "report.html").read_text()
    assert "领域文本" in html and "Strict format" in html


def test_pairs_longer_than_the_window_stand_in_the_notes(chain: TinyChain, tmp_path: Path) -> None:
    rows = read_parquet(chain.data.path / "heldout_pairs.parquet", Pair)
    long = rows[0].model_copy(update={"chosen": [rows[0].chosen[0].model_copy(update={"content": "long " * 60})]})
    data = data_artifact(tmp_path, heldout_pairs=[long, *rows[1:]])
    result = made(tmp_path, "evaluate", EVALUATE, base=chain.base, heldout=data)
    assert report_of(result)["notes"] == ["1 of 5 pairs are longer than evaluate.window (64 tokens): not scored."]
    assert result.manifest["rows"]["dropped"] == {"pairs": {"too_long": 1}}
    assert "not scored" in (result.path / "report.md").read_text()
    assert report_of(chain.evaluate)["notes"] == []


def test_a_long_history_is_thinned(chain: TinyChain, tmp_path: Path) -> None:
    """By the number of its updates alone: at most 200 points, the first and the last update among them."""
    base = tmp_path / chain.base.key
    shutil.copytree(chain.base.path, base)
    lines = [json.dumps({"step": n, "loss": 1 / n}) for n in range(1, 1001)]
    (base / "record" / "history.jsonl").write_text("\n".join(lines) + "\n")
    manifests = {"base": Artifact.read(chain.base.path).manifest}
    [points] = evaluated._histories(tmp_path / "clean" / "x", manifests).values()
    assert len(points) == 200 and (points[0]["step"], points[0]["loss"], points[-1]["step"]) == (1, 1.0, 1000)


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    nothing: dict[str, list[Any]] = {f"heldout_{name}": [] for name in ("domain", "general", "prompts", "pairs")}
    data = data_artifact(tmp_path, **nothing)
    with pytest.raises(DataError, match="has no held-out item: got four empty suites, because .*; set"):
        Heldout.read(data.path, None)


def test_without_a_task_there_is_no_rule_score(chain: TinyChain, tmp_path: Path) -> None:
    data = data_artifact(tmp_path, task=None)
    assert TASK and Heldout.read(data.path, 1).task is None
    result = made(tmp_path, "evaluate", EVALUATE.model_copy(update={"limit": 1}), base=chain.base, heldout=data)
    assert "rule_score" not in {f["name"] for f in report_of(result)["figures"]}


def test_repetition_is_the_share_of_grams_seen_before() -> None:
    assert repetition("abcdefgh") == 0.0 == repetition("short") == repetition("")
    assert repetition("aaaaaaaaaaaa") == pytest.approx(1 - 1 / 5) and repetition("abab" * 10, n=2) > 0.9


# --- resuming --------------------------------------------------------------------------------------------------------


def inputs_of(chain: TinyChain) -> dict[str, Artifact]:
    return {"base": chain.pretrain, "sft": chain.sft, "dpo": chain.dpo, "heldout": chain.data}


@pytest.mark.fault
@pytest.mark.parametrize(("kills", "terms"), [(3, 1), pytest.param(40, 20, marks=pytest.mark.long)])
def test_cut_off_anywhere_it_goes_on_to_the_same_bytes_and_repeats_no_batch(
    chain: TinyChain, tmp_path: Path, kills: int, terms: int
) -> None:
    what = spec("evaluate", EVALUATE.model_copy(update={"batch_size": 3}), **inputs_of(chain))
    jobs: list[cuts.Job] = []
    for number, (cut, by) in enumerate([(None, ""), *cuts.spread(kills, terms)]):
        store = tmp_path / str(number)
        for artifact in (chain.base, chain.pretrain, chain.sft, chain.pairs, chain.dpo, chain.data):
            (store / artifact.key).parent.mkdir(parents=True, exist_ok=True)
            (store / artifact.key).symlink_to(artifact.path)
        out = store / what.key()
        plots = ("steps.lib.report_page.drawings",)  # most of the time, and made of report.json alone
        jobs.append(cuts.Job(str(store), argv(store, what, out), str(out), cut, by, plots))
    outcomes = cuts.run("evaluate", jobs, *cuts.MODEL)
    assert [outcome for outcome in outcomes if outcome.code] == []
    undisturbed, *others = [Artifact.read(Path(job.out)) for job in jobs]
    total = undisturbed.manifest["metrics"]["batches"]
    assert (
        total == 3 * (2 + 2 + 1 + 4 + 1) + (2 + 1 + 2) and undisturbed.manifest["metrics"]["batches_from_ledger"] == 0
    )
    done: list[int] = []
    for job, found, artifact in zip(jobs[1:], outcomes[1:], others, strict=True):
        assert found.ended in ((-signal.SIGKILL,) if job.signal == "SIGKILL" else (75, 0)), found
        assert artifact.digest == undisturbed.digest
        for name, facts in undisturbed.manifest["files"].items():
            record = name.startswith("record/") or name in evaluate.RECORDS
            assert record or artifact.manifest["files"][name]["sha256"] == facts["sha256"], name
        metrics = artifact.manifest["metrics"]
        done.append(found.held.get("batches", 0))
        if found.ended and done[-1]:
            assert metrics["batches"] == total and metrics["batches_from_ledger"] == done[-1], "computed = total - done"
    assert done[0] == 0 and len(set(done)) > kills // 2, "the cuts lie in different batches"


def test_a_model_whose_batches_are_all_kept_is_not_loaded(
    chain: TinyChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {name: artifact.path for name, artifact in inputs_of(chain).items()}
    first = context(tmp_path / "out")
    evaluate.run(EVALUATE, **inputs, out=tmp_path / "out", context=first)
    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    whole = (tmp_path / "out" / "items.parquet").read_bytes()
    again = evaluate.run(EVALUATE, **inputs, out=tmp_path / "out", context=first)
    assert again.values["batches_from_ledger"] == again.values["batches"]
    assert (tmp_path / "out" / "items.parquet").read_bytes() == whole


@pytest.mark.parametrize("change", ["weights", "alpha", "template", "limits", "data", "prompts", "rules"])
def test_no_batch_of_another_model_or_of_other_items_is_taken(chain: TinyChain, tmp_path: Path, change: str) -> None:
    """The same resume folder, by mistake, for something else: nothing stale is taken from it."""
    shutil.copytree(chain.root, tmp_path / "store", dirs_exist_ok=True)
    policy, base = (tmp_path / "store" / artifact.key for artifact in (chain.sft, chain.pretrain))
    data, config = chain.data.path, EVALUATE
    evaluate.run(config, base=policy, heldout=data, out=tmp_path / "out", context=context(tmp_path / "out"))
    if change == "weights":
        shutil.copyfile(*(a.path / "adapter" / "adapter_model.safetensors" for a in (chain.dpo, Artifact(policy, {}))))
    elif change == "alpha":
        file = policy / "adapter" / "adapter_config.json"
        file.write_text(file.read_text().replace('"lora_alpha": 16', '"lora_alpha": 17'))
    elif change == "template":
        template = base / "model" / "chat_template.jinja"
        template.write_text("{# another #}" + template.read_text())
        digest = model_files.model_digest(base / "model")
        models.Chain.read(policy).model_copy(update={"base": digest}).write(policy)
    elif change == "limits":
        config = config.model_copy(update={"max_tokens": 5, "batch_size": 7})
    elif change == "prompts":
        rows = read_parquet(data / "heldout_prompts.parquet", Prompt)
        changed = [row.model_copy(update={"prompt": row.prompt.replace("fine", "good")}) for row in rows]
        data = data_artifact(tmp_path / "other", heldout_prompts=changed).path
    elif change == "rules":
        data = data_artifact(tmp_path / "other", task=TASK.replace("^yes$", "^no$")).path
    else:
        rows = read_parquet(data / "heldout_domain.parquet", Text)
        data = data_artifact(tmp_path / "other", heldout_domain=[rows[0].model_copy(update={"text": "Other."})]).path
    metrics = evaluate.run(config, base=policy, heldout=data, out=tmp_path / "out", context=context(tmp_path / "out"))
    fresh = evaluate.run(config, base=policy, heldout=data, out=tmp_path / "new", context=context(tmp_path / "new"))
    assert fresh.values["batches_from_ledger"] == 0
    kept = {"data": 5, "limits": 2, "prompts": 4, "rules": 6}.get(change, 0)
    assert metrics.values["batches_from_ledger"] == kept, "of 6; texts are scored the same whatever an answer's length"
    assert (tmp_path / "out" / "items.parquet").read_bytes() == (tmp_path / "new" / "items.parquet").read_bytes()


# --- champion, anchor, further suites ---------------------------------------------------------------------------------


def registered(chain: TinyChain, root: Path, *stages: str) -> Registry:
    """A registry whose versions are adapters of the chain; the last one is champion."""
    registry = Registry(root / "registry")
    before = None
    for name in stages:
        artifact: Artifact = getattr(chain, name)
        staged = root / "staged" / name
        shutil.copytree(artifact.path / "adapter", staged / "adapter", ignore=shutil.ignore_patterns("*.md"))
        shutil.copyfile(artifact.path / "chain.json", staged / "chain.json")
        version = registry.register("desk", staged, facts={"policy": artifact.digest})
        registry.promote("desk", version.name, expected=before, verdict_digest="0", reason="a test")
        before = version.name
    return registry


def test_the_champion_is_scored_again_in_the_same_run(chain: TinyChain, tmp_path: Path) -> None:
    """On the same items, by the same code; it is found by the candidate, and a candidate that is champion meets the one before."""
    registry = registered(chain, tmp_path, "sft", "dpo")
    config = EVALUATE.model_copy(update={"registry": registry.root, "name": "desk", "limit": 2, "latency": 0})
    inputs = {"base": chain.base, "sft": chain.sft, "heldout": chain.data}
    result = made(tmp_path, "evaluate", config, **inputs)
    report = report_of(result)
    assert [card["name"] for card in report["models"]] == ["base", "champion", "sft"], "the candidate is last"
    cards = {card["name"]: card for card in report["models"]}
    assert cards["champion"]["policy"] == chain.dpo.digest and cards["sft"]["policy"] == chain.sft.digest
    items = items_of(result)
    dpo = items_of(chain.evaluate)
    mine = [item for (model, suite, _), item in items.items() if model == "champion" and suite in ("pairs", "prompts")]
    assert len(mine) == 4
    for item in mine:
        before = dpo["dpo", item.suite, item.item_id]
        assert (
            item.output == before.output
            and item.model_digest == before.model_digest != items["sft", item.suite, item.item_id].model_digest
        )
        assert {k: item.scores[k] for k in before.scores} == pytest.approx(before.scores, abs=1e-3)
    assert {(c["model"], c["against"]) for c in report["comparisons"]} == {("sft", "champion")}
    before = made(tmp_path, "evaluate", config, base=chain.base, sft=chain.sft, dpo=chain.dpo, heldout=chain.data)
    assert [card["name"] for card in report_of(before)["models"]] == ["base", "sft", "champion", "dpo"]
    assert report_of(before)["models"][2]["policy"] == chain.sft.digest, "the champion that dpo replaced"
    assert (
        spec("evaluate", config, **inputs).parts["externals"]["champion"] == registry.resolve("desk", "champion").digest
    )
    registry.rollback("desk", expected=registry.history("desk").aliases()["champion"], reason="a test")
    assert spec("evaluate", config, **inputs).parts["externals"]["champion"] == "none", (
        "it is champion, and was the first"
    )
    assert spec("evaluate", config, **inputs, dpo=chain.dpo).key() == before.key, "dpo still meets sft"


def test_implicit_rewards_and_divergences_are_against_the_named_reference(chain: TinyChain, tmp_path: Path) -> None:
    config = EVALUATE.model_copy(update={"reference": "base", "latency": 0})
    result = made(tmp_path, "evaluate", config, base=chain.base, sft=chain.sft, dpo=chain.dpo, heldout=chain.data)
    found = {(f["name"], f["model"]): f for f in report_of(result)["figures"]}
    for name in ("implicit_reward_accuracy", "implicit_reward_margin", "kl_ref", "kl_sampled"):
        assert {model for one, model in found if one == name} == {"sft", "dpo"}
        assert found[name, "dpo"]["against"] == "base"
    assert found["kl_ref", "dpo"]["interval"]["value"] > 0 and found["kl_ref", "dpo"]["interval"]["n"] == 5
    usual = {(f["name"], f["model"]): f for f in report_of(chain.evaluate)["figures"]}
    assert usual["kl_ref", "dpo"]["against"] == "sft" and ("kl_ref", "sft") not in usual
    assert usual["kl_ref", "dpo"]["interval"]["value"] < found["kl_ref", "dpo"]["interval"]["value"], (
        "dpo is nearer to sft"
    )
    named = config.model_copy(update={"reference": "champion", "limit": 1})
    fallen = made(tmp_path, "evaluate", named, base=chain.base, sft=chain.sft, dpo=chain.dpo, heldout=chain.data)
    assert "sft stands in its place" in report_of(fallen)["notes"][0]


def test_further_suites_are_items_figures_and_rows_of_the_ledger(chain: TinyChain, tmp_path: Path) -> None:
    kinds = [{"kind": kind, "limit": 3} for kind in ("rules", "format", "choices")]
    config = EvaluateConfig.model_validate({**EVALUATE.model_dump(), "suites": kinds, "latency": 2})
    result = made(tmp_path, "evaluate", config, base=chain.base, sft=chain.sft, heldout=chain.data)
    items = read_items(result.path / "items.parquet")
    assert {i.suite for i in items} == {
        "domain",
        "general",
        "prompts",
        "pairs",
        "rules",
        "rules.instructions",
        "format",
        "choices",
    }
    assert result.manifest["rows"]["out"]["rules scored"] == 3 == result.manifest["rows"]["in"]["choices"]
    report = report_of(result)
    named = {f["name"] for f in report["figures"]}
    assert {
        "rules_prompt_strict",
        "rules_instruction_loose",
        "format_json_strict",
        "format_schema_ok",
        "choices_accuracy",
    } <= named
    assert {"suite rules", "suite format", "suite choices", "template", "precision"} <= set(report["fingerprint"])
    assert all(i.model_digest and i.suite_digest and i.scorer_version for i in items)
    times = json.loads((result.path / "record" / "latency.json").read_text())["models"]
    assert set(times) == {"base", "sft"} and times["sft"]["requests"] == 2
    assert "record/latency.json" in result.manifest["files"], "kept, but no part of the digest"
