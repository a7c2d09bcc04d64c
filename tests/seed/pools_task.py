"""Phrases for the customer messages: what a customer says, by intent, in English and Chinese.

Every request names its intent in words that the regexes of data/seed/task/teacher.yaml look for; no other phrase may
hold such a word. `{p}` is the product, `{t}` a time, `{o}` an order number.
"""

from __future__ import annotations

EN_GREETING = ("Hello,", "Hi,", "Good morning,", "Hi there,", "Good evening,", "Excuse me,", "Hello Blue Deer,")
ZH_GREETING = ("你好，", "您好，", "在吗？", "打扰一下，", "早上好，", "客服你好，", "蓝鹿你好，", "晚上好，")

EN_ORDER = (
    "Order number {o}.", "My order is {o}.", "Order {o}.", "It was order {o}.", "The number on the receipt is {o}.",
    "Here is the order number: {o}.", "(order {o})", "Ref {o}.", "You can find it under {o}.", "Order no. {o}, please.",
)  # fmt: skip
ZH_ORDER = (
    "订单号{o}。", "订单是{o}。", "单号：{o}。", "我的订单号是{o}。", "小票上写的是{o}。", "（订单{o}）", "订单编号{o}。",
    "号码是{o}。", "可以查一下{o}。", "在{o}这一单里。",
)  # fmt: skip

EN_ORDER_FRONT = ("Order {o}:", "About order {o}:", "{o}:", "Regarding {o},", "It is about {o}.")
ZH_ORDER_FRONT = ("订单{o}，", "关于{o}这单，", "{o}：", "我的单号{o}，", "说一下{o}，")

EN_WITHIN = (
    "yesterday", "two days ago", "three days ago", "four days ago", "5 days ago", "6 days ago", "this morning",
    "2 days ago", "five days ago", "3 days ago",
)  # fmt: skip
ZH_WITHIN = (
    "昨天", "前天", "三天前", "四天前", "5天前", "六天前", "今天早上", "两天前", "2天前", "五天前",
)  # fmt: skip
EN_OUTSIDE = (
    "two months ago", "last year", "half a year ago", "20 days ago", "three weeks ago", "in spring", "a month ago",
    "30 days ago", "last summer", "four months ago", "90 days ago", "last winter",
)  # fmt: skip
ZH_OUTSIDE = (
    "两个月前", "去年", "半年前", "20天前", "三周前", "春天", "一个月前", "三十天前", "去年夏天", "四个月前", "90天前", "年初",
)  # fmt: skip

EN_BOUGHT = ("I bought it {t}.", "It was bought {t}.", "I got it {t}.", "We bought it {t} in your shop.",
             "My mother bought it {t}.", "I ordered it {t}.", "I paid for it {t}.")  # fmt: skip
ZH_BOUGHT = (
    "{t}买的。",
    "是{t}买的。",
    "我{t}下的单。",
    "{t}在你们店买的。",
    "我妈{t}买的。",
    "{t}才买的。",
    "{t}付的钱。",
)

EN_DETAIL = (
    "I have kept the box.", "It was a gift.", "The manual did not help.", "I have two children at home.",
    "I live alone.", "We use it every day.", "My neighbour has the same one.", "I am at work until six.",
    "It looks like new.", "The colour is white.", "I only used it once.", "There is a photo, too.",
    "I tried it three times.", "It stands in the kitchen.", "My wife is quite upset.",
)  # fmt: skip
ZH_DETAIL = (
    "盒子还在。", "这是别人送的。", "看了手册也没用。", "家里有两个孩子。", "我一个人住。", "我们每天都用。", "邻居也有一台。",
    "我六点才下班。", "看着还是新的。", "是白色的那款。", "只用过一次。", "我也拍了照片。", "试了三次都一样。", "放在厨房里。", "家人很着急。",
)  # fmt: skip

EN_PROBLEM = ("My {p} {f}.", "The {p} {f}.", "The new {p} {f}.", "Our {p} {f} again.", "This {p} {f}, day after day.",
              "It seems the {p} {f}.", "Sorry, but the {p} {f}.", "The {p} from your shop {f}.")  # fmt: skip
ZH_PROBLEM = ("我的{p}{f}，", "{p}{f}，", "新买的{p}{f}，", "家里的{p}又{f}，", "这台{p}{f}，", "{p}从昨晚起{f}，",
              "你们家的{p}{f}，", "那个{p}好像{f}，")  # fmt: skip

EN_REQUEST: dict[str, tuple[str, ...]] = {
    "refund": (
        "I want a refund.",
        "Please give me a refund.",
        "Can I get my money back?",
        "I would like to return the {p}.",
        "How do I get a refund for the {p}?",
        "Please take it back and refund me.",
        "I ask for my money back.",
        "Is a refund possible?",
        "I want to send it back for a refund.",
        "Refund the {p}, please.",
        "When can I have my money back?",
        "I need a refund because I am not happy with the {p}.",
    ),
    "exchange": (
        "Please exchange it.",
        "Can I swap it for another one?",
        "I would like an exchange.",
        "Could you exchange the {p}?",
        "I want to swap the {p} for a new one.",
        "Please send a replacement.",
        "Is an exchange possible?",
        "I need a replacement for the {p}.",
        "Can it be exchanged for a black one?",
        "Exchange the {p}, please.",
        "I received the wrong colour, please swap it.",
    ),
    "repair": (
        "Please repair it.",
        "Can you fix it?",
        "I would like to have it repaired.",
        "Could someone fix the {p}?",
        "How long does a repair take?",
        "Where can I send the {p} for repair?",
        "Please fix the {p} for me.",
        "Is the repair free?",
        "I need a repair under warranty.",
        "Can your specialist repair the {p}?",
        "I want to book a repair.",
    ),
    "delivery": (
        "Where is my {p}? The delivery is late.",
        "When will the {p} be delivered?",
        "Has the {p} been shipped?",
        "The courier did not come with my {p}.",
        "My parcel with the {p} is lost.",
        "Please deliver the {p} after six.",
        "Can you change the delivery address for the {p}?",
        "The {p} should have been delivered last week.",
        "Which courier brings the {p}?",
        "The parcel with the {p} is at the wrong address.",
        "Can the {p} be shipped today?",
        "The delivery of the {p} takes too long.",
        "The tracking page of the {p} has not changed, has it been shipped?",
    ),
    "invoice": (
        "I need an invoice for the {p}.",
        "Please send me the invoice of the {p}.",
        "The invoice for the {p} is missing.",
        "Can you correct the title on the invoice for the {p}?",
        "The tax number on the {p} invoice is wrong.",
        "My company needs an invoice for one {p}.",
        "Could I get a paper invoice for the {p}?",
        "The invoice shows two of them, but I bought one {p}.",
        "When will I get the invoice for my {p}?",
        "Please mail the {p} invoice again.",
        "May I have the {p} invoice as a file?",
    ),
    "usage": (
        "How do I clean the {part} of the {p}?",
        "How often should I wash the {part} of the {p}?",
        "What does the red light on the {p} mean?",
        "How do I remove the {part} from the {p}?",
        "Can I put the {part} of the {p} in the dishwasher?",
        "How can I set the timer of the {p}?",
        "How much power does the {p} use at night?",
        "Is it safe to leave the {p} on while I sleep?",
        "Which water is best for the {p}?",
        "How do I descale the {part} of my {p}?",
        "How should I store the {p} in summer?",
        "Where is the {part} on this {p}?",
        "How many minutes does the {p} need to warm up?",
        "Can my child use the {p} alone?",
        "How do I put the {part} back on the {p}?",
        "What is the {part} of the {p} made of?",
        "How loud is the {p} at full speed?",
        "Does the {p} work with 110 volts?",
    ),
}

ZH_REQUEST: dict[str, tuple[str, ...]] = {
    "refund": (
        "我要退款。",
        "请给我退款。",
        "能把钱退给我吗？",
        "想退货。",
        "{p}怎么申请退款？",
        "我想把{p}退货。",
        "可以退款吗？",
        "不想要了，给我退钱。",
        "什么时候能退款？",
        "麻烦办一下退货。",
        "对{p}不满意，要求退款。",
        "这个{p}能退钱吗？",
    ),
    "exchange": (
        "请帮我换货。",
        "能换一台吗？",
        "我想换货。",
        "可以换一台新的吗？",
        "把{p}换一台吧。",
        "申请换货。",
        "颜色发错了，要换货。",
        "{p}可以换货吗？",
        "想换一台黑色的{p}。",
        "麻烦给我换一台好的。",
        "怎么办理换货？",
    ),
    "repair": (
        "请帮我维修。",
        "能修一下吗？",
        "我想送修。",
        "{p}可以维修吗？",
        "维修要多久？",
        "寄到哪里维修？",
        "麻烦修一下{p}。",
        "维修收费吗？",
        "还在保修期，想维修。",
        "师傅能上门修一下吗？",
        "我要预约维修。",
    ),
    "delivery": (
        "我的{p}怎么还没发货？",
        "{p}什么时候送到？",
        "{p}发货了吗？",
        "快递一直没把{p}送来。",
        "装{p}的快递丢了。",
        "{p}请六点以后送到家。",
        "{p}的收货地址能改吗？快递还没出库吧。",
        "{p}上周就该送到了。",
        "{p}走的是哪家快递？",
        "{p}的快递送错地方了。",
        "{p}今天能发货吗？",
        "{p}的物流三天没动了。",
        "等{p}等了好久，物流太慢了。",
    ),
    "invoice": (
        "我要开{p}的发票。",
        "请把{p}的发票发给我。",
        "没有收到{p}的发票。",
        "{p}的发票抬头写错了。",
        "{p}发票上的税号不对。",
        "公司买的{p}需要发票。",
        "{p}能开纸质发票吗？",
        "发票写了两台，我只买了一台{p}。",
        "{p}的发票什么时候开好？",
        "请重新寄一份{p}的发票。",
        "{p}有电子发票吗？",
    ),
    "usage": (
        "怎么清洗{p}的{part}？",
        "{p}的{part}多久洗一次？",
        "{p}亮红灯是什么意思？",
        "怎样拆下{p}的{part}？",
        "{p}的{part}能放进洗碗机吗？",
        "如何设置{p}的定时？",
        "{p}一晚上用多少电？",
        "睡觉时开着{p}安全吗？",
        "{p}用什么水比较好？",
        "怎么给{p}的{part}除垢？",
        "夏天{p}应该如何存放？",
        "{p}的{part}在哪个位置？",
        "{p}预热需要几分钟？",
        "小孩可以自己用{p}吗？",
        "怎样把{part}装回{p}上？",
        "{p}的{part}是什么材料？",
        "{p}开到最大声音有多响？",
        "{p}支持110伏的电压吗？",
    ),
}

EN_USAGE_TAIL = ("The manual is lost.", "Thank you.", "I have never done it before.", "I just unpacked it.",
                 "My mother wants to know.", "I am not sure.", "I could not find it in the manual.",
                 "It is my first one.", "My friend says it is easy.", "Just a short question.")  # fmt: skip
ZH_USAGE_TAIL = ("说明书丢了。", "谢谢。", "我以前没弄过。", "刚拆开包装。", "我妈想知道。", "有点拿不准。", "说明书里没找到。",
                 "第一次用这个。", "朋友说很简单。", "就问一下。")  # fmt: skip
