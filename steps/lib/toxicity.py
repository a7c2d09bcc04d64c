"""Toxic text: short lists of words nobody says by chance, and a classifier of your own. Both are off until they are configured.

A list flags; it does not understand. A novel, a court report and a reader's complaint hold such words too, which is why the
threshold is a number of hits on 1,000 characters and its default is none. Words that have another use are left out (chink,
spic, coon; 贱, 支那, 草泥马), and so are words of medicine.

Source: the categories are those of LDNOOBW (Shutterstock's "List of Dirty, Naughty, Obscene, and Otherwise Bad Words", which C4
uses whole and thereby loses much that is harmless: Dodge et al., arXiv 2104.08758, section 5.3); the choice is ours.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from pydantic import Field

from steps.lib.codepoints import stacked
from steps.lib.config import Section
from steps.lib.errors import ConfigError, ModelError

WINDOW = 512
"""Tokens that a classifier sees at a time, at most."""
BATCH = 16
"""Windows in a batch; always so many, filled up, so that a score does not hang on which texts stand beside it."""


class ToxicityModel(Section):
    """A classifier that gives a text a score (transformers, AutoModelForSequenceClassification)."""

    path: str
    """Folder or hub id of the checkpoint."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    label: str = "toxic"
    """Name of the class that is looked for, as the checkpoint's config.json has it (id2label)."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """Probability of that class from which a row is dropped."""


class Toxicity(Section):
    """What becomes of toxic text."""

    words: float | None = Field(default=None, ge=0)
    """Toxic words on 1,000 characters of a document, or of a conversation, at most; 0 allows none, null does not look."""
    model: ToxicityModel | None = None
    """A classifier that is asked too; null asks none."""


def toxic_words(text: str) -> list[str]:
    """The kinds of all toxic words in a text: slur, sexual, insult, threat. The same for zh and en.

    Full-width letters, case, a few figures and signs in place of letters (a$$h0le), and one sign between letters (傻*逼) do not
    hide a word. The word itself is not given back: it has no place in a report.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", stacked().sub("", text))
    return [str(found.lastgroup) for found in _words().finditer(text.lower())]


def toxic_density(text: str) -> float:
    """Toxic words on 1,000 characters."""
    return 1000 * len(toxic_words(text)) / len(text) if text else 0.0


class Classifier:
    """Scores of a checkpoint. A text longer than a window is read in windows, and its score is the highest of theirs.

    Raises:
        ModelError: there is no such checkpoint, or it is none.
        ConfigError: it has no such label.
    """

    def __init__(self, config: ToxicityModel) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from steps.lib.model_files import resolve
        from steps.lib.models import device

        folder = resolve(config.path, config.revision)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except Exception as error:  # files that are none raise anything, also from Rust
            raise ModelError(
                f"clean.toxicity.model.path is wrong: got {config.path}, because {type(error).__name__} {error!s:.200}; "
                "give the folder or hub id of a text classifier"
            ) from None
        labels = {str(name).casefold(): int(number) for number, name in model.config.id2label.items()}
        if config.label.casefold() not in labels:
            raise ConfigError(
                f"clean.toxicity.model.label is wrong: got {config.label!r}, because the classes of {config.path} are "
                f"{', '.join(model.config.id2label.values())}; take one of them"
            )
        self._label = labels[config.label.casefold()]
        self._apart = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
        self._model = model.to(device()).eval()
        longest = getattr(model.config, "max_position_embeddings", None) or WINDOW
        self._window: int = min(WINDOW, longest - 2, self._tokenizer.model_max_length)
        marks = self._tokenizer("", add_special_tokens=True)["input_ids"]
        ends = [[token] for token in marks] if len(marks) == 2 else [marks, []]
        self._head, self._tail = ends

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Probability of the label for each text; it is the same whatever stands beside the text."""
        room = self._window - len(self._head) - len(self._tail)
        windows: list[tuple[int, list[int]]] = []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        for number, ids in enumerate(encoded):
            for start in range(0, max(1, len(ids)), room):
                windows.append((number, [*self._head, *ids[start : start + room], *self._tail]))
        scores = [0.0] * len(texts)
        for length in sorted({self._padded(ids) for _, ids in windows}):
            own = [window for window in windows if self._padded(window[1]) == length]
            for start in range(0, len(own), BATCH):
                part = own[start : start + BATCH]
                for (number, _), score in zip(part, self._score([ids for _, ids in part], length), strict=False):
                    scores[number] = max(scores[number], score)
        return scores

    def _padded(self, ids: list[int]) -> int:
        """Length to which a window is filled up: a power of two, so that all runs see the same shapes."""
        length: int = max(16, 1 << (len(ids) - 1).bit_length())
        return min(self._window, length)

    def _score(self, windows: list[list[int]], length: int) -> list[float]:
        """Scores of one batch, filled up to ``BATCH`` windows of ``length`` tokens."""
        import torch

        pad = self._tokenizer.pad_token_id or 0
        rows = windows + [windows[0]] * (BATCH - len(windows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])  # (B, T)
        with torch.inference_mode():
            place = next(self._model.parameters()).device
            logits = self._model(input_ids=ids.to(place), attention_mask=mask.to(place)).logits  # (B, C)
            share = torch.sigmoid(logits) if self._apart else torch.softmax(logits, dim=-1)
        return [float(score) for score in share[: len(windows), self._label]]


@functools.lru_cache(maxsize=1)
def classifier(config: ToxicityModel) -> Classifier:
    """The classifier of this process, loaded when it is first asked."""
    return Classifier(config)


def toxicity_identity(config: ToxicityModel) -> str:
    """What the configured checkpoint is, for keys: digest of its files, or the commit of a hub id.

    Raises:
        ModelError: there is none.
    """
    from steps.lib.model_files import hub_identity

    return hub_identity(config.path, config.revision)


def _english(words: str) -> str:
    """Words with their usual disguises, as a whole word, with a plural."""
    disguised = {
        "a": "[a@4]",
        "e": "[e3]",
        "i": "[i1!]",
        "o": "[o0]",
        "s": "[s$5]",
        "u": "[uv*]",
        "c": "[ck*]",
        "t": "[t7]",
    }
    spelled = ("[*._-]?".join(disguised.get(letter, letter) for letter in word) for word in words.split())
    return rf"(?<![a-z0-9])(?:{'|'.join(spelled)})(?:e?[s$])?(?![a-z0-9])"


def _chinese(words: str) -> str:
    """Words with one sign or blank allowed between their characters."""
    return "|".join("[\\s*._·-]?".join(word) for word in words.split())


_SLURS = (
    _english("nigger nigga faggot kike wetback raghead towelhead sandnigger shemale"),
    _chinese("黑鬼 支那猪 死基佬 死娘炮 贱种 蛮夷猪 棒子狗"),
)
_SEXUAL = (
    _english("blowjob handjob cumshot gangbang deepthroat cocksucker fuckhole titfuck bukkake"),
    r"\b(?:child|kiddie) porn\b",
    _chinese("肏 骚逼 骚货 鸡巴 轮奸 口爆 内射 裸聊 约炮 淫水 幼女视频"),
)
_INSULTS = (
    _english("motherfucker motherfucking cunt asshole fuckface dumbfuck shithead dickhead"),
    r"\bfuck (?:you|off)\b",
    _chinese("傻逼 傻屄 傻比 煞笔 操你妈 操你大爷 草你妈 你妈逼 妈了个逼 妈逼 日你妈 狗杂种 婊子 臭婊 狗娘养的 滚犊子"),
    r"傻b(?![a-z])|(?<![a-z])(?:cnm|nmsl|wcnm)(?![a-z])",
)
_THREATS = (
    r"\b(?:i will|i['’]?ll|i am going to|i['’]?m going to|we will|we['’]?ll) "
    r"(?:kill|murder|rape|behead|slaughter) (?:you|your|them all)\b",
    r"\b(?:go )?kill yourself\b|\bkys\b|\bi hope you die\b",
    _chinese("弄死你 砍死你 杀你全家 杀了你全家 强奸你 打死你全家 去死吧 不得好死 全家死光 死全家"),
)
_KINDS = {"slur": _SLURS, "sexual": _SEXUAL, "insult": _INSULTS, "threat": _THREATS}


@functools.cache
def _words() -> re.Pattern[str]:
    """Searched in lower case."""
    return re.compile("|".join(f"(?P<{kind}>{'|'.join(words)})" for kind, words in _KINDS.items()))
