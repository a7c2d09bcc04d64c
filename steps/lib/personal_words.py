"""Personal data made of words and signs: e-mail, postal addresses, keys and passwords, accounts, names.

Each finder looks at one text and gives hits. ``personal`` calls only those for which a text has what they cannot do without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from steps.lib.personal_numbers import Hit


def emails(text: str) -> Iterator[Hit]:
    """E-mail addresses, looked for from each @. Source: RFC 5321, 4.1.2, without quoted names and foreign scripts."""
    place = text.find("@")
    while place >= 0:
        local = _LOCAL.search(text, max(0, place - 64), place)
        domain = _DOMAIN.match(text, place + 1)
        if local and domain and domain["end"].lower() not in _FILES:
            login = _LOGIN.search(
                text, max(0, local.start() - 80), local.start()
            )  # user:password@host, user@host of an address
            if not login and (local[0] != "git" or text[domain.end() : domain.end() + 1] != ":"):
                yield Hit("email", local.start(), domain.end(), f"{local[0]}@{domain[0]}".lower())
        place = text.find("@", place + 1)


def addresses(text: str) -> Iterator[Hit]:
    """Where somebody lives, down to the house number.

    zh: road or village and number, with a district before it, a flat behind it, or a keyword before it. en: number, name and kind
    of the street, with a flat, a state or a postcode behind it, or a keyword before it. A building that a text merely names stays.
    """
    for found in _ZH_ADDRESS.finditer(text):
        start, area, named = _begun(text, found.start())
        if area or named or (found["flat"] and found["road"] not in ("里", "道", "园", "村")):
            yield Hit("address", start, found.end(), re.sub(r"\s", "", text[start : found.end()]))
    for found in _EN_ADDRESS.finditer(text):
        ahead = text[max(0, found.start() - 60) : found.start()]
        if _EN_ADDRESS_WORD.search(ahead) or found["box"] or found["flat"] or found["zip"]:
            yield Hit("address", *found.span(), re.sub(r"[\s.,]+", " ", found[0]).lower())


def _begun(text: str, road: int) -> tuple[int, bool, bool]:
    """Where the address begins whose road ends at ``road``; whether it names a district; whether a keyword stands before it."""
    run = _RUN.search(text, max(0, road - 40), road)
    start = run.start() if run else road
    if cut := _LEAD.match(text, start, road):
        start = cut.end()
    district = _REGION.search(text, start, road) or _DISTRICT.search(text, start, road)
    start = district.start() if district else max(start, road - 5)
    return start, district is not None, bool(_ZH_ADDRESS_WORD.search(text[max(0, start - 12) : start]))


def secrets(text: str) -> Iterator[Hit]:
    """Keys of services, tokens, private keys. Source: the vendors' published formats, as gitleaks has them."""
    runs = [found.span() for found in _RUN_OF_KEY.finditer(text)]
    near = [(max(0, begin - 600) + len(text[max(0, begin - 600) : begin].rstrip(_SIGNS)), end) for begin, end in runs]
    if "AKIA" in text or "hf_" in text:
        near = [(0, len(text))]
    for begin, end in near:
        for found in _KEYS.finditer(text, begin, end + 1):
            if not found["loose"] or re.search("[0-9]", found["loose"]):
                yield Hit("secret", *found.span(), found[0])
    if "PRIVATE KEY-----" in text:
        for found in _PEM.finditer(text):
            yield Hit("secret", *found.span(), found[0])
    if runs and any(mark in text for mark in _TOKEN_MARKS):
        for found in _TOKEN.finditer(text):
            value = found["value"].rstrip(".=/-") or found["value"]
            if len(re.findall("[0-9]", value)) >= 3 and re.search("[A-Za-z]", value) and len(set(value)) >= 8:
                yield Hit("secret", *found.span("value"), found["value"])


def passwords(text: str) -> Iterator[Hit]:
    """What stands behind "password:" or 密码：, when it has a digit; user:password in a web address.

    Not what a text says it made up, or gives as an example.
    """
    for found in _PASSWORD.finditer(text):
        quoted = text[found.end() : found.end() + 1] in ('"', "'", "”", "`")
        value = found["value"] if quoted else found["value"].rstrip(".,;:!?)]}>*`")
        if len(value) < 4 or not re.search("[0-9]", value) or _NO_PASSWORD.search(value):
            continue
        if _MADE_UP.search(text[max(0, found.start() - 50) : found.start("value")]):
            continue
        yield Hit("password", found.start("value"), found.start("value") + len(value), value)
    for found in _URL_PASSWORD.finditer(text) if "://" in text and "@" in text else ():
        if re.search("[0-9]", found["value"].partition(":")[2]):
            yield Hit("password", *found.span("value"), found["value"])


def accounts(text: str) -> Iterator[Hit]:
    """WeChat and QQ ids, behind their keyword only."""
    for found in _WXID.finditer(text):
        yield Hit("account", *found.span(), found[0].lower())
    for found in _WECHAT.finditer(text):
        if found["sure"] or re.search("[0-9_]", found["value"]):
            yield Hit("account", *found.span("value"), found["value"].lower())
    for found in _QQ.finditer(text):
        yield Hit("account", *found.span("value"), found["value"])


def names(text: str) -> Iterator[Hit]:
    """Names behind a keyword (姓名：…, My name is …) or a title. A name alone is not told from other words."""
    for pattern in (_ZH_NAME, _EN_NAME):
        for found in pattern.finditer(text):
            yield Hit("name", *found.span("value"), found["value"])


_LOCAL = re.compile(r"(?<![0-9A-Za-z._%+-])[0-9A-Za-z_](?:[0-9A-Za-z._%+-]*[0-9A-Za-z_+-])?\Z")
_LOGIN = re.compile(r"://[^\s/@]{0,64}\Z")
_DOMAIN = re.compile(r"(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?\.)+(?P<end>[A-Za-z]{2,24})(?![0-9A-Za-z_-])")
_FILES = {
    "png",
    "jpg",
    "jpeg",
    "gif",
    "svg",
    "webp",
    "js",
    "ts",
    "css",
    "html",
    "json",
    "pdf",
    "txt",
    "py",
    "exe",
    "dll",
    "zip",
}
"""Ends of file names such as icon@2x.png."""

_NUMBER = r"(?:[0-9]{1,5}|[一二三四五六七八九十百零〇]{1,5})"
_ZH_ADDRESS = re.compile(
    r"(?P<road>大道|大街|胡同|路|街|道|巷|弄|村|里|园|小区|苑)[东南西北中]?(?:段)?"
    rf"{_NUMBER}(?:号院|[号弄栋幢])(?!线|文|公告|令|码|门|床|机|柜|桌)"
    r"(?P<flat>(?:[ ,，]?[\u4e00-\u9fffA-Z]{0,8}?[0-9A-Z]{1,5}(?:号楼|号院|栋|幢|座|单元|楼|层|室|房|号|户)"
    r"(?:[0-9]{1,4}(?:室|号)?)?){1,5})?"
)
_RUN = re.compile(r"(?:[\u4e00-\u9fff0-9A-Z]| (?=[\u4e00-\u9fff])){1,40}\Z")
_DISTRICT = re.compile(
    r"(?:石家庄|秦皇岛|张家口|呼和浩特|鄂尔多斯|呼伦贝尔|巴彦淖尔|乌兰察布|葫芦岛|哈尔滨|齐齐哈尔|双鸭山|佳木斯|七台河|牡丹江|连云港|张家港|马鞍山|"
    r"景德镇|三门峡|平顶山|驻马店|张家界|防城港|攀枝花|六盘水|嘉峪关|乌鲁木齐|克拉玛依|吐鲁番|石河子|[\u4e00-\u9fff]{2})(?:省|自治区|市|自治州|盟)"
    r"|[\u4e00-\u9fff]{2}(?:新区|区|县|旗|镇|乡|街道)"
)
_REGION = re.compile(
    "(?:北京|上海|天津|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|"
    "青海|台湾|内蒙古|广西|西藏|宁夏|新疆|香港|澳门)"
)
_LEAD = re.compile(
    r".*(?:[在到至往是为址住寄送给位的了我您你他她请]|位于|坐落于|收货|收件|寄件|发货|地址) ?", re.DOTALL
)
_ZH_ADDRESS_WORD = re.compile(
    r"(?:地址|住址|住在|家住|我住|住|收货|寄到|寄往|寄至|送到|送至|邮寄|发到)[\s:：是为在到“\"]{0,4}\Z"
)
_STATES = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY]"
)
_EN_ADDRESS = re.compile(
    r"[1-9P](?<![0-9A-Za-z_$£€#].)(?<![0-9][.,:/-].)(?:(?<=[1-9])[0-9]{0,4}[A-Z]?,? "
    r"(?:(?:[NSEW]|NE|NW|SE|SW|North|South|East|West)\.? )?"
    r"(?:(?:[A-Z][a-z'’]{1,20}|[A-Z][a-z]+[A-Z][a-z]+|[0-9]{1,3}(?:st|nd|rd|th)) ){1,3}?"
    r"(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Place|Way|Terrace|Square|Parkway|Circle|Highway"
    r"|(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Pl|Pkwy|Hwy)(?:\.|(?![A-Za-z])))(?![A-Za-z])|(?P<box>(?<=P)\.? ?O\.? Box [0-9]{1,6}))"
    r"(?P<flat>,? (?:(?:Apartment|Apt|Suite|Ste|Unit|Flat)\.? |# ?)#?[0-9A-Z]{1,5}(?:-[0-9A-Z]{1,4})?(?![0-9A-Za-z]))?"
    r"(?P<zip>(?:[,\n] ?(?:[A-Z][A-Za-z.'’]{1,20} ?){1,3})?,? ?(?:[A-Z]{2},? [0-9]{5}(?:-[0-9]{4})?"
    rf"|(?<=, )(?:{_STATES})|[A-Z]{{1,2}}[0-9][0-9A-Z]? [0-9][A-Z]{{2}})(?![0-9A-Za-z]))?",
)
_EN_ADDRESS_WORD = re.compile(
    r"(?i:\b(?:address|lived?|lives|living|moved|resid(?:es?|ing)|ship(?:ped)?|deliver(?:ed|y)?|send|sent|mail(?:ed)?|home)\b)"
    r"[^.!?\n]{0,24}\Z"
)

_SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_./+=-"
_RUN_OF_KEY = re.compile(r"[0-9][0-9A-Za-z_./+=-]{0,512}+(?<=[0-9A-Za-z_./+=-]{16})")
"""Sixteen signs of a key, with a digit."""
_KEYS = re.compile(
    r"(?<![0-9A-Za-z_])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{22,255}|glpat-[0-9A-Za-z_-]{20,}"
    r"|sk-(?P<loose>[0-9A-Za-z_-]{20,})|xox[abeoprs]-[0-9A-Za-z-]{10,}|hooks\.slack\.com/services/[0-9A-Za-z/]{20,}|AIza[0-9A-Za-z_-]{35}"
    r"|hf_[0-9A-Za-z]{30,}|[rsp]k_(?:live|test)_[0-9A-Za-z]{16,}|LTAI[0-9A-Za-z]{12,26}|AKID[0-9A-Za-z]{32}|ya29\.[0-9A-Za-z_-]{20,}"
    r"|npm_[0-9A-Za-z]{36}|pypi-[0-9A-Za-z_-]{50,}|SG\.[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{16,}"
    r"|eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,})(?![0-9A-Za-z])"
)
_PEM = re.compile(
    r"-----BEGIN (?P<what>[A-Z ]{0,20})PRIVATE KEY-----(?:[0-9A-Za-z+/=\s\\,:.()-]{40,8000}?-----END [A-Z ]{0,20}PRIVATE KEY-----"
    r"|[0-9A-Za-z+/=\s\\]{40,8000})"
)
"""A block that is cut off ends with its last line of base64."""
_TOKEN_MARKS = ("ecret", "SECRET", "oken", "TOKEN", "earer", "api", "API", "Api", "密钥", "令牌")
_TOKEN = re.compile(
    r"(?:(?i:(?:api[_ -]?key|secret(?:[_ -]?access)?[_ -]?key|(?:access|auth)[_ -]?token"
    r"|client[_ -]?secret|bearer|secret|token))|密钥|令牌)[\"'”]?\s*(?:[:：=]|是|为|is |(?<=earer) )\s*[\"'“]?"
    r"(?P<value>[0-9A-Za-z_./+=-]{16,512})(?![0-9A-Za-z(])"
)
_PASSWORD = re.compile(
    r"(?:(?i:password|passwd|passcode|pwd)|密码|口令)[\"'”*]{0,3}\s*(?:[:：=]|是|为|(?<=[a-z] )is|(?<=[码令]) ?(?=[0-9]{6}))\s*"
    r"[\"'“*`]{0,3}(?P<value>[!#-&(-;=?-_a-~][!#-&(-;=-_a-~]{3,63})"
)
_NO_PASSWORD = re.compile(r"\A[0-9]{1,2}[-~][0-9]{1,2}\Z|\A[$%&]|[(\[{]|\A[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\Z|\Ahttps?:")
_MADE_UP = re.compile(
    r"(?:随机|生成|示例|例如|比如|弱|(?i:random|generat|example|e\.g|such as|weak|strong))[^。！？!?\n]{0,40}\Z"
)
_URL_PASSWORD = re.compile(r"(?<=://)(?P<value>[0-9A-Za-z._%+-]{1,64}:[!#-&(-.0-;=?A-~]{1,64})(?=@[0-9A-Za-z])")
_WECHAT = re.compile(
    r"(?:(?P<sure>微信号|薇信号?|(?i:(?<![A-Za-z])(?:wechat|weixin)[ _]?id))|微信|(?<![A-Za-z])(?i:wechat|weixin|vx))"
    r"[\"'”]?\s*(?:[:：=]|是|为|is)\s*[\"'“]?(?P<value>[A-Za-z][0-9A-Za-z_-]{5,19})(?![0-9A-Za-z_-])"
)
_WXID = re.compile(r"(?<![0-9A-Za-z_])wxid_[0-9A-Za-z]{8,}(?![0-9A-Za-z_])")
_QQ = re.compile(
    r"(?:(?<![A-Za-z])(?i:qq)|扣扣)(?:号码?)?[\"'”]?\s*(?:[:：=]|是|为|is)?\s*[\"'“]?"
    r"(?P<value>[1-9][0-9]{4,11})(?![0-9A-Za-z_]|[.-][0-9])"
)
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭"
    "陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_ZH_NAME = re.compile(
    rf"(?:姓名|收件人|收货人|联系人|我叫|我的名字[是叫]|本人)[\"'”]?\s*[:：是为]?\s*[\"'“]?"
    rf"(?P<value>(?:欧阳|司马|上官|诸葛|东方|[{_SURNAMES}])[\u4e00-\u9fff]{{1,2}})(?![\u4e00-\u9fff])"
)
_EN_NAME = re.compile(
    r"(?:(?i:my name is|full name[\"']?:|(?<![a-z ])name[\"']?:) ?[\"']?|(?<![A-Za-z])(?:Mr|Mrs|Ms|Dr)\.? )"
    r"(?P<value>[A-Z][a-z]+(?:[ -][A-Z][a-z]+){0,2})(?![A-Za-z])"
)
