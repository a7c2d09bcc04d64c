"""Markup that a page left in its text: HTML tags and entities, BBCode, wiki markup, scripts and style sheets.

Code is no residue: what stands in fences or between backticks is not looked at, nor are LaTeX and Markdown. Nor is a text about
markup, which an answer is when its question says so or holds some itself, and a document when it speaks of such things thrice.
The same for zh and en.

Source: the clean-up operators of data-juicer (clean_html, expand_macro) and trafilatura's leavings; ours only find.
"""

from __future__ import annotations

import re

ABOUT = 3
"""Words about markup or code that a document has before it counts as being about them."""


def residue(text: str) -> list[str]:
    """Every piece of markup outside code, in the order of the text's kinds."""
    scripted = any(sign in text for sign in _SCRIPT_SIGNS)
    if not scripted and not any(sign in text for sign in _SIGNS):
        return []
    plain = _CODE.sub(" ", text) if "`" in text else text
    found = _HTML.findall(plain) if "<" in plain else []
    if "&" in plain:
        found += _ENTITY.findall(plain)
    if "[" in plain or "{" in plain or "==" in plain:
        found += [one[0] for one in _WIKI.finditer(plain)]
    if scripted:
        found += _SCRIPT.findall(plain)
    return found


def document_markup(text: str) -> float:
    """Pieces of markup on 1,000 characters of a document; 0 where it is about markup or code."""
    found = residue(text)
    if not found or len(_ABOUT.findall(_HTML.sub(" ", text))) >= ABOUT:
        return 0.0
    return 1000 * len(found) / len(text)


def answer_markup(question: str, answer: str) -> str | None:
    """The first piece of markup in an answer, unless the question is about such things or holds markup or code itself."""
    found = residue(answer)
    if not found or _TOPIC.search(question) or _CODE.search(question) or _TAGGED.search(question) or residue(question):
        return None
    return found[0]


_SIGNS = ("<", "&", "[[", "[/", "==")
_SCRIPT_SIGNS = ("document.", "(document", "window.", "adsbygoogle", "googletag", "gtag(", "(function", "{")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_HTML = re.compile(
    r"</?(?:a|abbr|article|aside|b|blockquote|body|button|center|div|dl|dt|dd|em|font|footer|form|h[1-6]|head|header|html|i|iframe|img|"
    r"input|label|li|link|meta|nav|noscript|ol|option|p|pre|ref|script|section|select|small|span|strong|style|table|tbody|td|textarea|"
    r"tfoot|th|thead|tr|tt|u|ul|video)(?:\s[^<>]{0,300})?/?>|<!--|<!DOCTYPE\b[^<>]{0,80}>|<br ?/?>(?=\s*<br)",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|ldquo|rdquo|lsquo|rsquo|hellip|mdash|ndash|bull|middot|copy|reg|#\d{2,5}|#x[0-9a-fA-F]{2,5});"
)
_WIKI = re.compile(
    r"\[\[[A-Za-z\u3400-\u9fff][^\[\]\n]{0,120}\]\]|(?<![${])\{\{"
    r"(?:[Cc]it[ae]|[Ii]nfobox|[Rr]eflist|[Mm]ain\||[Ss]ee also|[Ll]ang[|-]|[Rr]efn?\b|"
    r"[A-Za-z\u3400-\u9fff][^{}|\n]{0,40}\|)[^{}\n]{0,200}\}\}|^\{\||^(={2,4}) ?[^=\n]{1,60} ?\1$"
    r"|\[/(?:b|i|u|s|url|img|quote|size|color|center|list|spoiler|align|font|hide|attach)\]",
    re.MULTILINE,
)
_SCRIPT = re.compile(
    r"\bdocument\.(?:getElementById|write|cookie|createElement)\b|\$\(document\)|\bwindow\.(?:dataLayer|location|onload|adsbygoogle)\b"
    r"|\badsbygoogle\b|\bgoogletag\b|\bgtag\(|\(function ?\(\w{0,2}\) ?\{"
    r"|\{[^{}\n]{0,80}\b(?:margin|padding|font-size|display|background|color|width): ?[^{}\n]{1,60};[^{}\n]{0,200}\}"
)
_TOPIC = re.compile(
    r"\b(?:x?html5?|xml|svg|css|java ?script|js|jsx|react|vue|angular|dom|bbcode|wiki(?:text|pedia)?|"
    r"mark(?:up|down)|jinja|templates?|yaml|"
    r"php|python|java|code|coding|script|tags?|elements?|web ?(?:page|site|dev\w*)|front-?end|program(?:s|ming)?|"
    r"functions?|regex|parser?|"
    r"entit(?:y|ies))\b"
    r"|网页|网站|代码|标签|程序|编程|模板|前端|脚本|元素|函数|正则|解析|格式|标记|实体",
    re.IGNORECASE,
)
"""Words of a question that is about such things; wide, for a question is short."""
_ABOUT = re.compile(
    r"\b(?:x?html5?|xml|svg|css|java ?script|php|bbcode|wikitext|markup|tags?|source code)\b|代码|标签|标记语言|源码|编程",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?>|&[a-z]+;")
