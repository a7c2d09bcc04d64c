"""The tiny model: a byte-level BPE tokenizer and a small Llama, built in code, without a download.

It is a real model of the ordinary classes: saved as a checkpoint folder, it goes through the same code as an 8B one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from steps.lib.config import Section

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with generation marks, without the line feed between turns."""


class TinyConfig(Section):
    """Shape of the tiny Llama."""

    vocab_size: int = 3000
    """Tokens in the vocabulary, specials and 256 bytes included."""
    hidden_size: int = 192
    """Channels of the residual stream."""
    intermediate_size: int = 512
    """Channels of the feed-forward layer."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 6
    """Attention heads, keys and values included (no grouping)."""
    max_length: int = 512
    """Tokens of the longest sequence."""


def build_tokenizer(texts: Iterable[str], config: TinyConfig) -> Any:
    """Train a byte-level BPE tokenizer; digits stand alone, so that numbers are copied digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=config.max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: Any, config: TinyConfig) -> Any:
    """A Llama with random weights (seed torch before), tied embeddings, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=True,
            initializer_range=config.hidden_size
            ** -0.5,  # logits of unit scale from the start; 0.02 took twice the updates
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
