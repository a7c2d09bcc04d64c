"""Preference losses: which, with which weights, and what each of them needs.

Several at once are summed with their weights; sigmoid and sft is RPO (Pang et al. 2024, 2404.19733); sigmoid, bco_pair and sft is
MPO (Wang et al. 2024, 2411.10442). The formulas are those of TRL's DPOTrainer, which runs them.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from steps.lib.config import Section

Loss = Literal[
    "sigmoid",  # Rafailov et al. 2023, 2305.18290, equation 7
    "hinge",  # Zhao et al. 2023, 2305.10425 (SLiC)
    "ipo",  # Azar et al. 2023, 2310.12036, equation 17; divided by the answer's length
    "exo_pair",  # Ji et al. 2024, 2402.00856, equation 16
    "nca_pair",  # Chen et al. 2024, 2402.05369
    "robust",  # Chowdhury et al. 2024, 2403.00409: labels of which a share is wrong
    "bco_pair",  # Jung et al. 2024, 2404.04656
    "sppo_hard",  # Wu et al. 2024, 2405.00675, equation 4.7 with wins that are certain
    "aot",  # Melnyk et al. 2024, 2406.05882; sorts a batch, so it depends on batch_size
    "aot_unpaired",  # the same for answers that are no pairs
    "apo_zero",  # D'Oosterlinck et al. 2024, 2408.06266, equation 7: chosen answers better than the model's
    "apo_down",  # the same, equation 8: chosen answers worse than the model's
    "discopop",  # Lu et al. 2024, 2406.08414, equation 5
    "sft",  # negative log-likelihood of chosen answers
    "sigmoid_norm",  # sigmoid, rewards divided by the answer's length
]
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that read label_smoothing."""
DIVERGED = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses that read f_divergence."""


class PreferenceLoss(Section):
    """What is minimised."""

    type: list[Loss] = Field(["sigmoid"], min_length=1)
    """One loss, or several that are summed."""
    weights: list[float] | None = None
    """Weight of each loss; null: 1 for each."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round, for robust, exo_pair and aot."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Distance from the reference (Wang et al. 2023, 2309.16240)."""
    alpha: float = 0.5
    """Coefficient of alpha_divergence."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Weight of the tokens by which one answer is longer than the other (LD-DPO, Liu et al. 2024, 2409.06411); null: all count."""
    discopop_tau: float = Field(0.05, gt=0)
    """Temperature of discopop."""

    @model_validator(mode="after")
    def _each_loss_has_what_it_needs(self) -> Self:
        problems = []
        if len(set(self.type)) < len(self.type):
            problems.append(f"loss.type names a loss twice: got {self.type}; name each once, and give it a weight")
        if self.weights is not None and len(self.weights) != len(self.type):
            problems.append(
                f"loss.weights do not fit: got {len(self.weights)} for {len(self.type)} losses, because each loss has one; "
                f"give {len(self.type)}, or null"
            )
        smoothed = sorted(set(self.type) & set(SMOOTHED))
        if self.label_smoothing and not smoothed:
            problems.append(
                f"loss.label_smoothing is not read: got {self.label_smoothing} with {self.type}, because only "
                f"{', '.join(SMOOTHED)} smooth labels; set it to 0, or use robust"
            )
        for name in ("robust", "exo_pair"):
            if name in self.type and not self.label_smoothing:
                problems.append(
                    f"loss.label_smoothing is missing: got 0 with {name}, because without it {name} is "
                    f"{'sigmoid' if name == 'robust' else 'infinite'}; set it to the share of labels that are wrong, such as 0.1"
                )
        if self.f_divergence != "reverse_kl" and (blind := sorted(set(self.type) - set(DIVERGED))):
            problems.append(
                f"loss.f_divergence is not read: got {self.f_divergence} with {', '.join(blind)}, because these are defined with "
                "log ratios alone; leave it at reverse_kl, or drop them"
            )
        fields = type(self).model_fields
        if self.alpha != fields["alpha"].default and self.f_divergence != "alpha_divergence":
            problems.append(
                f"loss.alpha is not read: got {self.alpha} with {self.f_divergence}, because it belongs to alpha_divergence; "
                "remove it, or set f_divergence to alpha_divergence"
            )
        if self.discopop_tau != fields["discopop_tau"].default and "discopop" not in self.type:
            problems.append(
                f"loss.discopop_tau is not read: got {self.discopop_tau} with {self.type}, because it belongs to discopop; "
                "remove it"
            )
        if problems:
            raise ValueError("; and ".join(problems))
        return self

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for TRL's DPOConfig."""
        return {
            "loss_type": list(self.type),
            "loss_weights": list(self.weights) if self.weights else [1.0] * len(self.type),
            "label_smoothing": self.label_smoothing,
            "f_divergence_type": self.f_divergence,
            "f_alpha_divergence_coef": self.alpha,
            "ld_alpha": self.ld_alpha,
            "discopop_tau": self.discopop_tau,
        }
