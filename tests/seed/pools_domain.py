"""Phrases for the domain text: the after-sales desk of a small-appliance shop, Blue Deer Home (蓝鹿家电).

Same block format as `pools_general`. `{product}`, `{part}` and `{fault}` come from `PRODUCTS` and keep one value per
document, so that a manual stays with its appliance.
"""

from __future__ import annotations

from typing import NamedTuple


class Product(NamedTuple):
    """An appliance: its names, and `a|b|c` lists of parts and of faults in both languages."""

    en: str
    zh: str
    en_part: str
    zh_part: str
    en_fault: str
    zh_fault: str


PRODUCTS: tuple[Product, ...] = (
    Product("kettle", "电水壶", "lid|base|spout filter|heating plate", "壶盖|底座|滤网|发热盘",
            "does not boil|leaks at the base|switches off too early", "烧不开水|底部漏水|提前断电"),
    Product("rice cooker", "电饭煲", "inner pot|steam valve|lid seal|power cord", "内胆|蒸汽阀|密封圈|电源线",
            "burns the rice|lets out no steam|shows error E3", "总是糊底|不出蒸汽|显示E3故障"),
    Product("air fryer", "空气炸锅", "basket|drawer handle|fan cover|timer knob", "炸篮|拉手|风扇罩|定时旋钮",
            "does not heat up|smells of plastic|makes a loud noise", "不加热|有塑料味|噪音很大"),
    Product("humidifier", "加湿器", "water tank|mist outlet|float|filter ring", "水箱|出雾口|浮子|滤芯",
            "gives no mist|drips on the table|blinks red", "不出雾|往桌上滴水|一直闪红灯"),
    Product("robot vacuum", "扫地机器人", "side brush|dust box|charging dock|wheel", "边刷|尘盒|充电座|轮子",
            "cannot find its dock|turns in circles|does not charge", "找不到充电座|原地打转|充不进电"),
    Product("fan", "电风扇", "blade|stand|speed button|front grille", "扇叶|支架|调速按钮|前网罩",
            "shakes badly|does not turn|clicks at low speed", "晃得厉害|不转了|低速时咔咔响"),
    Product("hair dryer", "吹风机", "nozzle|air inlet|cool button|hanging loop", "风嘴|进风口|冷风键|挂环",
            "blows only cold air|gets too hot|stops after a minute", "只吹冷风|烫手|用一分钟就停"),
    Product("blender", "搅拌机", "jug|blade unit|rubber ring|motor base", "杯体|刀组|橡胶圈|电机座",
            "does not spin|leaks from the jug|smells burnt", "刀头不转|杯底渗水|有焦味"),
    Product("toaster", "烤面包机", "crumb tray|lever|slot|browning dial", "接屑盘|压杆|面包槽|火力旋钮",
            "does not stay down|toasts only one side|trips the fuse", "压不下去|只烤一面|一用就跳闸"),
    Product("steam iron", "蒸汽熨斗", "soleplate|spray button|water inlet|steam dial", "底板|喷雾键|注水口|蒸汽旋钮",
            "leaves brown spots|gives no steam|spits water", "留下黄斑|没有蒸汽|往外喷水"),
    Product("coffee maker", "咖啡机", "filter holder|glass jug|warming plate|drip tray", "滤杯|玻璃壶|保温板|接水盘",
            "does not pump water|brews too slowly|drips after use", "抽不上水|出咖啡太慢|用完还滴水"),
    Product("juicer", "榨汁机", "feed tube|strainer|pusher|pulp bin", "进料口|滤渣网|推料棒|渣桶",
            "jams all the time|shakes on the table|does not start", "老是卡住|在桌上乱跳|按了没反应"),
    Product("heater", "取暖器", "thermostat|foot|heating fin|tip switch", "温控器|底脚|散热片|防倒开关",
            "stays cold|turns itself off|has a broken foot", "一直不热|自己关机|底脚断了"),
    Product("desk lamp", "台灯", "arm|touch key|light panel|adapter", "灯臂|触摸键|灯板|适配器",
            "flickers at night|does not light up|cannot be dimmed", "晚上闪烁|不亮了|调不了亮度"),
    Product("dehumidifier", "除湿机", "water bucket|humidity sensor|rear filter|drain hose",
            "接水桶|湿度探头|后滤网|排水管", "collects no water|freezes inside|beeps without end",
            "不出水|里面结冰|响个不停"),
)  # fmt: skip

EN_DOMAIN: dict[str, str] = {
    "manual": """
- Read this page before you use the {product} for the first time.
- Place the {product} on a flat, dry table, {n} centimetres away from the wall.
- Check that the {part} is clean and sits firmly.
- Plug in the {product} and press the power button for {d} seconds.
- Never put the {part} of the {product} under running water while it is plugged in.
- After use, unplug the {product} and wipe the {part} with a soft cloth.
- The {part} can be washed by hand; the {part2} must stay dry.
- Let the {product} cool down for {n} minutes before you open it.
- Keep children away from the {part} during use.
- Use only the original {part} from Blue Deer Home.
- Chapter {d} of the manual explains how to change the {part}.
- A short beep means that the {product} is ready.
""",
    "trouble": """
- If the {product} {fault}, first unplug it and wait {n} minutes.
- Then check the {part}: it may be loose or dirty.
- In most cases, a {product} that {fault} only needs a clean {part}.
- Do not open the housing yourself; this ends the warranty.
- Hold the reset key for {d} seconds until the light turns green.
- When the {product} still {fault}, please ask the after-sales desk for a repair.
- Error E{d} means that the {part} of the {product} is not in place.
- Most customers solve this problem by cleaning the {part} and the {part2}.
- Take a short video of the fault, so that the specialist can see it.
- A worn {part} can be replaced in about {n} minutes.
""",
    "care": """
- Descaling keeps the {product} quiet and saves power.
- Mix {n} grams of citric acid with one litre of water for descaling.
- Clean the {part} of the {product} every {d} weeks.
- Rinse the {part} twice and let it dry in the air.
- Hard water leaves white scale on the {part}.
- Do not use a metal sponge on the {part} of the {product}.
- Before storing the {product}, empty it and roll up the cord.
- A new {part} for the {product} costs {n} yuan in our shop.
- Write the date of each descaling on the warranty card.
""",
    "returns": """
- The 7-day return policy of Blue Deer Home also covers the {product}.
- Within seven days, a {product} may be returned without giving a reason.
- After seven days, a {product} with a fault is repaired or exchanged.
- The {product} must be complete: box, manual, {part} and warranty card.
- A refund goes back to the card used for payment within {d} working days.
- We never promise a refund before a specialist has checked the {product}.
- Traces of use on the {part} are fine, but broken seals are not.
- For a return we need the order number, which is one letter and five digits.
- Stick the return label on the box of the {product} and call the courier.
- Example of an order number on the receipt: {code}.
""",
    "warranty": """
- The warranty of the {product} lasts {n} months from the date on the receipt.
- The {part} is a wearing part and has a warranty of {d} months.
- Damage by water or by a fall is not covered.
- Please keep the warranty card and the receipt together.
- An RMA number is given for every {product} that comes back to us.
- Example: RMA {code}, {product}, fault: {fault}.
- Under RMA {code} the {part} was replaced at no cost.
- The specialist checks the {product} and writes a repair slip.
- When a repair takes more than {n} days, you may choose an exchange.
- Outside the warranty, changing the {part} costs {n} yuan.
""",
    "delivery": """
- Orders placed before {clock} leave our warehouse on the same day.
- The delivery of a {product} takes {d} working days.
- Order {code} was packed at {clock} and handed to the courier.
- The courier note says: order {code}, one {product}, {n} by {n2} centimetres.
- If the box is damaged, please take a photo before you sign.
- Order {code} was split into {d} parcels because the {part} is sent apart.
- You can change the address until the {product} has left the warehouse.
- Delivery is free for every order over {n} yuan.
- When nobody is at home, order {code} waits at the pick-up point for {d} days.
""",
    "invoice": """
- An invoice for the {product} is sent by e-mail within {d} days.
- To get an invoice, tell the desk the order number and the company name.
- The invoice of order {code} shows the {product} and the delivery fee.
- A wrong title on an invoice can be corrected once, within {n} days.
- The tax number must be written without spaces.
- Record: {{"order": "{code}", "item": "{product}", "invoice": null}}.
- After the correction of order {code}, the old invoice is no longer valid.
""",
    "desk": """
- The after-sales desk of Blue Deer Home is open from {clock} on weekdays.
- The desk answers with three things: intent, order number and a short reply.
- A good reply is short, polite and says what happens next.
- The desk does not begin with long thanks; it answers at once.
- If the order number is missing, the desk asks for it.
- A customer wrote: "My {product} {fault}."
- The desk answered: "Please send us the order number, then we will check it."
- The customer gave order number {code}, and the desk opened a repair slip for order {code}.
- Trade-in: an old {product} is worth {n} yuan when you buy a new one.
- The specialist found that the {part} was the cause.
""",
}

ZH_DOMAIN: dict[str, str] = {
    "manual": """
- 第一次使用{product}之前，请先阅读本页。
- 把{product}放在平稳干燥的桌面上，离墙{n}厘米。
- 检查{part}是否干净、是否装好。
- 插上电源，长按{product}的开关{d}秒。
- 通电时切勿用水冲洗{product}的{part}。
- 用完后拔掉电源，用软布擦拭{part}。
- {part}可以手洗，{part2}必须保持干燥。
- 等{product}冷却{n}分钟后再打开。
- 使用时请让儿童远离{part}。
- 请只使用蓝鹿家电的原装{part}。
- 说明书第{d}章介绍了怎样更换{part}。
- 听到一声短响，说明{product}已经准备好了。
""",
    "trouble": """
- 如果{product}{fault}，请先断电，等{n}分钟。
- 然后检查{part}，它可能松了或者脏了。
- {product}{fault}，多半是{part}需要清洁。
- 请不要自行拆开外壳，否则不再保修。
- 按住复位键{d}秒，直到指示灯变绿。
- 如果{product}还是{fault}，请联系售后申请返修。
- 出现E{d}，说明{product}的{part}没有装到位。
- 多数顾客清洁{part}和{part2}之后就能解决。
- 请拍一段故障视频，方便师傅判断。
- 磨损的{part}大约{n}分钟就能换好。
""",
    "care": """
- 定期除垢可以让{product}更安静、更省电。
- 除垢时，在一升水里放{n}克柠檬酸。
- {product}的{part}每{d}周清洗一次。
- {part}要冲洗两遍，再自然晾干。
- 水质偏硬时，{part}上会留下白色水垢。
- 不要用钢丝球擦{product}的{part}。
- 收纳{product}之前，先倒空再把电源线卷好。
- 店里一个新的{part}售价{n}元。
- 请把每次除垢的日期写在保修卡上。
""",
    "returns": """
- 蓝鹿家电的七天无理由退货同样适用于{product}。
- 七天之内，{product}可以不说明原因退货。
- 超过七天，{product}有故障的可以维修或换货。
- 退回的{product}要配件齐全：包装盒、说明书、{part}和保修卡。
- 退款会在{d}个工作日内原路退回。
- 师傅检测{product}之前，我们不会承诺退款。
- {part}有使用痕迹没关系，但封条不能损坏。
- 退货需要订单号，也就是一个字母加五位数字。
- 请把退货标签贴在{product}的箱子上，再叫快递上门。
- 小票上的订单号例如：{code}。
""",
    "warranty": """
- {product}的保修期是{n}个月，从小票日期算起。
- {part}属于易损件，保修{d}个月。
- 进水或摔坏不在保修范围内。
- 请把保修卡和小票放在一起保存。
- 每台寄回的{product}都会有一张返修单。
- 例如：返修单{code}，{product}，故障：{fault}。
- 返修单{code}已免费更换{part}。
- 师傅检测{product}之后会填写返修单。
- 如果维修超过{n}天，您可以选择换货。
- 过保以后，更换{part}收费{n}元。
""",
    "delivery": """
- {clock}之前下的订单，当天从仓库发货。
- {product}一般{d}个工作日送到。
- 订单{code}在{clock}打包，已交给快递员。
- 快递单上写着：订单{code}，{product}一台，{n}公斤。
- 如果外箱破损，请先拍照再签收。
- 订单{code}分成{d}个包裹，因为{part}单独寄出。
- {product}出库之前都可以修改地址。
- 满{n}元的订单免运费。
- 家里没人时，订单{code}会在自提点保留{d}天。
""",
    "invoice": """
- {product}的发票会在{d}天内发到邮箱。
- 开发票请告诉我们订单号和公司名称。
- 订单{code}的发票上有{product}和运费。
- 发票抬头写错了，{n}天内可以更正一次。
- 税号中间不要有空格。
- 记录：{{"order": "{code}", "item": "{product}", "invoice": null}}。
- 订单{code}更正以后，旧发票作废。
""",
    "desk": """
- 蓝鹿家电的售后服务台工作日{clock}上班。
- 客服的回答有三项：意图、订单号和一句回复。
- 好的回复简短、礼貌，并说明下一步。
- 客服不说长长的客套话，直接回答问题。
- 如果没有订单号，客服会请顾客提供。
- 有顾客写道：“我的{product}{fault}。”
- 客服回答：“请提供订单号，我们马上核实。”
- 顾客给了订单号{code}，客服就为订单{code}开了返修单。
- 以旧换新：旧的{product}可以抵{n}元。
- 师傅检查后发现，问题出在{part}上。
""",
}
