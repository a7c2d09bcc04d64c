"""Tokens of what is sent, as a teacher counts them.

A teacher in this process has its tokenizer at hand, and an HTTP teacher can name one (``tokenizer``): then the whole
conversation is counted, chat template included. Without one there is a bound: a byte-level tokenizer (GPT, Llama 3, Qwen,
DeepSeek, SmolLM...) and one with byte fallback never make more tokens than a text has UTF-8 bytes. The bound is far above
the truth for a large vocabulary: about 4 times in English, 2 to 5 times in Chinese.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steps.lib.errors import ModelError

if TYPE_CHECKING:
    from steps.lib.teacher_config import Teacher

PER_TURN = 8
"""Tokens of the marks around a turn, on the high side; real templates have 3 to 6."""
ONCE = 48
"""Tokens that a template may add to a conversation: a system text of its own, the head of the answer. SmolLM2 adds 30."""
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
                   "chat_template.jinja", "chat_templates/*", "config.json")  # fmt: skip
"""Files that decide how a conversation becomes tokens. transformers looks into config.json for the kind of tokenizer."""

Turns = Sequence[dict[str, str]]


class Counter(Protocol):
    """Counts tokens."""

    @property
    def name(self) -> str:
        """Whose count it is, in words for people."""
        ...

    def __call__(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def turns(self, messages: Turns) -> int:
        """Tokens of a conversation that is to be answered, with all that the chat template adds."""
        ...


class Bound:
    """Counts without a tokenizer: never less than any byte-level tokenizer finds."""

    name = "no tokenizer: at most, one a UTF-8 byte"

    def __call__(self, text: str) -> int:
        """UTF-8 bytes of a text."""
        return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def turns(self, messages: Turns) -> int:
        """UTF-8 bytes of all turns, and room for what a template adds."""
        return ONCE + sum(PER_TURN + self(turn["content"]) for turn in messages)


class Tokenizer:
    """Counts with a tokenizer and its chat template; without a template, the marks of turns are estimated.

    Args:
        path_or_id: folder or hub id.
        revision: commit or tag of a hub id.
        apart: turns are tokenised one by one, as a teacher in this process does; a server tokenises the whole text.
    """

    def __init__(self, path_or_id: str, revision: str | None = None, *, apart: bool = False) -> None:
        self._tokenizer = _load(path_or_id, revision)
        self._apart = apart
        self._template = self._tokenizer.chat_template is not None
        self.name = f"tokenizer of {path_or_id}" + ("" if self._template else ", which has no chat template")

    def __call__(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def turns(self, messages: Turns) -> int:
        """Tokens of a conversation that is to be answered."""
        if not self._template:
            return ONCE + sum(PER_TURN + self(turn["content"]) for turn in messages)
        if self._apart:
            from steps.lib.chat import encode_prompt

            return len(encode_prompt(self._tokenizer, messages))
        return self(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


BOUND = Bound()


def counter(teacher: Teacher) -> Counter:
    """How the tokens of a teacher are counted: by its own tokenizer, by the one it names, or by the bound.

    Raises:
        ModelError: its tokenizer cannot be loaded.
    """
    if teacher.kind == "http":
        return Tokenizer(teacher.tokenizer) if teacher.tokenizer else BOUND
    return BOUND if teacher.kind == "scripted" else Tokenizer(teacher.model, teacher.revision, apart=True)


def whole(count: Callable[[str], int] | None, messages: Turns) -> int:
    """Tokens of a conversation, by a counter, by a function of a text, or without either by the bound."""
    of_turns: Callable[[Turns], int] | None = getattr(count or BOUND, "turns", None)
    if count is None or of_turns is not None:
        return (of_turns or BOUND.turns)(messages)
    return ONCE + sum(PER_TURN + count(turn["content"]) for turn in messages)


def tokenizer_identity(path_or_id: str) -> str:
    """What a ``tokenizer`` points to, for keys: digest of its files.

    Raises:
        ModelError: there is no such tokenizer.
    """
    from steps.lib.digests import digest_folder

    return digest_folder(tokenizer_folder(path_or_id), TOKENIZER_FILES)


def tokenizer_folder(path_or_id: str, revision: str | None = None) -> Path:
    """The folder of a tokenizer; weights need not lie in it, and are not fetched."""
    folder = Path(path_or_id)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(path_or_id, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
        except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise ModelError(
                f"tokenizer {path_or_id!r} could not be fetched: got {type(error).__name__}, because it is neither a "
                "local folder nor in the hub's cache, and the hub did not give it; give a folder with tokenizer.json, "
                "or check the id and the network"
            ) from None
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            f"tokenizer folder {folder} cannot be used: got no tokenizer.json, because it is not the folder of a "
            "tokenizer; give the folder of the model that the endpoint serves, or leave `tokenizer` out"
        )
    return folder


def _load(path_or_id: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    folder = tokenizer_folder(path_or_id, revision)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a file that is none raises anything, also from Rust
        raise ModelError(
            f"tokenizer folder {folder} cannot be read: got {type(error).__name__} {error!s:.200}, because "
            "its files are not those of a tokenizer that transformers knows; copy them again"
        ) from None
