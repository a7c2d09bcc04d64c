"""A gate's verdict as a page shows it. Read by field names, so that a verdict may hold more than a page knows of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from steps.lib.stats import Interval

WORDS = {
    "promote": ("promoted", "晋升"),
    "reject": ("rejected", "拒绝"),
    "inconclusive": ("cannot tell", "无法判定"),
    "invalid": ("not comparable", "无效"),
}
"""Verdict -> what a person reads."""
MEANING = {
    "promote": (
        "The candidate is shown to be better, and nowhere worse than allowed. It is the champion now.",
        "候选模型已证明更好，且各项护栏均未越界；它现在是 champion。",
    ),
    "reject": (
        "The candidate is shown not to be better, or to be worse where that is not allowed. The champion stays.",
        "候选模型被证明没有变好，或在不允许的地方变差；champion 不变。",
    ),
    "inconclusive": (
        "The items cannot tell. The champion stays until a person decides or more items are scored.",
        "现有样本不足以判断；在人工决定或补充样本之前，champion 不变。",
    ),
    "invalid": (
        "The two cannot be compared, so nothing was decided. The champion stays.",
        "两者无法比较，因此没有作出决定；champion 不变。",
    ),
}
OUTCOMES = {"pass": ("passed", "通过"), "fail": ("failed", "未通过"), "open": ("open", "未定")}
ROLES = {
    "primary": ("must get better", "必须提升"),
    "guard": ("must not get worse", "不得变差"),
    "veto": ("veto", "否决"),
}


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


class CheckLine(_Lenient):
    """One check of the gate."""

    figure: str
    role: str = "guard"
    improvement: Interval | None = None
    """Paired change in the direction that is better."""
    threshold: float | None = None
    """The lower bound must be above it."""
    outcome: Literal["pass", "fail", "open"] = "open"
    reason: str = ""
    against: str = ""
    """Model it was compared with; empty: the verdict's own."""
    unit: str = ""
    """``%``, ``points``, or the figure's own."""
    needed_n: int | None = None
    """Items that would be needed to tell."""
    mde: float | None = None
    """Smallest difference that so many items would find, in the check's unit."""
    method: str = ""
    p: float | None = None
    """One-sided p-value."""

    @property
    def n(self) -> int:
        """Items."""
        return self.improvement.n if self.improvement else 0

    @property
    def clusters(self) -> int:
        """Independent groups of items."""
        return self.improvement.clusters if self.improvement else 0

    @property
    def how(self) -> str:
        """Name of the interval's method."""
        return self.method or (self.improvement.method if self.improvement else "")


class Decision(_Lenient):
    """The verdict."""

    verdict: Literal["promote", "reject", "inconclusive", "invalid"]
    candidate: str = ""
    against: str = ""
    policy: str = ""
    reasons: list[str] = Field(default_factory=list)
    checks: list[CheckLine] = Field(default_factory=list)
    vetoes: list[str] = Field(default_factory=list)
    """What no gain outweighs; also among the reasons."""
    warnings: list[str] = Field(default_factory=list)
    looks: int = 0
    """Verdicts on the same items before this one."""

    def rival(self, check: CheckLine) -> str:
        """The model that a check compares with, where it is not the verdict's own; else empty."""
        return "" if self.against.startswith(check.against) else check.against

    @classmethod
    def of(cls, verdict: BaseModel) -> Decision:
        """From ``gate.Verdict``."""
        return cls.model_validate(verdict.model_dump(mode="json"))
