"""What gives a machine's text away: refusals, words about itself, and marks of templates. One pattern each, in Chinese and English.

``quality`` drops rows by them, ``prompts`` and ``marks`` flag answers by them: all see the same.
"""

from __future__ import annotations

import re


def special_token(text: str) -> str | None:
    """A chat template's own mark inside the text: it would end or open a turn. Source: Qwen, Llama, Mistral, Gemma, DeepSeek."""
    return _found(_SPECIAL, text) if "<" in text or "[" in text else None


def think_tag(text: str) -> str | None:
    """A mark of hidden reasoning. Source: DATA.md 2.5."""
    return _found(_THINK, text) if "<" in text else None


def identity(text: str) -> str | None:
    """The text speaks of itself as an AI, or names its maker. Source: DATA.md 2.5; the common phrases of both languages."""
    return _found(_IDENTITY, text) if any(name in text for name in _NAMES) else None


def refusal(text: str) -> str | None:
    """The text opens with a refusal to help. A polite no further on ("sorry, we cannot ship there") is none."""
    return _found(_REFUSAL, text)


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
    r"<\|[A-Za-z][A-Za-z_0-9]{1,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜\n]{1,30}｜>|</s>\s*\Z"
)
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
    r"|作为(?:一?[个名款位])?(?:文[字本]型?)? ?(?:AI|人工智能) ?(?:语言模型|大?模型|助手|助理|机器人|程序|，|,)"
    r"|作为(?:一?[个名款位])?(?:大型?)?语言模型"
    r"|我(?:只|就)?是(?:一?[个名款位])? ?(?:AI|人工智能|(?:大型?)?语言模型) ?"
    r"(?:语言模型|大?模型|助手|助理|机器人|程序|无法|不能|没有|[，,。]|\Z)"
    r"|我(?:是|叫|名叫|名为)[^。！？\n]{0,40}(?:AI|人工智能) ?(?:语言模型|助手|助理|机器人)"
    r"|我(?:是|叫)(?:ChatGPT|通义千问|文心一言|豆包|智谱清言|DeepSeek|Qwen)"
    rf"|(?:我是|我由|模型|助手)[^。！？\n]{{0,16}}{_MAKERS_ZH}(?:公司|团队|集团)?(?:自主)?(?:开发|训练|研发|创造|打造|推出)",
    re.IGNORECASE,
)
_CANNOT = r"(?: can(?:['’]?t| ?not)| (?:am|are) (?:unable|not able) to|['’](?:m|re) (?:unable|not able) to| won['’]t| will not)"
_VERBS = (
    r"(?:assist|help|fulfill?|comply|answer|provide|complete|do that|do this|respond|generate|create|write|discuss|share|offer|"
    r"engage|support|continue|process|produce|access|perform|carry out|give|recommend|participate|satisfy)\b"
)
_REFUSAL = re.compile(
    rf"\A\W*(?:(?:I['’]?m|I am|we are|we['’]re)? ?(?:very |so |really |truly )?(?:sorry|afraid)|(?:I |my )?apolog[a-z]+|"
    rf"unfortunately)\b[^.!?\n]{{0,20}}?\b(?:I{_CANNOT}(?: \w+)? {_VERBS}|we{_CANNOT} (?:assist|help|comply|answer)\b)"
    rf"|\A\W*I{_CANNOT} (?:assist|help|comply|fulfill?|answer|provide|do that|engage|respond|support)\b"
    rf"|\A\W*as an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.!?\n]{{0,60}}?"
    rf"\bI(?:{_CANNOT}| do(?:n['’]t| not) have\b)"
    r"|\A\W*(?:非常|很|十分|实在|真的)?(?:抱歉|对不起|不好意思|遗憾)[，,。！!、 ]*(?:但是?|可是|不过)?(?:作为[^，,。]{1,16}[，,])?"
    r"(?:我(?:目前|暂时|现在)?(?:无法|不能|不可以|没有办法|没办法|不便|难以)(?:直接|继续|就此|对此|[为向给帮][您你]){0,2}"
    r"(?:提供|回答|协助|帮助|完成|满足|生成|处理|答复|讨论|回应|执行|继续|访问|给出|参与)"
    r"|我们(?:无法|不能)(?:回答|协助|帮助|满足))"
    r"|\A\W*我(?:无法|不能|不可以|没有办法|没办法)(?:直接|继续|[为向给帮][您你]){0,2}(?:提供|回答|协助|帮助|满足|生成|处理|讨论)"
    r"|\A\W*(?:这个|该|[您你]的)(?:问题|请求|要求)，?我(?:无法|不能)(?:回答|满足|协助)"
    r"|\A\W*作为(?:一[个名款位])?(?:AI|人工智能|(?:大型?)?语言模型)[^。！？\n]{0,30}?我?(?:无法|不能|没有办法|不具备)",
    re.IGNORECASE,
)
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
