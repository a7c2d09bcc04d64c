"""Training on the policy's own answers: TRL's RLOO and GRPO trainers, with our tokens, our reference, and draws that repeat.

* The reference is the policy with the weights that it had when it was loaded (``Start``). TRL 1.16 adds a second adapter and copies
  weights by the name ``.default.``: IA3's have another name, so that their reference is the bare base; AdaLoRA takes no second
  adapter; pissa would change the base once more; and whole weights are read again from wherever the model's name points.
* Each update draws its answers afresh, with a seed made of the run's seed and the update, and uses them once. So every update is a
  border at which a run can be stopped and go on as if it had not been.
* Prompts come in an order laid out beforehand. TRL's sampler would begin its order anew in a resumed run, and leaves out prompts
  that do not fill a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from steps.lib import adalora, chat, inference, training
from steps.lib.errors import TrainingError
from steps.lib.trained import Whole

Algorithm = Literal["rloo", "grpo"]
Reward = Callable[..., list[float]]
"""What TRL calls with ``prompts``, ``completions`` and ``completion_ids``; its name stands in the history."""
FIRST_DRIFT = 1e-4


class Start:
    """The weights that a model had, to be put in place for a moment. It copies those that are trained, and no others."""

    def __init__(self, model: Any) -> None:
        """Copy them."""
        self._pairs = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the weights with those of the start, and back. No gradient may be under way."""
        held = [p.data for p, _ in self._pairs]
        try:
            for p, first in self._pairs:
                p.data = first
            yield
        finally:
            for (p, _), now in zip(self._pairs, held, strict=True):
                p.data = now


def order(count: int, wanted: int, seed: int) -> list[int]:
    """So many places of ``count`` prompts: each once before any comes again, in another order each time."""
    found: list[int] = []
    while len(found) < wanted:
        places = list(range(count))
        random.Random(inference.seed_of(seed, "prompts", len(found))).shuffle(places)
        found += places
    return found[:wanted]


def check_first_drift(drift: float) -> None:
    """Check that policy and reference are the same model before the first update.

    Args:
        drift: mean of |log p - log p_ref| over the tokens of the first answers, in nats; the KL is smaller.

    Raises:
        TrainingError: it is not 0 within 1e-4.
    """
    if not drift <= FIRST_DRIFT:  # a NaN is off, too
        raise TrainingError(
            f"KL of the first rl update is not 0: got a policy {drift:.4g} nats a token away from its reference, because they are "
            "not the same model (the base without its adapter, another adapter, or dropout in one of them), so the pull would be "
            "towards a model that sft never made; train from the sft artifact, and report this as a defect of prefline if you did"
        )


def trainer(
    algorithm: Algorithm,
    model: Any,
    prompts: Sequence[list[dict[str, str]]],
    rewards: Sequence[tuple[Reward, float]],
    tokenizer: Any,
    arguments: Callable[..., Any],
    *,
    beta: float,
    max_kl: float | None,
    seed: int,
    generations: int,
    temperature: float,
    max_tokens: int,
) -> Any:
    """A trainer for the prompts, in their order.

    Args:
        algorithm: whose advantages and loss.
        model: the policy, ready to be trained.
        prompts: a conversation for each group of answers.
        rewards: functions, and their weights in the sum.
        arguments: makes the Trainer's arguments from TRL's class and more keywords.
        beta: of the pull towards the reference.
        max_kl: KL (nats a token) above which training ends; None: no limit.
        seed: of the draws.
        generations: answers of a group.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kind, settings = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}[algorithm]
    with _no_copy(model):
        made = _online(kind)(
            model=model,
            reward_funcs=[function for function, _ in rewards],
            args=arguments(
                settings,
                beta=0.0,  # so that TRL makes no reference
                reward_weights=[weight for _, weight in rewards],
                num_generations=generations,
                temperature=temperature,
                max_completion_length=max_tokens,
                disable_dropout=True,
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
        )
    made.beta, made.draws = beta, seed
    if beta:
        made.start = Start(made.model)
        made.ref_model = made.start
    adalora.follow(made)
    made.add_callback(_limit(made, max_kl))
    return made


@contextmanager
def _no_copy(model: Any) -> Iterator[None]:
    """Keep TRL from adding a second adapter; what it copies into one goes nowhere."""
    if not hasattr(model, "peft_config"):
        yield
        return
    real = model.get_parameter
    model.add_adapter = lambda name, settings: None
    model.get_parameter = lambda name: real(name.replace(".ref.", ".default.")).detach().clone()
    try:
        yield
    finally:
        del model.add_adapter, model.get_parameter


def _online(kind: Any) -> Any:
    import torch

    class OnlineTrainer(Whole, kind):  # type: ignore[misc]
        """The policy answers, is rewarded, and learns from it; each answer once."""

        start: Any = None
        draws = 0
        drift: float | None = None
        """Of the first update; None until it is known, and in a resumed run."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            torch.manual_seed(
                inference.seed_of(self.draws, "answers", self.state.global_step, self.accelerator.process_index)
            )
            return super()._generate_and_score_completions(inputs)

        def _tokenize_prompts(self, prompts: list[Any]) -> Any:
            return [chat.encode_prompt(self.processing_class, prompt) for prompt in prompts], None, {}

        def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **named: Any) -> Any:
            ask = super()._get_per_token_logps_and_entropies
            if self.start is None or model is not self.start:
                return ask(model, *args, **named)
            with self.start.in_place():
                found = ask(self.model, *args, **named)
            if self.state.global_step == 0 and self.drift is None:
                mask = args[1][:, -found[0].shape[1] :]  # (B, C): of the attention to answers
                away = ((ask(self.model, *args, **named)[0] - found[0]).abs() * mask).sum() / mask.sum()
                self.drift = float(away)
                check_first_drift(self.drift)
            return found

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            extra = adalora.penalty(self.model)
            if extra is None:
                return loss
            return loss + extra / (self.current_gradient_accumulation_steps if self.loss_is_scaled_for_ga else 1)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            self._metrics["train"].pop("step_time", None)  # the clock's: a resumed run would have another history
            super().log(logs, start_time)

    return OnlineTrainer


def _limit(made: Any, most: float | None) -> Any:
    from transformers import TrainerCallback

    class Limit(TrainerCallback):  # type: ignore[misc]
        """Ends training behind the first update whose answers were further from the reference than ``most``."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step and self._beyond(state):
                raise training.NothingLeft

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self._beyond(state):
                control.should_training_stop = True

        def _beyond(self, state: Any) -> bool:
            entries = [entry for entry in state.log_history if "kl" in entry]
            return most is not None and bool(entries) and entries[-1]["kl"] > most

    return Limit()
