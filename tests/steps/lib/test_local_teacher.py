"""The teacher in this process: the same answers alone, in company, from where it was killed, and with what is shared computed once."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from steps.lib import decoding, inference, models, tiny
from steps.lib.asking import Batching, Outcome, Request, Requests
from steps.lib.chat import encode_prompt
from steps.lib.decoding import Decoder, Row, Said, chance, choose, plainly, shared, unable
from steps.lib.errors import TeacherError
from steps.lib.inference import Sampling
from steps.lib.ledger import Reply
from steps.lib.local_teacher import ALIKE, LocalClient, units
from steps.lib.row_attention import attend
from steps.lib.teacher_config import LocalTeacher

pytestmark = pytest.mark.tiny
WORDS = "Is 12 fine? 订单A12345到了吗？ The birds sing in the garden all day, and nobody minds. 鸟儿歌唱。"
SYSTEM = {
    "en": "You answer customers of a shop in the garden all day. Write plainly, and in one or two short sentences, please.",
    "zh": "你是网店的售后客服，请用中文直接回答客户。",
}
LENGTH = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with grouped heads, far from uniform, that ends some answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = tiny.TinyConfig(vocab_size=400, max_length=LENGTH)
    tokenizer = tiny.build_tokenizer([WORDS, *SYSTEM.values()] * 3, config)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True, initializer_range=32**-0.5,
                    pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.7)
    made = tmp_path_factory.mktemp("model")
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return models.load_tokenizer(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """With transformers' own attention: the oracle."""
    return models.load_model(folder, "float32").eval()


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return models.load_model(folder, "float32").eval()


def rows(tokenizer: Any, count: int = 11, system: str | None = "en") -> list[Row]:
    turns = [{"role": "system", "content": SYSTEM[system]}] if system else []
    words = WORDS.split()
    asked = [[*turns, {"role": "user", "content": " ".join(words[k % 7 : k % 7 + 1 + k % 5])}] for k in range(count)]
    return [Row(encode_prompt(tokenizer, one), 100 + k) for k, one in enumerate(asked)]


def run(answers: Any) -> list[Said]:
    found = {said.place: said for ended in answers for said in ended}
    return [found[place] for place in range(len(found))]


def said(found: Sequence[Said]) -> list[tuple[list[int], bool]]:
    return [(one.tokens, one.finished) for one in found]


def ends(tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id, *range(300, 330)]  # many, so that answers end at many places


def by_hand(model: Any, row: Row, stops: Sequence[int], sampling: Sampling) -> tuple[list[int], bool]:
    """One row, the whole text anew for each token."""
    import torch

    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*row.ids, *tokens]])).logits[:, -1]
        [token] = choose(logits, sampling, [chance(row.seed, len(tokens))])
        if token in stops:
            return tokens, True
        tokens.append(token)
    return tokens, False


@pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0, 24), Sampling(1.0, 1.0, 24), Sampling(0.8, 0.9, 24)])
@pytest.mark.parametrize("prefix", [None, 0, 3])
def test_answers_are_those_of_one_row_alone_without_cache(
    model: Any, ours: Any, tokenizer: Any, sampling: Sampling, prefix: int | None
) -> None:
    given, stops = rows(tokenizer), ends(tokenizer)
    assert shared([row.ids for row in given]) > 20, "else the prefix is not tested"
    alone = [by_hand(model, row, stops, sampling) for row in given]
    assert said(run(Decoder(ours, stops, sampling, 4).answers(given, prefix=prefix))) == alone
    assert {finished for _, finished in alone} == {True, False} and len({len(tokens) for tokens, _ in alone}) > 4


def test_logits_with_a_shared_prefix_are_those_without(model: Any, ours: Any, tokenizer: Any) -> None:
    import torch

    given = rows(tokenizer, 5)
    decoder = Decoder(ours, [], Sampling(0.0, 1.0, 4), 5)
    with torch.no_grad():
        wanted = torch.stack([model(input_ids=torch.tensor([list(row.ids)])).logits[0, -1] for row in given])
    for prefix in (0, 1, 17, shared([row.ids for row in given])):
        assert (decoder.first_logits(given, prefix) - wanted).abs().max() < 1e-4


def test_the_shared_prefix_is_computed_once(ours: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(tokenizer)
    tokens: list[int] = []
    real = type(ours).forward

    def counted(self: Any, input_ids: Any, **more: Any) -> Any:
        tokens.append(input_ids.numel())
        return real(self, input_ids=input_ids, **more)

    decoder = Decoder(ours, ends(tokenizer), Sampling(0.0, 1.0, 5), 4)
    monkeypatch.setattr(type(ours), "forward", counted)
    found = run(decoder.answers(given))
    size, whole = shared([row.ids for row in given]), sum(len(row.ids) for row in given)
    decoded = sum(len(one.tokens) + one.finished - 1 for one in found)
    assert sum(tokens) == size + whole - len(given) * size + decoded, "no padding, no token twice"
    tokens.clear()
    assert said(run(decoder.answers(given))) == said(found) and sum(tokens) == whole - len(given) * size + decoded


@pytest.mark.parametrize(
    "kind", ["qwen2", "qwen3", "gemma", "phi3", "olmo2", "mixtral", "gpt_neox", "cohere", "deepseek_v3"]
)
def test_other_architectures_answer_as_alone(kind: str) -> None:
    """Biases, norms of queries and keys, other scales, fused projections, experts, values of another size than keys."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}  # fmt: skip
    more = {"mixtral": {"num_local_experts": 4, "sliding_window": None}, "phi3": {"sliding_window": None},
            "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
                                "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
                                "moe_intermediate_size": 16}}  # fmt: skip
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **more.get(kind, {})})).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2.5)
    given = [Row([5, 6, 7, 8, 9 + k, *range(20, 21 + k)], k) for k in range(6)]
    sampling = Sampling(1.0, 1.0, 12)
    alone = [by_hand(made, row, [2], sampling) for row in given]
    assert unable(made) == ""
    assert (
        said(run(Decoder(made, [2], sampling, 3).answers(given))) == alone and len({str(one) for one, _ in alone}) == 6
    )


def test_what_cannot_share_passes_is_known_and_answered_by_generate() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(1)
    sliding = AutoConfig.for_model("mistral", **shape, num_key_value_heads=2, sliding_window=8)
    stretched = AutoConfig.for_model(
        "llama", **shape, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    state = AutoConfig.for_model(
        "mamba", vocab_size=400, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=2, pad_token_id=0
    )
    wanted = {"plain attention": sliding, "longest row": stretched, "exchanged|plain": state}
    for reason, config in wanted.items():
        made = AutoModelForCausalLM.from_config(config).eval()
        before = made.config._attn_implementation
        assert re.search(reason, unable(made)) and made.config._attn_implementation == before, "it is left as it was"
        given, sampling = [Row([5, 6, 7, 8 + k, *range(20, 30 + k)], k) for k in range(5)], Sampling(1.0, 0.95, 9)
        alone = [by_hand(made, row, [2], sampling) for row in given]
        if config is not state:  # padding is no business of a state-space model of transformers
            assert said(run(plainly(made, [2], sampling, 2, 0, given))) == alone


def test_attention_of_another_kind_is_refused_not_guessed(ours: Any) -> None:
    import torch

    with pytest.raises(ValueError, match="softcap"):
        attend(ours, *[torch.zeros(1, 1, 1, 1)] * 3, None, rows=None, softcap=30.0)


def test_choose_follows_the_probabilities_and_the_limit() -> None:
    import torch

    shares = torch.tensor([0.1, 0.5, 0.0, 0.3, 0.1])
    logits = shares.log()[None].expand(4000, 5)
    numbers = [chance(7, k) for k in range(4000)]
    drawn = Counter(choose(logits, Sampling(1.0, 1.0, 1), numbers))
    for token, share in enumerate(shares.tolist()):
        assert abs(drawn[token] / 4000 - share) < 4 * math.sqrt(max(share, 1e-9) / 4000)
    cut = Counter(choose(logits, Sampling(1.0, 0.75, 1), numbers))
    assert set(cut) == {1, 3} and abs(cut[1] / 4000 - 5 / 8) < 0.04
    assert set(choose(logits[:50], Sampling(1.0, 0.01, 1), numbers[:50])) == {1}, "the likeliest token always stays"
    assert choose(logits[:2], Sampling(0.0, 1.0, 1), [0.99, 0.01]) == [1, 1]
    cold = Counter(choose(logits, Sampling(0.25, 1.0, 1), numbers))
    assert cold[1] / 4000 == pytest.approx(0.5**4 / (0.5**4 + 0.3**4 + 2 * 0.1**4), abs=0.03)


def test_a_wide_top_p_is_found_among_all_tokens() -> None:
    import torch

    flat = torch.zeros(1, 3000)
    drawn = {choose(flat, Sampling(1.0, 0.5, 1), [k / 500])[0] for k in range(500)}
    assert len(drawn) == 500 and max(drawn) <= 1500, "stable order: the first half stays"


def test_chances_are_even_and_do_not_repeat() -> None:
    numbers = [chance(seed, place) for seed in range(50) for place in range(40)]
    assert len(set(numbers)) == 2000 and min(numbers) >= 0 and max(numbers) < 1
    assert abs(sum(numbers) / 2000 - 0.5) < 0.02
    assert chance(5, 2) == 0.02601027621578167, "the same in every process and version"


def test_nan_is_an_error_not_an_answer() -> None:
    import torch

    with pytest.raises(TeacherError, match="NaN"):
        choose(torch.tensor([[0.0, float("nan")]]), Sampling(0.0, 1.0, 1), [0.5])


def test_units_put_likes_together_and_lose_nobody() -> None:
    en, zh = list(range(40)), list(range(100, 140))
    prompts = [(en if k % 2 else zh) + [k] * (k % 9) for k in range(50)] + [[k] * 50 for k in range(200, 206)] + [[1]]
    found = list(units(prompts, 8))
    assert sorted(place for unit in found for place in unit) == list(range(len(prompts)))
    kinds = [{prompts[place][0] for place in unit} for unit in found]
    assert kinds.count({0}) == 4 and kinds.count({100}) == 4 and all(len(unit) <= 8 for unit in found)
    assert all(shared([prompts[place] for place in unit]) >= ALIKE for unit in found[:8])
    for unit in found:
        lengths = [len(prompts[place]) for place in unit]
        assert lengths == sorted(lengths, reverse=True)


# --- the client ------------------------------------------------------------------------------------------------------


def teacher(folder: Path, **values: Any) -> LocalTeacher:
    base = {"kind": "local", "name": "l", "model": str(folder), "max_tokens": 12, "temperature": 1.0, "batch_size": 2}
    return LocalTeacher.model_validate({**base, **values})


def requests(client: Any, count: int, *, more: Sequence[str] = ()) -> list[Request]:
    make, found = Requests(client, 0).make, []
    for k in range(count):
        lang = ("en", "zh")[k % 2]
        turns = [{"role": "system", "content": SYSTEM[lang]}, {"role": "user", "content": f"{k} {WORDS[: 5 + k % 11]}"}]
        found.append(make(turns, prompt=str(k)))
    return found + [make([{"role": "user", "content": one}], prompt=one) for one in more]


class Killed(BaseException):
    """In place of SIGKILL: nothing may catch it."""


def answered(
    client: Any, wanted: Sequence[Request], kept: dict[str, Outcome], *, kill_after: int | None = None, stop: Any = None
) -> list[str]:
    """What ``asking`` does: windows in order, what is kept is not missing. Returns the keys that were reported."""
    reported: list[str] = []

    def report(request: Request, outcome: Outcome) -> None:
        if kill_after is not None and len(reported) == kill_after:
            raise Killed
        assert request.key not in kept, "asked twice"
        kept[request.key] = outcome
        reported.append(request.key)

    async def windows() -> None:
        event = asyncio.Event() if stop is None else stop
        for start in range(0, len(wanted), client.window):
            some = wanted[start : start + client.window]
            await client.answer(some, frozenset(one.key for one in some if one.key not in kept), report, event)

    asyncio.run(windows())
    return reported


def texts(kept: dict[str, Outcome]) -> dict[str, tuple[Any, ...]]:
    """What is deterministic of outcomes: all but the time."""
    return {
        key: (o.reply.text, o.reply.finish_reason, o.reply.tokens_in, o.reply.tokens_out, o.reply.model)
        if o.reply
        else (o.reason,)
        for key, o in kept.items()
    }


def test_a_killed_run_gives_the_answers_of_an_uninterrupted_one(folder: Path) -> None:
    """Across borders of units and windows, with follow-up requests, killed after every third answer."""
    config = teacher(folder)
    whole: dict[str, Outcome] = {}
    client = LocalClient(config)
    assert client.window == 32
    wanted = requests(client, 41)
    again = requests(client, 9, more=["mend it", "改一下"])[-5:]
    answered(client, wanted, whole)
    answered(client, again, whole)
    replies = [outcome.reply for outcome in whole.values() if outcome.reply]
    assert len(replies) == len({one.key for one in [*wanted, *again]}) and len({reply.text for reply in replies}) > 30
    kept: dict[str, Outcome] = {}
    kills = 0
    for _ in range(60):
        client = LocalClient(config)
        try:
            answered(client, wanted, kept, kill_after=3)
            answered(client, again, kept, kill_after=3)
            break
        except Killed:
            kills += 1
    assert kills > 10 and texts(kept) == texts(whole)


def test_what_a_unit_computes_does_not_depend_on_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, computed = Decoder.answers, []  # type: Any, list[list[Row]]

    def seen(self: Decoder, given: Sequence[Row], **more: Any) -> Any:
        computed.append(list(given))
        return real(self, given, **more)

    monkeypatch.setattr(Decoder, "answers", seen)
    client = LocalClient(teacher(folder))
    wanted, kept = requests(client, 30), {}  # type: Any, dict[str, Outcome]
    answered(client, wanted, kept)
    whole, computed = computed, []
    assert [len(unit) for unit in whole] == [8, 7, 8, 7], "Chinese and English apart"
    for place in (3, 18):
        del kept[wanted[place].key]
    assert sorted(answered(LocalClient(teacher(folder)), wanted, kept)) == sorted(
        wanted[place].key for place in (3, 18)
    )
    assert len(computed) == 2 and all(unit in whole for unit in computed)


def test_answers_do_not_depend_on_neighbours_and_batch_size(folder: Path) -> None:
    many: dict[str, Outcome] = {}
    client = LocalClient(teacher(folder))
    wanted = requests(client, 24)
    answered(client, wanted, many)
    wide: dict[str, Outcome] = {}
    other = LocalClient(teacher(folder, batch_size=7))
    answered(other, requests(other, 24)[::-1], wide)
    assert sorted(texts(many).values()) == sorted(texts(wide).values())
    assert set(many) & set(wide) == set(), "yet it stands in the key, for rounding may differ"
    for one in wanted[:3]:
        alone: dict[str, Outcome] = {}
        answered(client, [one], alone)
        assert texts(alone)[one.key] == texts(many)[one.key]


def test_samples_and_seeds_draw_apart(folder: Path) -> None:
    client = LocalClient(teacher(folder, temperature=1.0))
    turns = [{"role": "user", "content": "hello"}]
    wanted = [Requests(client, s).make(turns, prompt="hello", sample=n) for s in (0, 1) for n in range(6)]
    kept: dict[str, Outcome] = {}
    answered(client, wanted, kept)
    assert len({texts(kept)[one.key][0] for one in wanted}) > 9
    greedy = LocalClient(teacher(folder, temperature=0))
    wanted = [Requests(greedy, s).make(turns, prompt="hello", sample=n) for s in (0, 1) for n in range(6)]
    kept = {}
    answered(greedy, wanted, kept)
    assert len({texts(kept)[one.key] for one in wanted}) == 1


def test_greedy_answers_are_those_of_generate(folder: Path, model: Any, tokenizer: Any) -> None:
    client = LocalClient(teacher(folder, temperature=0, max_tokens=20, batch_size=4))
    wanted = requests(client, 14)
    kept: dict[str, Outcome] = {}
    answered(client, wanted, kept)
    prompts = [encode_prompt(tokenizer, one.messages) for one in wanted]
    theirs = inference.generate(model, tokenizer, prompts, Sampling(0.0, 1.0, 20), seed=0, batch_size=1)
    for one, answer, ids in zip(wanted, theirs, prompts, strict=True):
        reply = kept[one.key].reply
        assert reply is not None and (reply.text, reply.tokens_out, reply.tokens_in) == (
            answer.text,
            answer.tokens,
            len(ids),
        )
        assert reply.finish_reason == ("stop" if answer.finished else "length") and reply.seconds > 0
        assert reply.model == client.identity()["model"]


def test_what_does_not_fit_fails_alone_with_its_reason(folder: Path) -> None:
    client = LocalClient(teacher(folder))
    kept: dict[str, Outcome] = {}
    wanted = requests(client, 5, more=["订" * LENGTH])
    answered(client, wanted, kept)
    outcomes = [kept[one.key] for one in wanted]
    assert all(outcome.reply for outcome in outcomes[:5]) and outcomes[5].reply is None
    assert outcomes[5].reason.startswith("context_overflow: ") and outcomes[5].reason.endswith(
        f"the model has {LENGTH}"
    )
    assert answered(client, wanted, kept := {one.key: kept[one.key] for one in wanted[:5]}) == [wanted[5].key]


def test_special_tokens_never_stand_in_the_text(folder: Path, tokenizer: Any) -> None:
    client = LocalClient(teacher(folder, temperature=3.0, max_tokens=60))
    kept: dict[str, Outcome] = {}
    answered(client, requests(client, 24), kept)
    found = [outcome.reply for outcome in kept.values() if outcome.reply]
    assert sum(reply.finish_reason == "stop" for reply in found) > 0, "a model this hot says specials"
    assert not [reply.text for reply in found for one in tokenizer.all_special_tokens if one in reply.text]


def test_nothing_is_loaded_when_nothing_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = LocalClient(teacher(folder))
    wanted = requests(client, 3)
    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    assert answered(client, wanted, {one.key: Outcome(Reply("x")) for one in wanted}) == []


def test_a_stop_is_seen_within_a_unit(folder: Path) -> None:
    client = LocalClient(teacher(folder, max_tokens=100, batch_size=4))
    wanted = requests(client, 40)
    kept: dict[str, Outcome] = {}
    event = asyncio.Event()

    async def until_the_first() -> None:
        def report(request: Request, outcome: Outcome) -> None:
            kept[request.key] = outcome
            event.set()

        await client.answer(wanted, frozenset(one.key for one in wanted), report, event)

    asyncio.run(until_the_first())
    assert 0 < len(kept) < 16, "what had ended is reported; the others are computed again"
    whole: dict[str, Outcome] = {}
    answered(client, wanted, whole)
    assert {key: texts(whole)[key] for key in kept} == texts(kept)


def test_a_model_of_another_kind_is_slower_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = LocalClient(teacher(folder))
    wanted = requests(client, 9)
    kept: dict[str, Outcome] = {}
    answered(client, wanted, kept)
    monkeypatch.setattr(decoding, "unable", lambda model: "it is strange")
    slower: dict[str, Outcome] = {}
    with caplog.at_level(logging.WARNING, "prefline.teacher"):
        answered(LocalClient(teacher(folder)), wanted, slower)
    assert (
        texts(slower) == texts(kept)
        and "teacher l answers by transformers' generate" in caplog.text
        and "it is strange" in caplog.text
    )


CHANGES: dict[str, Any] = {"temperature": 0.5, "top_p": 0.5, "max_tokens": 3, "dtype": "bfloat16", "batch_size": 5}
SAME: dict[str, Any] = {"name": "other", "share": 2.0, "license": "mit", "revision": "main"}


def test_every_field_is_in_the_key_or_changes_nothing(folder: Path, tmp_path: Path) -> None:
    def key(**values: Any) -> str:
        return requests(LocalClient(teacher(folder, **values)), 1)[0].key

    assert set(CHANGES) | set(SAME) | {"kind", "model"} == set(LocalTeacher.model_fields)
    for name, value in CHANGES.items():
        assert key(**{name: value}) != key(), name
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name, value in {**SAME, "model": str(copy)}.items():
        assert key(**{name: value}) == key(), name
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + "{# #}")
    assert key(model=str(copy)) != key()


def test_it_is_a_batching_client(folder: Path) -> None:
    client: Callable[..., Any] | Batching = LocalClient(teacher(folder))
    assert isinstance(client, Batching) and client.alone and not client.sends_schema()


class Cut(Exception):
    """The step ends here."""


def test_the_whole_step_killed_again_and_again_gives_the_same_artifact(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 16, units of 4, and every answer asked again (a tiny model writes no JSON), which makes windows of follow-ups."""
    from steps import generate
    from steps.lib.ledger import RequestLedger
    from steps.lib.step import Spec, build

    wide = tmp_path / "model"  # with room for a follow-up, and many tokens that end an answer
    shutil.copytree(folder, wide)
    for name, change in (
        ("config.json", {"max_position_embeddings": 1024}),
        ("generation_config.json", {"eos_token_id": [2, *range(290, 340)]}),
    ):
        (wide / name).write_text(json.dumps({**json.loads((wide / name).read_text()), **change}))
    rows = [{"id": f"p{k}", "lang": "en", "prompt": f"{k} {WORDS[: 3 + k % 9]}"} for k in range(37)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    system = {"en": SYSTEM["en"][:40], "zh": SYSTEM["zh"]}
    asked = {"system": system, "schema": {"type": "object", "required": ["reply"]}, "repairs": 1}
    (tmp_path / "asked.yaml").write_text(json.dumps(asked))
    values = {
        "prompts": [{"name": "p", "path": str(tmp_path / "prompts.jsonl")}],
        "prompt_file": str(tmp_path / "asked.yaml"),
        "teachers": [teacher(wide, batch_size=1, max_tokens=12).model_dump()],
        "drop_flags": [],
        "max_failed_share": 0.5,
    }
    spec = Spec(generate, generate.GenerateConfig.model_validate(values), {}, 0)
    whole = build(spec, tmp_path / "whole" / "1")
    real, written, limit = RequestLedger.put, 0, 9

    def put(self: RequestLedger, *given: Any, **more: Any) -> None:
        nonlocal written
        if written == limit:
            raise Cut
        real(self, *given, **more)
        written += 1

    monkeypatch.setattr(RequestLedger, "put", put)
    kills, answered_in_all = 0, 0
    while True:
        try:
            again = build(spec, tmp_path / "cut" / "2")
            break
        except Cut:
            kills, answered_in_all, written = kills + 1, answered_in_all + written, 0
    metrics = whole.manifest["metrics"]
    assert metrics["l/answered"] > 40, "there were follow-ups"
    assert again.digest == whole.digest and kills == (metrics["l/answered"] - 1) // limit and kills > 3
    assert answered_in_all + written == metrics["l/answered"], "no answer was taken twice"
