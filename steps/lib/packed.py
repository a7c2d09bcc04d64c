"""Training on packed rows: an update's sequences are spread over as few full rows as hold them, whatever their lengths.

What an update is made of stays as configured (batch_size x accumulation sequences); how they are spread over forward passes is a
matter of memory alone. The loss is the mean over all tokens with loss of the update, over passes and processes, so packed and
unpacked, one pass and many, one process and several give the same gradient (up to rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from steps.lib import adalora, adapters, attention, footprint, head, kernels, methods, packing, runtime, spans, training
from steps.lib.packing import Packable
from steps.lib.trained import Whole

if TYPE_CHECKING:
    from pathlib import Path

    from steps.lib.preflight import Findings
    from steps.lib.step import Context, Metrics

Row = dict[str, list[int]]
"""A row of the data set: ``input_ids`` and ``labels`` of its sequences one after another, and their ``lengths``."""


def prepared(model: Any, *, compiled: bool = False) -> Any:
    """A model for training: with quick layers (on a CPU, or compiled), and with scores of chosen tokens alone."""
    kernels.speed_up(model)
    if compiled:
        kernels.compile_layers(model)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    head.give_scores(inner)
    if any(one.peft_type == "ADAPTION_PROMPT" for one in getattr(model, "peft_config", {}).values()):
        model.base_model.forward = inner.forward  # PEFT's wrapper holds the forward that the model had
    return model


def row(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Row:
    """A row of sequences (tokens, labels) that do not see each other; it counts as one in a batch."""
    return {
        "input_ids": [token for ids, _ in sequences for token in ids],
        "labels": [label for _, labels in sequences for label in labels],
        "lengths": [len(ids) for ids, _ in sequences],
    }


def blocks(documents: Sequence[Sequence[int]], length: int, separator: int) -> list[Row]:
    """Lay documents one after another into rows of ``length`` tokens; the last row may be shorter.

    Nothing is lost: a document goes on in the next row. Each piece starts with a separator, as text that is scored does, and behind
    a document's end there is one, so that the model learns where to stop.

    No piece sees another one, and each of its tokens but the first carries loss.
    """
    rows: list[list[list[int]]] = [[]]  # of pieces of token ids
    room = length
    for document in documents:
        rest = [*document, separator]
        while rest:
            if room < 2:
                rows.append([])
                room = length
            rows[-1].append([separator, *rest[: room - 1]])
            rest = rest[room - 1 :]
            room -= len(rows[-1][-1])
    return [row([(piece, piece) for piece in pieces]) for pieces in rows if pieces]


def trainer(model: Any, rows: Sequence[Row], tokenizer: Any, settings: training.TrainSettings, context: Context) -> Any:
    """A trainer for the rows, whose batches are whole updates."""
    from transformers import TrainingArguments

    made = trainer_class()(
        model=prepared(model, compiled=settings.compiled),
        args=training.arguments(TrainingArguments, settings, context, whole=True, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=Collator(
            model, pad=tokenizer.pad_token_id, tokens=settings.tokens_per_pass, share=runtime.share()
        ),
    )
    adalora.follow(made)
    return made


def begun(
    method: methods.MergingMethods,
    settings: training.TrainSettings,
    folder: Path,
    rows: Sequence[Row],
    tokenizer: Any,
    found: Findings,
    context: Context,
    metrics: Metrics,
) -> Any:
    """A trainer for a base with what the method makes of it, when nothing is wrong before the first update.

    Args:
        method: with its settings.
        settings: of the training.
        folder: of the base.
        rows: that are trained on.
        found: what the rows showed; its other checks are done here.
        metrics: of the step; gets the figures of the checks.

    Raises:
        PreflineError: everything that the checks found.
    """
    found.loading(folder, settings.precision, bits=method.bits)
    attends = attention.chosen(settings.attention, folder, method=method.method, precision=settings.precision)
    count = training.updates(len(rows), settings)
    again = partial(adapters.start, method, folder, settings.precision, updates=count, attention=attends)
    model = again()
    most = footprint.packed_pass(settings, [len(row["input_ids"]) for row in rows])
    found.check(model, settings, most, context, metrics)
    made = trainer(model, rows, tokenizer, settings, context)
    made.again = again
    return made


def implementation(model: Any) -> str:
    """How the model attends: ``sdpa``, ``eager``, ``flex_attention``, ``flash_attention_2``, ..."""
    return str(model.config.get_text_config()._attn_implementation)


def takes_rows(model: Any) -> bool:
    """Whether sequences may share a row: not where virtual tokens stand before each row (prompt, prefix).

    The tokens of a LLaMA-Adapter have no place in the row: each position looks at them, so rows can be shared.
    """
    return not any(one.is_prompt_learning for one in getattr(model, "peft_config", {}).values())


def mask_of(kind: str) -> Callable[[Any, Any], Any] | None:
    """What makes the attention mask of rows with branches (segments and branches, (R, W)); None where no mask can be given."""
    return {"sdpa": packing.visible, "eager": _added, "flex_attention": packing.visible_blocks}.get(kind)


def _added(segments: Any, branches: Any) -> Any:
    """A mask that is added to the scores."""
    import torch

    seen = packing.visible(segments, branches)
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


class Layout:
    """How a model's packed rows are laid out: in one row where what is masked costs nothing, else in rows with few places."""

    def __init__(self, model: Any, *, pad: int) -> None:
        """Look at how the model attends.

        Args:
            model: itself, not wrapped for several processes.
            pad: token of unused places.
        """
        self._pad = pad
        self._one_row = implementation(model).startswith(("flash", "flex"))
        self._spans = spans.longest(model) if spans.takes_spans(model) else 0

    def rows(self, sequences: Sequence[Packable], chosen: Sequence[int], most: int) -> packing.Pass:
        """One pass of the chosen sequences; ``most`` places of a row where there are several."""
        lengths = [len(sequences[i]) for i in chosen]
        by_spans = max(lengths) <= self._spans
        width = sum(lengths) if self._one_row or by_spans else packing.best_width(lengths, most)
        return packing.pack(sequences, chosen, width=width, pad=self._pad, spans=by_spans)


class Collator:
    """The sequences of an update, as passes. It picks nothing at random: the passes depend on the sequences alone."""

    def __init__(self, model: Any, *, pad: int, tokens: int, share: tuple[int, int] = (0, 1)) -> None:
        """Make the passes for a model.

        Args:
            model: tells how it attends.
            pad: token of unused places.
            tokens: places of one forward pass, at most.
            share: this process's number, and of how many: it takes every so manieth pass.
        """
        self._pad, self._tokens, self._share = pad, tokens, share
        self._packs = takes_rows(model)
        self._layout = Layout(model, pad=pad)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """This process's passes of all that the rows make, how many of them count, and the tokens of the rows (of process 0)."""
        number, processes = self._share
        sequences = [one for row in rows for one in pieces(row) if one.predicted]
        lengths = [len(one) for one in sequences]
        if not self._packs:
            passes = [packing.pad_rows(sequences, one, pad=self._pad) for one in packing.groups(lengths, self._tokens)]
        else:
            held = packing.split(lengths, self._tokens, processes)
            passes = [self._layout.rows(sequences, one, self._tokens) for one in held]
        own = passes[number::processes]  # none where the update has fewer: then one is run along, and counts nothing
        tokens = sum(len(row["input_ids"]) for row in rows) if number == 0 else 0
        return {"passes": own or passes[:1], "own": len(own), "tokens": tokens}


def pieces(row: Row) -> list[Packable]:
    """The sequences of a row."""
    ids, labels = row["input_ids"], row["labels"]
    found, at = [], 0
    for length in row["lengths"]:
        found.append(packing.stem(ids[at : at + length], labels[at : at + length]))
        at += length
    return found


@cache
def trainer_class() -> Any:
    """``transformers.Trainer`` for the passes of ``Collator``. A class of its own, since transformers is loaded late."""
    import torch
    from transformers import Trainer

    class PackedTrainer(Whole, Trainer):  # type: ignore[misc]
        """One batch is one update: each process gets all of its sequences, takes its share of the passes, and sums them here."""

        undivided = True
        _total_train_tokens = 0
        """Tokens so far, of all processes."""

        def get_train_dataloader(self) -> Any:
            """Accelerate would cut an update's rows by processes, and fill an epoch's last update with rows that were there."""
            divided = self.accelerator.prepare_data_loader
            self.accelerator.prepare_data_loader = partial(_undivided, self.accelerator)
            try:
                return super().get_train_dataloader()
            finally:
                self.accelerator.prepare_data_loader = divided

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """Forward and backward of every pass; the mean loss, which is also what the Trainer logs."""
            model.train()
            inputs = self._prepare_inputs(inputs)
            passes, count = inputs["passes"], inputs["own"]
            own = sum(len(one["targets"]) for one in passes[:count])
            counts = torch.tensor([own, inputs["tokens"], count], device=self.args.device)
            world = self.args.world_size
            every = self.accelerator.gather(counts[None]) if world > 1 else counts[None]  # (processes, 3)
            total, most = int(every[:, 0].sum()), int(every[:, 2].max())
            self._total_train_tokens += int(every[:, 1].sum())
            sums = torch.zeros(3, dtype=torch.float64)  # nats, hits, entropy
            extra = adalora.penalty(self.model)
            for number in range(most):  # every process takes part in the last one's exchange of gradients
                one = passes[min(number, len(passes) - 1)]
                with _alone(self.accelerator, model, number < most - 1):
                    with self.compute_loss_context_manager():
                        found = scores_of(model, one)
                        share = float(number < count) * world / max(1, total)
                        loss = -found["logps"].sum() * share
                    if extra is not None and number == most - 1:  # once an update, the same in every process
                        loss = loss + extra
                    self.accelerator.backward(loss)
                if number < count:
                    parts = (-found["logps"].detach().sum(), found["hits"].sum(), found["entropy"].sum())
                    sums += torch.tensor([float(part) for part in parts], dtype=torch.float64)
            if world > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device, torch.float32)).cpu()
            mean = (sums / max(1, total)).tolist()
            self._measured = {
                "mean_token_accuracy": mean[1],
                "entropy": mean[2],
                "num_tokens": float(self._total_train_tokens),
                **({} if extra is None else {"orthogonality": float(extra.detach())}),
            }
            return torch.tensor(mean[0], device=self.args.device)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs = {**logs, **self._measured}
            super().log(logs, start_time)

    return PackedTrainer


def _undivided(accelerator: Any, loader: Any, *_: Any, **__: Any) -> Any:
    """A loader as accelerate prepares it for one process, in every process: the same batches in the same order."""
    from accelerate.data_loader import prepare_data_loader

    made = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        rng_types=None if accelerator.rng_types is None else accelerator.rng_types.copy(),
        even_batches=accelerator.even_batches,
        use_seedable_sampler=accelerator.use_seedable_sampler,
        data_seed=accelerator.dataloader_config.data_seed,
        non_blocking=accelerator.non_blocking,
    )
    accelerator._dataloaders.append(made)
    return made


def scores_of(model: Any, one: dict[str, Any], mask: Any = None) -> Any:
    """Scores of the predicted tokens of a pass; without spans and mask, positions (or the padding) say where a sequence begins."""
    given = {name: one[name] for name in ("input_ids", "position_ids", "predictors", "targets")}
    seen = one.get("attention_mask") if mask is None else mask
    if "spans" in one:
        given["spans"], seen = one["spans"], spans.no_mask(one["input_ids"].device)
    return model(**given, attention_mask=seen, width=one["input_ids"].shape[1], use_cache=False)


def _alone(accelerator: Any, model: Any, wanted: bool) -> Any:
    """Without exchange of gradients between processes, where the next pass follows at once."""
    from contextlib import nullcontext

    return accelerator.no_sync(model) if wanted and accelerator.num_processes > 1 else nullcontext()
