"""How alike two requests are: Jaccard similarity of their character n-grams, exact, for thousands of short texts.

Characters, since shingles of words or of five tokens tell nothing of a short Chinese request: three of a text with Han characters,
five of any other. Texts are compared as NFKC, without case and signs, and with traditional characters read as simplified ones;
nothing of that is ever written.

Source: EVALUATION.md section 7, step 3. Deviations:
  1. Exact sets with an inverted index in place of MinHash: bad cases are thousands, not millions, and an index has no misses.
  2. Five Latin letters, not three, so that one threshold means the same in both languages (docs/badcases.md has the figures).
     A text without Han characters has one blank at each end, so that its first and last word count as others do.
"""

from __future__ import annotations

import functools
import unicodedata
from array import array
from collections.abc import Iterator, Sequence

_PAIRS = (
    "萬万與与專专業业東东絲丝兩两嚴严個个豐丰臨临為为麗丽舉举義义烏乌樂乐喬乔習习鄉乡書书買买亂乱爭争虧亏雲云亞亚產产親亲"
    "億亿僅仅從从侖仑倉仓儀仪們们價价眾众優优會会傘伞偉伟傳传傷伤倫伦偽伪體体餘余傭佣俠侠侶侣偵侦側侧債债傾倾償偿儲储兒儿"
    "黨党蘭兰關关興兴養养獸兽內内岡冈冊册寫写軍军農农馮冯沖冲決决況况凍冻淨净準准涼凉減减湊凑幾几鳳凤憑凭凱凯擊击鑿凿劃划"
    "劉刘則则剛刚創创刪删別别劑剂劍剑劇剧勸劝辦办務务動动勵励勁劲勞劳勢势勻匀匯汇區区醫医華华協协單单賣卖盧卢衛卫卻却廠厂"
    "廳厅曆历歷历厲厉壓压廁厕廂厢縣县參参雙双發发髮发變变敘叙葉叶號号嘆叹嚇吓嗎吗啟启吳吴員员聽听響响問问喚唤嗚呜園园圍围"
    "國国圖图圓圆聖圣場场壞坏塊块堅坚壇坛墳坟墜坠壘垒墊垫牆墙聲声殼壳處处備备複复復复夠够頭头誇夸夾夹奪夺奮奋獎奖婦妇媽妈"
    "孫孙學学寧宁寶宝實实審审寬宽賓宾對对尋寻導导壽寿將将爾尔塵尘嘗尝盡尽層层屆届屬属歲岁豈岂嶺岭島岛幣币帥帅師师帳帐帶带"
    "幫帮乾干幹干並并廣广莊庄慶庆庫库應应廟庙廢废開开異异棄弃張张彈弹強强歸归當当錄录徹彻徑径憶忆憂忧懷怀態态憐怜總总戀恋"
    "惡恶惱恼悅悦懸悬驚惊慣惯憤愤願愿懶懒戲戏戰战戶户撲扑執执擴扩掃扫揚扬擾扰撫抚拋抛搶抢護护報报擔担擬拟攏拢揀拣擁拥攔拦"
    "擇择掛挂擋挡揮挥撿捡換换據据擺摆搖摇攝摄攜携攤摊敵敌數数齋斋斷断無无舊旧時时曠旷曉晓暈晕暫暂術术機机殺杀雜杂權权條条"
    "來来楊杨極极構构槍枪櫃柜標标棧栈樹树樣样橋桥檔档檢检樓楼歐欧歡欢殘残毀毁畢毕氣气漢汉湯汤溝沟沒没淚泪潔洁灑洒濕湿滅灭"
    "燈灯靈灵災灾煉炼點点熱热愛爱爺爷狀状猶犹獨独獲获環环現现電电畫画療疗瘋疯瘡疮皺皱盤盘監监蓋盖礦矿碼码磚砖確确礎础"
    "禮礼禍祸離离種种積积稱称穩稳窮穷競竞筆笔節节範范築筑簡简糧粮緊紧糾纠紅红約约級级紀纪純纯紙纸組组細细終终經经結结給给"
    "絡络絕绝統统繼继續续維维綠绿網网緩缓編编緣缘縮缩線线練练罷罢羅罗罰罚聯联職职聞闻膚肤腦脑臉脸臺台艦舰藝艺藥药蘋苹虛虚"
    "蟲虫補补裝装褲裤見见規规視视覺觉覽览觀观計计訂订認认討讨讓让訓训議议記记講讲許许論论設设訪访證证評评識识訴诉詞词試试"
    "話话該该詳详語语誤误說说請请諸诸課课誰谁調调談谈謝谢譯译讀读貝贝負负財财責责敗败貨货質质販贩貪贪購购貼贴貴贵費费賀贺"
    "資资賞赏賠赔賬账賽赛贈赠贏赢趕赶趙赵跡迹車车軌轨轉转輪轮軟软輕轻較较輛辆輯辑輸输轄辖辭辞邊边達达遷迁過过運运還还這这"
    "進进遠远違违連连遲迟適适選选遞递郵邮鄰邻鬱郁釋释裡里裏里針针釘钉鈔钞鐘钟鋼钢錢钱鑰钥鐵铁銀银鋪铺銷销鎖锁錯错鍋锅鍵键"
    "鏡镜長长門门閃闪閉闭間间閱阅隊队陽阳陰阴陣阵階阶際际陸陆陳陈險险隨随隱隐難难霧雾靜静頁页項项順顺須须頓顿預预領领頻频"
    "題题額额顏颜類类顯显風风飛飞飯饭飲饮館馆馬马駕驾駛驶驗验騎骑騙骗髒脏鬆松魚鱼鮮鲜鳥鸟鴨鸭麥麦麵面黃黄齊齐齒齿龍龙龜龟"
    "麼么於于併并佔占徵征週周鏈链曬晒颱台燙烫儘尽隻只颳刮鬧闹鬥斗籤签簽签纖纤蠟蜡觸触註注諮咨趨趋蹤踪輔辅遙遥遺遗鄭郑鍊炼"
    "鎮镇鑽钻陝陕韓韩韻韵驅驱鬍胡齡龄"
)
"""Traditional character, then the simplified one."""
HAN, LATIN = 3, 5
"""Characters of a gram, of texts with Han characters, kana or hangul, and of others."""


@functools.cache
def _simplified() -> dict[int, str]:
    return {ord(one): other for one, other in zip(_PAIRS[::2], _PAIRS[1::2], strict=True)}


def folded(text: str) -> str:
    """A text as it is compared: runs of letters and digits, one blank between them."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_simplified())
    return " ".join("".join(letter if letter.isalnum() else " " for letter in plain).split())


def grams(text: str) -> frozenset[str]:
    """The grams of a text; of one that is shorter the text itself; of one without a letter or digit none."""
    plain = folded(text)
    if not plain:
        return frozenset()
    if max(plain) >= "\u2e80":  # blanks there are a matter of taste
        plain, width = "".join(plain.split()), HAN
    else:
        plain, width = f" {plain} ", LATIN
    return frozenset(plain[n : n + width] for n in range(max(1, len(plain) - width + 1)))


class Grams:
    """Texts so far, by their grams; 4 bytes a gram and text.

    A text is known by its number, in the order in which it came.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._holders: list[array[int]] = []
        self._sizes = array("I")
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, text: str) -> None:
        """Take a text in."""
        own = grams(text)
        for gram in own:
            number = self._numbers.setdefault(gram, len(self._holders))
            if number == len(self._holders):
                self._holders.append(array("I"))
            self._holders[number].append(len(self._sizes))
        self._sizes.append(len(own))

    def near(self, text: str, threshold: float) -> list[tuple[int, float]]:
        """Texts whose similarity reaches the threshold (above 0), with it: the most alike first, of equals the earliest."""
        import numpy as np

        own = grams(text)
        known = [self._holders[self._numbers[gram]] for gram in own if gram in self._numbers]
        if not known or len(known) < threshold * len(own):  # what no text has is in no intersection
            return []
        shared = np.bincount(np.concatenate([np.frombuffer(one, np.uint32) for one in known]), minlength=len(self))
        similarity = shared / (np.frombuffer(self._sizes, np.uint32) + len(own) - shared)
        places = np.flatnonzero(similarity >= threshold)
        order = np.lexsort((places, -similarity[places]))
        return [(int(place), float(similarity[place])) for place in places[order]]


def pairs_of(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Every pair of texts whose similarity reaches the threshold: (earlier, later, similarity)."""
    index = Grams()
    for number, text in enumerate(texts):
        for earlier, score in index.near(text, threshold):
            yield earlier, number, score
        index.add(text)
