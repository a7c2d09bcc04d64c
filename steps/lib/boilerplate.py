"""Lines that every page of a site has: cookies, subscriptions, rights, "click the link below", 责任编辑, 关注公众号.

A line or sentence is boilerplate when it holds one of the phrases and is no longer than ``LONGEST``; a text is told by the share
of its characters in such pieces. A text that speaks *about* cookies or rights has few of them: the phrases are those in which a
site speaks to its reader. "Sure! Here is ..." is none.

Source: C4's rules on lines (Raffel et al., arXiv 1910.10683, section 2.2: lorem ipsum, JavaScript, cookie and privacy lines),
which know English only. The Chinese phrases are those of news pages and official accounts.
"""

from __future__ import annotations

import re

LONGEST = 200
"""Characters of a line or sentence above which it is content, whatever stands in it."""


def boilerplate(text: str) -> tuple[float, str]:
    """Share of a text's characters in boilerplate, and the first phrase that was seen. The same for zh and en."""
    low = text.lower()
    hints = [hint for hint in _HINTS_EN if hint in low]
    chinese = not low.isascii() and _HINTS_ZH.search(low)
    if not hints and not chinese:
        return 0.0, ""
    first, covered = "", 0
    for piece in _PIECES.split(low):
        if not 0 < len(piece) <= LONGEST or not (
            any(hint in piece for hint in hints) or (chinese and _HINTS_ZH.search(piece))
        ):
            continue
        if found := _PHRASES.search(piece):
            first = first or found[0]
            covered += len(piece)
    return covered / len(text), first


_PIECES = re.compile(r"\n|(?<=[。！？])|(?<=[.!?])\s")
_HINTS_EN = (
    "cookie", "subscri", "mailing list", "sign up", "newsletter", "copyright", "rights reserved", "privacy policy",
    "terms of", "click", "follow us",
    "share this", "powered by", "javascript", "lorem ipsum", "read more", "log in", "leave a comment", "leave a reply", "skip to",
    "back to top", "page not found", "all trademarks", "©", "(c)",
)  # fmt: skip
_HINTS_ZH = re.compile(
    "点击|点此|版权|责编|公众号|扫码|扫描|长按|二维码|转载|免责声明|未经|不经|icp备|公网安备|上一篇|下一篇|阅读原文|返回顶部|返回首页|原标题|分享到|相关阅读|"
    "相关推荐|来源[:：]|编辑[:：]|©|加载中|关注我们|官方微|本站|戳"
)
"""Without one of these no phrase is there. (Literals of Latin letters are found faster one by one, Chinese ones together.)"""
_PHRASES = re.compile(
    r"\b(?:we|this (?:web)?site|our (?:web)?site|the site) (?:also )?uses? cookies|\b(?:accept|manage|reject) (?:all )?cookies\b"
    r"|\bcookie (?:policy|settings|preferences|consent|notice)|\buse of cookies\b"
    r"|\bsubscribe (?:to (?:our|the|this|my)|now|today|here|via|on (?:itunes|youtube|spotify))"
    r"|\bsign up (?:for|to) (?:our|the|my)\b[^.]{0,40}\b(?:newsletter|updates|list|alerts)|\bjoin our (?:newsletter|mailing list)"
    r"|\ball rights reserved\b|\bcopyright (?:©|\(c\)|\d{4})|(?:©|\(c\)) ?(?:copyright )?\d{4}|\ball trademarks\b"
    r"|\b(?:privacy policy|terms of (?:use|service))\b(?: *(?:\||and|&|·|,|-|\Z))"
    r"|\bclick (?:here|the (?:link|button) below|on the link below)\b|\bread more(?: »| >|\.\.\.|…|\Z)|\bfollow us on\b"
    r"|\bshare this (?:post|article|page|story|entry|on)\b|\b(?:proudly )?powered by wordpress|\bleave a (?:comment|reply)\Z"
    r"|\b(?:please )?(?:enable|turn on|activate) javascript|\bjavascript (?:is|must be|needs to be) (?:disabled|enabled)"
    r"|\blorem ipsum\b|\bskip to (?:main )?content\b|\bback to top\b|\blog ?in or (?:register|sign up)\b|\bpage not found\b"
    r"|(?:请?(?:点击|点此|戳)(?:下方|下面|上方|以上|以下|此处|这里|左下角|右上角|文末|蓝字|链接|查看|进入|关注|阅读|下载)|(?:点击|戳)[^，。]{0,8}(?:阅读原文|查看详情|查看更多|查看全文))"
    r"|版权所有|版权归[^，。]{0,16}所有|copyright ?©|责任编辑|责编[:：]|(?:原标题|文章来源|本文来源|信息来源|稿件来源)[:：]"
    r"|(?:\A|[（(\[【|｜])[^\w]*(?:编辑|来源)[:：]"
    r"|(?:关注|搜索|添加)[^，。]{0,16}(?:公众号|官方微信|官方微博)|(?:微信)?公众号[:：]|关注我们\Z|(?:扫码|扫描|长按)[^，。]{0,12}(?:二维码|关注|识别|加群|下载|领取|咨询)"
    r"|(?:转载|引用)(?:时)?(?:请|需|须|务必)(?:注明|保留|联系)|(?:未经|不经)[^，。]{0,16}(?:授权|许可|同意|允许)[^。]{0,16}(?:转载|复制|使用|摘编|刊登)|禁止转载|不得转载"
    r"|\A\W*免责声明|[\u4e00-\u9fff]icp备|公网安备|\A\W*(?:上一篇|下一篇|返回顶部|返回首页|相关阅读|相关推荐|阅读原文|分享到|加载中)"
    r"|分享到(?:微信|朋友圈|微博|qq)|本站(?:所有|部分|内容|文章|资源|图片)[^。]{0,30}(?:网络|版权|侵权|删除)"
)
"""Searched in lower case."""
