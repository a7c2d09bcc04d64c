"""What a preference loss needs is asked for before anything is loaded, and what it is given reaches TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steps.lib.losses import PreferenceLoss


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": []}, "at least 1"),
        ({"type": ["sigmoid", "simpo"]}, "Input should be 'sigmoid'"),
        ({"type": ["sigmoid", "sigmoid"]}, "names a loss twice"),
        ({"type": ["sigmoid", "sft"], "weights": [1.0]}, "got 1 for 2 losses"),
        ({"type": ["robust"]}, "label_smoothing is missing: got 0 with robust"),
        ({"type": ["exo_pair"]}, "without it exo_pair is infinite"),
        ({"label_smoothing": 0.1}, "label_smoothing is not read: got 0.1"),
        ({"type": ["aot"], "f_divergence": "forward_kl"}, "f_divergence is not read: got forward_kl with aot"),
        ({"alpha": 0.7}, "alpha is not read: got 0.7 with reverse_kl"),
        ({"discopop_tau": 0.2}, "discopop_tau is not read"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PreferenceLoss.model_validate(given)


def test_all_problems_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        PreferenceLoss(type=["robust", "aot"], weights=[1.0], f_divergence="js_divergence")
    assert str(caught.value).count("; and ") == 2


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_every_field_reaches_trl(tmp_path: Path) -> None:
    from trl import DPOConfig

    loss = PreferenceLoss(
        type=["robust", "discopop", "sft"],
        weights=[0.5, 1.0, 0.2],
        label_smoothing=0.2,
        f_divergence="alpha_divergence",
        alpha=0.7,
        ld_alpha=0.3,
        discopop_tau=0.1,
    )
    assert set(loss.arguments()) == {
        "loss_type",
        "loss_weights",
        "label_smoothing",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "ld_alpha",
        "discopop_tau",
    } and len(type(loss).model_fields) == len(loss.arguments())
    made = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, **loss.arguments())
    assert made.loss_type == loss.type and made.loss_weights == loss.weights
    assert (made.label_smoothing, made.ld_alpha, made.discopop_tau) == (0.2, 0.3, 0.1)
    assert str(made.f_divergence_type).endswith("alpha_divergence") and made.f_alpha_divergence_coef == 0.7
