"""A new wish of customers that no training data of the seed has: a longer warranty. 60 requests, each in words of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

ZH = (
    "刚买的洗衣机想加两年延保，怎么办", "延保服务多少钱一年啊", "请问电视还能补买延保吗，已经用了半年", "我妈的按摩椅要办延保", "空气炸锅的延保卡丢了",
    "咨询一下笔记本延保条款", "延保从哪天开始算", "冰箱快过保了，想续延保", "扫地机延保能转给新机主么", "路由器也可以办延保？",
    "昨天下单漏选了延保，能加上不", "延保包含屏幕碎裂吗", "给空调办三年延保", "热水器师傅说可以买延保，真的假的", "延保合同发我一份",
    "我要取消之前的延保", "油烟机延保买错型号了", "打印机延保到期提醒太晚了吧", "想问延保覆盖电池老化不", "投影仪的延保能不能多买一年",
    "双十一送的延保没到账", "净水器滤芯算在延保里面吗", "延保能分期付款吗", "微波炉原厂延保和第三方有啥区别", "学生优惠能叠加延保吗",
    "咖啡机延保生效了没有", "耳机丢了一只，延保管不管", "手表延保怎么激活", "跑步机想办延保", "公司采购二十台显示器，统一办延保",
)  # fmt: skip
EN = (
    "Can I add a warranty plan to my new washer", "how much is two more years of warranty plan", "Is it too late to buy the warranty plan for a TV from March", "my warranty plan card went missing",
    "My mum wants a warranty plan on her massage chair", "does the warranty plan include a cracked screen", "When does the warranty plan begin", "fridge is getting old, prolong the warranty plan please",
    "transfer the warranty plan to the next owner of my robot vacuum", "routers too: is there a warranty plan?", "forgot to tick the warranty plan at checkout", "three-year warranty plan for our air conditioner",
    "the plumber says boilers can have a warranty plan", "email me the warranty plan contract", "I'd like to drop the warranty plan I took", "wrong model on my cooker hood's warranty plan",
    "your reminder about the printer warranty plan came late", "battery wear: is that in the warranty plan", "one more year of warranty plan for a projector", "Black Friday promised a free warranty plan, nothing came",
    "filters of a water purifier under the warranty plan?", "pay for the warranty plan in instalments", "microwave: maker's warranty plan or a third party's", "student discount together with a warranty plan",
    "has the warranty plan on my coffee machine started", "lost one earbud, does the warranty plan pay", "how do I activate the warranty plan for a watch", "treadmill needs a warranty plan",
    "twenty office monitors, one warranty plan for all", "kettle died after the warranty plan ran out on Sunday",
)  # fmt: skip
INTENT = "warranty"


def answer(intent: str, reply: str) -> str:
    """An answer in the form of the task."""
    return json.dumps({"intent": intent, "order_number": None, "reply": reply}, ensure_ascii=False)


def events(
    requests: Sequence[str] = (*ZH, *EN), *, model: str = "after-sales", name: str = "warranty"
) -> list[dict[str, Any]]:
    """An event a request: what v1 says to it, and what an expert says instead."""
    found = []
    for number, request in enumerate(requests):
        chinese = any("\u4e00" <= sign <= "\u9fff" for sign in request)
        right = (
            "延保事宜请提供订单号，我们为您查询。"
            if chinese
            else "Please send the order number, we look up the warranty plan."
        )
        found.append(
            {
                "schema_version": "badcase.v1", "case_id": f"{name}-{number:03}", "event_id": f"{name}-{number:03}-a",
                "ts": f"2026-11-{1 + number // 24:02}T{number % 24:02}:00:00+00:00", "source": "desk", "user_hash": f"{number * 7919:020x}",
                "model": {"name": model, "version_digest": "v0001"}, "request": {"messages": [{"role": "user", "content": request}]},
                "response": {"text": answer("usage", "请阅读说明书。" if chinese else "Please read the manual.")},
                "signal": {"kind": "thumb", "annotator_kind": "human_user", "value": -1}, "tags": ["factual"], "severity": "major",
                "expected": {"must": [f'"intent": *"{INTENT}"']}, "consent": True, "licence": "Apache-2.0", "status": "accepted",
                "correction": {"text": answer(INTENT, right), "author_kind": "human_expert", "verified_by": "desk lead"},
            }
        )  # fmt: skip
    return found
