"""What gives a machine's text away: refusals, words about itself, and marks of templates. One pattern each, in Chinese and English.

``quality`` drops rows by them, ``prompts`` and ``marks`` flag answers by them: all see the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def special_token(text: str, own: Collection[str] = ()) -> str | None:
    """A chat template's own mark inside the text: it would end or open a turn. The same for zh and en.

    Source: the templates of Qwen, Phi, Yi, InternLM, Llama 2 to 4, Gemma 1 to 4, Mistral, ChatGLM, DeepSeek (with full-width
    bars), Baichuan, and the marks for filling in code of StarCoder and Qwen-Coder.

    Args:
        own: special tokens of the student's own tokenizer, which are looked for as they are.
    """
    seen = _found(_SPECIAL, text) if "<" in text or "[" in text else None
    return seen or next((token for token in own if token in text), None)


def think_tag(text: str) -> str | None:
    """A mark of hidden reasoning. Source: DATA.md 2.5."""
    return _found(_THINK, text) if "<" in text else None


def identity(text: str) -> str | None:
    """The text speaks of itself as an AI, or names its maker. Source: DATA.md 2.5; the common phrases of both languages."""
    for name in _LATIN_NAMES if text.isascii() else _NAMES:
        if name in text:
            return _found(_IDENTITY, text)
    return None


def refusal(text: str) -> str | None:
    """The text opens with a refusal to help. A polite no further on ("sorry, we cannot ship there") is none."""
    found = _REFUSAL.match(text)
    return found[0] if found else None


def template_heading(text: str) -> str | None:
    """A heading of a known prompt template at the start of a line. Source: Alpaca; Evol-Instruct, arXiv 2304.12244, appendix A."""
    return _found(_HEADING, text) if "#" in text else None


def asks_for_language(prompt: str) -> bool:
    """Whether the prompt speaks of a language or of translating, so that an answer in another one may be what it asks for."""
    return bool(_LANGUAGES.search(prompt))


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[0] if found else None


_SPECIAL = re.compile(
    r"<\|[A-Za-z][A-Za-z_0-9]{1,30}\|>"  # Qwen, Phi, Yi, InternLM 2, Llama 3, ChatGLM 3 and 4
    r"|<｜[^｜\n]{1,30}｜>|<\|[^|\n]{0,20}▁[^|\n]{1,30}\|>"  # DeepSeek, as it is and with its bars folded
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|SYSTEM_PROMPT)\]|<</?SYS>>"  # Mistral, Llama 2
    r"|<(?:start|end)_of_(?:turn|image)>|<\|turn>|<turn\|>"  # Gemma
    r"|\[gMASK\]|<[se]op>|<eo[hamt]>|\[UNUSED_TOKEN_\d+\]|<reserved_\d+>"  # ChatGLM, InternLM, Baichuan
    r"|<fim_(?:prefix|middle|suffix|pad)>|<extra_id_\d+>|<unused\d+>"  # StarCoder, T5, Gemma
    r"|\A\s*(?:<s>(?![^<]{0,300}</s>\s*\S)|<bos>)|(?:</s>|<eos>)\s*\Z"
)
"""``<s>``, ``<eos>`` and their like are no more than a word of HTML or of a text about models where they stand within."""
_THINK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_NAMES = (
    *(
        "AI",
        " ai ",
        " ai,",
        "rtificial intelligence",
        "anguage model",
        "OpenAI",
        "ChatGPT",
        "Anthropic",
        "Claude",
        "Gemini",
    ),
    *(
        "Bard",
        "DeepMind",
        "Google",
        "Qwen",
        "DeepSeek",
        "Llama",
        "Mistral",
        "Kimi",
        "Moonshot",
        "ByteDance",
        "Tencent",
        "Baidu",
    ),
    *("人工智能", "语言模型", "谷歌", "微软", "阿里", "通义", "百度", "腾讯", "字节", "深度求索", "智谱", "Alibaba"),
    *("月之暗面", "讯飞", "商汤", "文心一言", "豆包"),
)
"""Without one of these ``_IDENTITY`` finds nothing; a quick look that most answers do not pass."""
_LATIN_NAMES = tuple(name for name in _NAMES if name.isascii())
_MAKERS = (
    r"(?:OpenAI|Anthropic|Google|DeepMind|Meta AI|DeepSeek|Mistral AI|Moonshot AI|ByteDance|Tencent|Baidu|Alibaba)"
)
_MAKERS_ZH = r"(?:OpenAI|Anthropic|谷歌|微软|阿里巴巴|阿里云|通义|百度|腾讯|字节跳动|深度求索|DeepSeek|智谱|月之暗面|科大讯飞|商汤)"
_IDENTITY = re.compile(
    r"\b(?:as|I am|I['’]m) (?:just )?an? (?:AI|artificial intelligence)(?: language)?(?: model| assistant| chatbot|,)"
    r"|\b(?:I am|I['’]m) (?:just )?an (?:AI|artificial intelligence)(?:[.;]| and (?:I|do|don|can|cannot|have|am|was)\b)"
    r"|\b(?:as|I am|I['’]m) (?:just )?a (?:large )?language model\b"
    r"|\b(?:I am|I['’]m|to me as)\b[^.!?\n]{0,40}\b(?:an|your) (?:AI|artificial intelligence) (?:language )?"
    r"(?:model|assistant|chatbot)"
    r"|\b(?:I am|I['’]m) (?:ChatGPT|Qwen|DeepSeek|(?:Claude|Gemini|Bard|Llama|Mistral|Kimi)[, ]+an? )"
    rf"|\b(?:I am|I['’]m|I was|model|assistant|chatbot)\b[^.!?\n]{{0,60}}\b(?:developed|trained|created|made|built) by {_MAKERS}\b"
    r"|(?<![你您])作为(?:一?[个名款位])?(?:文[字本]型?)? ?(?:AI|人工智能) ?(?:语言模型|大?模型|助手|助理|机器人|程序|，|,)"
    r"|作为(?:一?[个名款位])?(?:大型?)?语言模型"
    r"|我(?:只|就)?是(?:一?[个名款位])? ?(?:AI|人工智能|(?:大型?)?语言模型) ?"
    r"(?:语言模型|大?模型|助手|助理|机器人|程序|无法|不能|没有|[，,。]|\Z)"
    r"|我(?:是|叫|名叫|名为)[^。！？\n]{0,40}(?:AI|人工智能) ?(?:语言模型|助手|助理|机器人)"
    r"|我(?:是|叫)(?:ChatGPT|通义千问|文心一言|豆包|智谱清言|DeepSeek|Qwen)"
    rf"|(?:我是|我由|模型|助手)[^。！？\n]{{0,16}}{_MAKERS_ZH}(?:公司|团队|集团)?(?:自主)?(?:开发|训练|研发|创造|打造|推出)",
    re.IGNORECASE,
)
_UNABLE = r"(?:unable|not (?:able|equipped|designed|programmed|allowed|permitted|in a position)) to"
_CANNOT = rf"(?: can(?:['’]?t| ?not)| (?:am|are) {_UNABLE}|['’](?:m|re) {_UNABLE}| won['’]t| will not)"
_VERBS = (
    r"(?:assist|help|fulfill?|comply|answer|provide|complete|do that|do this|respond|generate|create|write|discuss|share|offer|"
    r"engage|support|continue|process|produce|access|perform|carry out|give|recommend|participate|satisfy)\b"
)
_MACHINE = r"as an? (?:AI|artificial intelligence|(?:large )?language model)\b"
_REFUSAL = re.compile(
    r"\W*(?:"
    rf"(?:(?:(?:I['’]?m|I am|we are|we['’]re)? ?(?:very |so |really |truly )?(?:sorry|afraid)|(?:I |my )?apolog[a-z]+|"
    rf"unfortunately)\b(?:,? (?:but )?{_MACHINE}[^.!?\n]{{0,40}}?)?[^.!?\n]{{0,20}}?"
    rf"\b(?:I{_CANNOT}(?: \w+)? {_VERBS}|we{_CANNOT} (?:assist|help|comply|answer)\b))"
    rf"|I{_CANNOT} (?:assist|help|comply|fulfill?|answer|provide|do that|engage|respond|support)\b"
    rf"|I(?: am|['’]m) not (?:equipped|designed|programmed|allowed|permitted) to {_VERBS}"
    r"|I(?: am|['’]m) not (?:able|equipped|in a position) to (?:generate|create|write|discuss|share|offer|give|produce|perform)\b"
    r"|I(?: am|['’]m| do not feel| don['’]t feel| would not feel) (?:not |un)?comfortable (?:providing|helping|assisting|answering|"
    r"discussing|writing|creating|generating|sharing)\b"
    r"|I (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)\b"
    r"|I do(?:n['’]t| not) have the (?:ability|capability|capacity) to (?:[a-z]+ly )?(?:access|see|view|browse|open|perform|"
    r"provide|generate|create|answer|assist|help|determine|know)\b"
    r"|(?:this|that|your (?:question|request)|the (?:question|request)) (?:is|falls|goes|lies) (?:beyond|outside)"
    r"(?: of| the scope of)? my (?:capabilit|abilit|scope|knowledge)"
    rf"|{_MACHINE}[^.!?\n]{{0,60}}?\bI(?:{_CANNOT}| do(?:n['’]t| not) have\b)"
    r"|(?:非常|很|十分|实在|真的)?(?:抱歉|对不起|不好意思|遗憾)[，,。！!、 ]*(?:但是?|可是|不过)?(?:作为[^，,。]{1,16}[，,])?"
    r"(?:我(?:目前|暂时|现在)?(?:无法|不能|不可以|没有办法|没办法|不便|难以)(?:直接|继续|就此|对此|[为向给帮][您你]){0,2}"
    r"(?:提供|回答|协助|帮助|完成|满足|生成|处理|答复|讨论|回应|执行|继续|访问|给出|参与)"
    r"|我们(?:无法|不能)(?:回答|协助|帮助|满足)"
    r"|我(?:没有|不具备)(?:回答|协助|帮助|提供|完成|处理|执行|访问|浏览|查看|讨论)[^，,。]{0,8}(?:能力|功能|权限)"
    r"|(?:这|[您你]的(?:问题|请求|要求))超出了我的(?:能力|知识|权限))"
    r"|(?:恕)?我(?:无法|不能|没有办法|没办法)(?:直接|继续|[为向给帮][您你]){0,2}(?:提供|回答|协助|帮助|满足|生成|处理|讨论)"
    r"|我不可以(?:直接|继续|[为向给帮][您你]){0,2}(?:提供|回答|协助|帮助|满足|生成|处理|讨论)"
    r"|我(?:不具备|没有)(?:这样|这种|这方面|相关|访问|浏览|查看|生成|执行|实时)[^，,。]{0,12}(?:能力|功能|权限)"
    r"|(?:这个|该|[您你]的)(?:问题|请求|要求)，?(?:我(?:无法|不能)(?:回答|满足|协助)|超出了?我的(?:能力|知识|权限))"
    r"|(?:出于|基于|根据)[^，,。]{1,20}(?:考虑|原因|政策|法规|规定|准则)，?我(?:无法|不能|拒绝)(?:直接|继续|[为向给帮][您你]){0,2}"
    r"(?:提供|回答|协助|帮助|满足|生成|处理|讨论)"
    r"|作为(?:一[个名款位])?(?:AI|人工智能|(?:大型?)?语言模型)[^。！？\n]{0,30}?我?(?:无法|不能|没有办法|不具备))",
    re.IGNORECASE,
)
"""Looked for at the beginning only (``match``)."""
_HEADING = re.compile(
    r"^(?:### ?(?:Instruction|Response|Input)s?:|#The Given Prompt#|#Rewritten Prompt#|### ?(?:指令|输入|回答)[:：])",
    re.MULTILINE,
)
_LANGUAGES = re.compile(
    r"\btranslat|\b(?:English|Chinese|Mandarin|Cantonese|pinyin|French|Spanish|German|Italian|Portuguese|Russian|Japanese|Korean|"
    r"Arabic|Latin|Greek|Hindi|Dutch|Swedish|language)\b|翻译|译[成为作]|[中英日韩法德俄]语|[中英日韩法德俄]文|汉语|拼音|西班牙语|"
    r"阿拉伯语|葡萄牙语|意大利语|拉丁语|语言",
    re.IGNORECASE,
)
