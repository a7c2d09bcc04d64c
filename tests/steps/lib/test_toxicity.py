"""Toxic words in both languages, and a real classifier of random weights that is built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.lib import tiny
from steps.lib.content import Content, judge_content
from steps.lib.errors import ConfigError, ModelError
from steps.lib.toxicity import Classifier, Toxicity, ToxicityModel, toxic_density, toxic_words, toxicity_identity

MILD = [
    "The classic cocktail came with a chink of light; Scunthorpe won, and Dick hit the ass with a stick.",
    "The report says that the court found him guilty of murder.",
    "他说这个草泥马表情很好笑，贱内也笑了。",
    "医生讲解了口腔和肛门的疾病，去死海旅游很好。",
    "I will kill the process and hang the picture.",
]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("You asshole", "insult"), ("you A$$h0le!", "insult"), ("ＦＵＣＫ　ＹＯＵ", "insult"), ("f a g got", None), ("n1gg3rs", "slur"),
        ("I'll kill you", "threat"), ("go kill yourself", "threat"), ("free child porn", "sexual"),
        ("你这个傻逼", "insult"), ("傻*逼", "insult"), ("操 你 妈", "insult"), ("黑鬼滚", "slur"), ("我要弄死你", "threat"), ("约炮加我", "sexual"), ("傻B", "insult"),
    ],
)  # fmt: skip
def test_toxic_words_are_seen_through_simple_disguises(text: str, kind: str | None) -> None:
    assert toxic_words(text) == ([kind] if kind else [])


@pytest.mark.parametrize("text", MILD)
def test_words_with_another_use_are_none(text: str) -> None:
    assert toxic_words(text) == []


def test_the_list_is_off_by_default_and_counts_on_1000_characters() -> None:
    text = "You asshole. " + "x" * 487
    assert toxic_density(text) == 2.0 and toxic_density("") == 0.0
    assert judge_content([text], Content()) == judge_content([text], Content(), Toxicity()) == [None]
    assert judge_content([text, MILD[0]], Content(), Toxicity(words=2)) == [None, None]
    finding = judge_content([text], Content(), Toxicity(words=1.5))[0]
    assert finding == ("toxic_words", "2.00 on 1,000 characters, at most 1.5"), "the word itself is in no report"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = tiny.build_tokenizer([*MILD, "你这个傻逼", "茶很好喝"] * 3, tiny.TinyConfig(vocab_size=400))
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id, id2label={0: "fine", 1: "Toxic"}, label2id={"fine": 0, "Toxic": 1},
            initializer_range=0.3,
        )
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _alone(folder: Path, text: str) -> float:
    """The oracle: transformers itself, one text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.softmax(-1)[0, 1])


def test_a_classifier_scores_as_transformers_does_whatever_stands_beside(checkpoint: Path) -> None:
    ask = Classifier(ToxicityModel(path=str(checkpoint)))
    texts = [*MILD, "茶", "你这个傻逼", *(f"tea number {n} 很好喝" * (n % 5 + 1) for n in range(30))]
    scores = ask(texts)
    assert len({round(score, 4) for score in scores}) > 20
    assert scores[5] == pytest.approx(_alone(checkpoint, "茶"), abs=1e-5)
    assert scores[6] == pytest.approx(_alone(checkpoint, "你这个傻逼"), abs=1e-5)
    assert [ask([text])[0] for text in texts] == scores == ask(texts[::-1])[::-1]
    assert ask([]) == []


def test_a_long_text_is_read_to_its_end(checkpoint: Path) -> None:
    ask = Classifier(ToxicityModel(path=str(checkpoint)))
    start = "tea " * 300
    assert ask([start + "你这个傻逼 asshole murder"])[0] >= ask([start])[0] > 0
    windows = [ask([start])[0], ask([start + MILD[1] * 20])[0]]
    assert windows[1] != windows[0], "what stands behind the first window counts"


def test_rows_over_the_threshold_are_dropped(checkpoint: Path) -> None:
    scores = Classifier(ToxicityModel(path=str(checkpoint)))(MILD)
    middle = sorted(scores)[2]
    rules = Toxicity(model=ToxicityModel(path=str(checkpoint), threshold=middle))
    findings = judge_content(MILD, Content(), rules)
    assert [finding is not None for finding in findings] == [score >= middle for score in scores]
    assert {finding[0] for finding in findings if finding} == {"toxic"}
    assert len(toxicity_identity(rules.model or ToxicityModel(path=""))) == 64


def test_a_wrong_label_and_a_wrong_folder_are_said(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label is wrong: got 'hate'.*fine, Toxic"):
        Classifier(ToxicityModel(path=str(checkpoint), label="hate"))
    with pytest.raises(ModelError, match="cannot be used"):
        Classifier(ToxicityModel(path=str(tmp_path)))


def test_a_heap_of_marks_takes_no_time_and_hides_no_word() -> None:
    assert toxic_words("傻" + "\u0315\u0300" * 20_000 + "逼") == ["insult"]
