"""Personal data: each type in Chinese and English, what only looks like it, and what holds for every row."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steps.lib import personal
from steps.lib.personal import LABELS, PLACEHOLDER, Personal, find, redact
from steps.lib.personal_records import redact_json, redact_raw
from steps.lib.personal_rows import redact_dropped, redact_rows
from steps.lib.phrases import special_token
from steps.lib.rows import Chat, Dropped, Message, Pair, Prompt, Text

CONFIG = Personal()
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePz\n" * 3
    + "-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

FOUND = [
    ("phone", "13912345678", "我的手机是{}，请尽快联系"),
    ("phone", "13912345678", "收件人李女士{}麻烦放门口"),
    ("phone", "139-1234-5678", "打{}找我"),
    ("phone", "139 1234 5678", "My number is {}, call after six."),
    ("phone", "+86 13912345678", "WhatsApp me at {}."),
    ("phone", "１３９１２３４５６７８", "电话{}谢谢"),
    ("phone", "13912345678-0421", "虚拟号{}有效一天"),
    ("phone", "010-62345678", "办公室{}转分机"),
    ("phone", "（0512）66668888", "座机{}"),
    ("phone", "66668888", "座机：{}，早九晚五"),
    ("phone", "(212) 867-5309", "Call {} after six."),
    ("phone", "212.867.5309", "or {} on weekdays"),
    ("phone", "867-5309", "Just call {} now."),
    ("phone", "539-3028", "Please contact Dave McCuan at {}."),
    ("phone", "07885 577 899", "Text us on {}"),
    ("phone", "+44 20 7946 0958", "London: {}, ask for Ann."),
    ("phone", "+852 2345 6789", "香港办公室{}"),
    ("email", "zhang.san@163.com", "发票发到{}谢谢"),
    ("email", "Ann_Lee+shop@mail.bigcorp.co.uk", "Write to {}."),
    ("email", "12345678＠qq．com", "邮箱{}"),
    ("cn_id", "11010519491231002X", "身份证{}已上传"),
    ("cn_id", "440308199901010012", "ID: {} (China)"),
    ("cn_id", "110105 19491231 002x", "证件号{}"),
    ("cn_id", "110105491231002", "身份证号：{}"),
    ("ssn", "536-22-1234", "My SSN is {}."),
    ("ssn", "536221234", "SSN: {}"),
    ("ssn", "536-22-1234", "他的美国社保号{}"),
    ("passport", "E12345678", "护照号{}"),
    ("passport", "EA1234567", "Passport number: {}"),
    ("bank_card", "6222021234567890128", "卡号{}退款"),
    ("bank_card", "6222 0212 3456 7890 128", "退到{}这张卡"),
    ("bank_card", "4539 1488 0343 6467", "Charged to {} twice."),
    ("bank_card", "371449635398431", "My Amex {} was charged."),
    ("iban", "GB82 WEST 1234 5698 7654 32", "Refund to {} please."),
    ("iban", "DE89370400440532013000", "退到{}"),
    ("ip", "52.12.33.4", "登录来自{}，不是我"),
    ("ip", "203.119.25.44", "Login from {} was not me."),
    ("ip", "2400:3200:baba::77", "Login from {} was not me."),
    ("address", "北京市海淀区中关村大街27号3号楼201室", "请送到{}，谢谢"),
    ("address", "广州市天河区体育西路103号", "收件{}"),
    ("address", "浙江省杭州市余杭区文一西路九百六十九号", "我在{}上班"),
    ("address", "解放路88号2单元301室", "我住在{}"),
    ("address", "350 Fifth Avenue, New York, NY 10118", "Ship it to {} by Monday."),
    ("address", "12B Baker Street", "I live at {}."),
    ("address", "742 Evergreen Terrace, Springfield, OR", "我的美国地址是 {}"),
    ("address", "P.O. Box 1234", "Use {} instead."),
    ("secret", "AKIAIOSFODNN7ABCDEFG", "密钥{}"),
    ("secret", "ghp_" + "a1B2c3D4" * 5, "token {} leaked"),
    ("secret", "sk-proj-abc123DEF456ghi789JKL", "我的key是{}"),
    ("secret", "xoxb-123456789012-abcdefABCDEF", "slack: {}"),
    ("secret", "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q", "maps={}"),
    ("secret", JWT, "Authorization: Bearer {}"),
    ("secret", PEM, "部署私钥：{}别外传"),
    ("secret", "f3a9c1d2e4b5a6978899aabbccddeeff", "client_secret = '{}'"),
    ("password", "abc12345", "密码：{}，登录不了"),
    ("password", "Tr0ub4dor&3", "password is {} and it fails"),
    ("password", "12345678", "wifi密码 {}"),
    ("password", "2468", "支付密码是{}"),
    ("password", "bob:hunter2", "git clone https://{}@git.bigcorp.com/x"),
    ("account", "zhangsan_88", "加微信：{}"),
    ("account", "lisiwang", "微信号：{}"),
    ("account", "zoe_2020", "My WeChat ID is {}."),
    ("account", "wxid_abc12345678", "{} 是我"),
    ("account", "123456789", "QQ：{}"),
    ("account", "123456789", "my QQ is {}"),
    ("plate", "京A12345", "车牌{}的车"),
    ("plate", "粤B·D12345", "停着一辆{}"),
    ("plate", "沪A12345", "The plate, 车牌 {}, is on the photo."),
]  # fmt: skip

LEFT = [
    "身份证110105194912310021",  # wrong check digit
    "编号110105194913310025",  # no month
    "卡号6222021234567890123",  # wrong check digit
    "订单6222021234567890128已发货",  # an order number that Luhn's check lets pass
    "Order number: 4539148803436467 has shipped.",
    "运单号13912345678在途中",
    "order_id: 13912345678",
    '{"order_number": "13912345678"}',
    "订单L39942、U40494，快递SF1234567890123",
    "Ref L32638. It was order F75853.",
    "拨打12345或10086，客服400-123-4567、95588",
    "Call 1-800-555-1234, or 911.",
    "手机号12012345678是空号",  # no such numbers
    "圆周率3.14159265358979，误差0.13912345678",
    "It costs $13912345678, or 13912345678元。",
    "84834150134 - 6778576 = -16666579378",
    "2024-01-15 10:30:00 到 2024/12/31，20240115103000123",
    "电话是2024-01-15 打的",
    "version 4.3.2.100, v10.2.33.4, Chrome/98.0.47.102, 版本5.12.200.7",
    "192.168.1.1 10.0.0.8 172.16.3.4 127.0.0.1 192.0.2.7 52.216.0.0/15 1.2.3.4",
    "第3.2.1.4节 12:30:45 2001:db8::1 fe80::1",
    "d41d8cd98f00b204e9800998ecf8427e 550e8400-e29b-41d4-a716-446655440000",
    "https://shop.com/item/13912345678?sku=4539148803436467",
    "icon@2x.png @app.route user@host git@github.com:a/b.git",
    "IMG_13912345678_2.jpg a13912345678b",
    "000-12-3456 666-12-3456 900-12-3456 123-00-4567 12-345-6789",
    "GB82 WEST 1234 5698 7654 33",
    "忘记密码怎么办？密码是什么？密码长度为6-20位，密码错误3次",
    "Password: required. The password is 8 characters. password = getpass1()",
    "我为您生成的密码是“8zs#^C2k”。",
    "Here is a randomly generated 8-character password: rT8$jLpZ.",
    "北京大学出版社，地铁2号线，5号楼，12号文件，3号门，走在路上",
    "第一大道上有3号展厅；公路107号标段",
    "罗比之家，5757 S. Woodlawn Ave, and 6263 Hollywood Boulevard.",
    "In 1999 Abbey Road sold well. A 2 TB External Hard Drive. The 9th Circuit Court.",
    "微信支付、微信公众号、QQ音乐、QQ2010",
    "已重新登记，新L39942；云S12345",
    "sk-learn-pipeline-with-many-words ghp_short token: abcdefghijklmnopqrstuvwxyz",
    "She walked 5 miles on 12 March to Main Street.",
    "passport: see page 12345",
    "Call for prices of 850-894 mhz, 2007-2016, and # 1139010.",
]

NOBODYS = [
    "ann@example.com", "a@b.example.org", "x@shop.test", "+1 212 555 0123", "(212) 555-0199", "13800138000",
    "4111 1111 1111 1111", "IP 8.8.8.8", "114.114.114.114", "078-05-1120", "AKIAIOSFODNN7EXAMPLE",
]  # fmt: skip


def clean(*texts: str, config: Personal = CONFIG) -> list[str]:
    return redact([texts], config)[0].texts


@pytest.mark.parametrize(("kind", "value", "frame"), FOUND)
def test_what_is_personal_is_replaced_by_its_type(kind: str, value: str, frame: str) -> None:
    done = redact([[frame.format(value)]], CONFIG)[0]
    assert done.texts == [frame.format(f"<{LABELS[kind]}_1>")]
    assert done.counts == {kind: 1} and done.finding is None


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact([[text]], CONFIG)[0].texts == [text], find(text, LABELS)


@pytest.mark.parametrize("value", NOBODYS)
def test_values_of_nobody_stay_unless_asked_for(value: str) -> None:
    text = f"例如 {value} 。"
    assert clean(text) == [text]
    assert value not in clean(text, config=Personal(fictional=True))[0]


@pytest.mark.parametrize("kind", LABELS)
def test_a_type_that_is_kept_is_not_looked_for(kind: str) -> None:
    for own, value, frame in FOUND:
        if own == kind:
            text = frame.format(value)
            assert not [hit for hit in find(text, Personal(**{kind: "keep"}).looked_for()) if hit.kind == kind]
            assert f"<{LABELS[kind]}_" not in clean(text, config=Personal(**{kind: "keep"}))[0]


def test_names_are_off_and_can_be_switched_on() -> None:
    texts = ["收货人：欧阳小明，我叫李华。", "My name is Ann Lee. Ask Dr. Brown, or Ann Lee."]
    assert clean(*texts) == texts
    named = clean(*texts, config=Personal(name="redact"))
    assert named == ["收货人：<NAME_1>，我叫<NAME_2>。", "My name is <NAME_3>. Ask Dr. <NAME_4>, or <NAME_3>."]


def test_equal_values_have_equal_placeholders_all_over_a_row() -> None:
    assert clean("13812345678/13712345678、13612345678") == ["<PHONE_1>/<PHONE_2>、<PHONE_3>"]
    done = redact(
        [
            [
                "我的电话13912345678，邮箱Ann@Bigcorp.com",
                "再说一遍：+86 139-1234-5678",
                "１３９１２３４５６７８？ 13812345678",
                "ann@bigcorp.com",
            ]
        ],
        CONFIG,
    )[0]
    assert done.texts == [
        "我的电话<PHONE_1>，邮箱<EMAIL_1>",
        "再说一遍：<PHONE_1>",
        "<PHONE_1>？ <PHONE_2>",
        "<EMAIL_1>",
    ]
    assert done.counts == {"phone": 4, "email": 2}


def test_what_was_found_once_is_replaced_everywhere_in_the_row() -> None:
    assert clean("密码：abc12345", "abc12345 不对", "xabc12345y", "订单号13912345678", "电话13912345678") == [
        "密码：<PASSWORD_1>", "<PASSWORD_1> 不对", "x<PASSWORD_1>y", "订单号<PHONE_1>", "电话<PHONE_1>",
    ]  # fmt: skip
    assert clean("支付密码是2468", "花了12468元") == ["支付密码是<PASSWORD_1>", "花了12468元"]


def test_a_placeholder_that_is_there_already_is_not_given_to_another() -> None:
    assert clean("<PHONE_1>和<PHONE_3>", "13912345678") == ["<PHONE_1>和<PHONE_3>", "<PHONE_4>"]


def test_placeholders_are_no_special_tokens() -> None:
    assert all(
        PLACEHOLDER.fullmatch(f"<{label}_12>") and not special_token(f"<{label}_12>") for label in LABELS.values()
    )


def test_json_stays_json() -> None:
    answer = '{"phone": 13912345678, "more": [1], "reply": "请打\\n13912345678", "inner": "{\\"tel\\": 13912345678}"}'
    parsed = json.loads(clean(answer)[0])
    assert parsed == {
        "phone": "<PHONE_1>", "more": [1], "reply": "请打\n<PHONE_1>", "inner": '{"tel": "<PHONE_1>"}',
    }  # fmt: skip
    assert json.loads(parsed["inner"]) == {"tel": "<PHONE_1>"}


def test_drop_drops_the_row_and_says_types_only() -> None:
    done = redact([["身份证11010519491231002X，电话13912345678"], ["你好"]], Personal(cn_id="drop"))
    assert done[0].finding == ("personal:cn_id", "phone 1, cn_id 1")
    assert done[0].texts == ["身份证<CN_ID_1>，电话<PHONE_1>"]
    assert done[1].finding is None and done[1].counts == {}


@pytest.mark.parametrize("value", ["remove", True, 1])
def test_an_unknown_action_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Personal(phone=value)  # type: ignore[arg-type]


def test_a_record_is_redacted_at_any_depth_by_value_and_by_key() -> None:
    record = {
        "id": 7, "phone": 13912345678, "table": 13912345678.0, "ok": True, "none": None, "share": 0.5,
        "user": {"password": "letmein", "密码": "opensesame", "tokens": 512, "emails": ["a.b@bigcorp.com"]},
        "13812345678": "key", "said": ["letmein, please", "电话１３９１２３４５６７８"],
    }  # fmt: skip
    assert redact_json(redact_json(record, CONFIG), CONFIG) == redact_json(record, CONFIG)
    assert redact_json(record, CONFIG) == {
        "id": 7, "phone": "<PHONE_1>", "table": "<PHONE_1>", "ok": True, "none": None, "share": 0.5,
        "user": {"password": "<PASSWORD_1>", "密码": "<PASSWORD_2>", "tokens": 512, "emails": ["<EMAIL_1>"]},
        "<PHONE_2>": "key", "said": ["<PASSWORD_1>, please", "电话<PHONE_1>"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        '{"prompt": "电话13912345678", "answ',  # cut off
        '{"a": "13912345678", "a": "x"}',  # a key twice
        '{"a": "\\ud800 13912345678"}',  # half a character
        "\\u7535\\u8bdd13912345678",
        "prompt,13912345678,answer",
        "[" * 3000 + "13912345678",
        '{"a":' * 3000 + "13912345678" + "}" * 3000,
    ],
)
def test_a_raw_line_of_any_shape_is_redacted(raw: str) -> None:
    done = redact_raw(raw, CONFIG)
    assert "13912345678" not in done and "<PHONE_1>" in done
    assert redact_raw(done, CONFIG) == done
    done.encode()


def test_rows_keep_all_but_their_texts() -> None:
    turns = [Message(role="user", content="电话13912345678"), Message(role="assistant", content="好的，13912345678")]
    rows = [
        Text(id="a", lang="zh", text="没有什么"),
        Prompt(id="b", prompt="电话13912345678", facts='{"phone": "13912345678"}'),
        Chat(id="c", source="s", messages=turns),
        Pair(id="d", prompt=turns[:1], chosen=turns[1:], rejected=[Message(role="assistant", content="打13812345678")]),
    ]
    done = [row for row, _ in redact_rows(rows, CONFIG)]
    assert done[0] is rows[0]
    assert done[1] == Prompt(id="b", prompt="电话<PHONE_1>", facts='{"phone": "<PHONE_1>"}')
    assert [turn.content for turn in done[2].messages] == ["电话<PHONE_1>", "好的，<PHONE_1>"]  # type: ignore[attr-defined]
    assert done[2].source == "s" and [turn.role for turn in done[2].messages] == ["user", "assistant"]  # type: ignore[attr-defined]
    assert done[3].rejected[0].content == "打<PHONE_2>"  # type: ignore[attr-defined]


def test_a_dropped_row_holds_nothing_unless_it_is_to_be_kept_raw() -> None:
    row = Dropped(id="a", step="clean", reason="too_short", detail="seen: 13912345678", row='{"text": "13912345678"}')
    done = redact_dropped(row, CONFIG)
    assert "13912345678" not in done.model_dump_json() and json.loads(done.row) == {"text": "<PHONE_1>"}
    assert redact_dropped(row, Personal(keep_raw=True)) == row
    assert "13912345678" not in redact_dropped(row, Personal(phone="drop")).row


PIECES = st.sampled_from(
    [frame.format(value) for _, value, frame in FOUND]
    + LEFT
    + ["<PHONE_1>", "\n", '"', "订单号", "-", ".", " ", "12", "电话：", "password: ", "省", "路5号"]
)
ROWS = st.lists(st.lists(PIECES, min_size=1, max_size=5).map("".join), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_redacting_twice_is_redacting_once(texts: list[str]) -> None:
    once = clean(*texts)
    assert clean(*once) == once


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([one for one in FOUND if "\n" not in one[1]]), min_size=1, max_size=4),
    st.sampled_from(["，", "\n", "。", "; "]),
    st.integers(1, 3),
)
def test_no_value_survives_anywhere(planted: list[tuple[str, str, str]], gap: str, copies: int) -> None:
    text = gap.join(frame.format(value) for _, value, frame in planted)
    config = Personal(phone="drop", email="drop", secret="drop")
    done = redact([[text] * copies], config)[0]
    raw = redact_raw(json.dumps({"rows": [text] * copies}), CONFIG)
    for _, value, _ in planted:
        for output in (*done.texts, repr(done.finding), repr(done.counts), raw):
            assert value not in output


@settings(max_examples=20, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(1, 6))
def test_batches_change_nothing(rows: list[list[str]], size: int) -> None:
    whole = redact(rows, CONFIG)
    parts = [one for start in range(0, len(rows), size) for one in redact(rows[start : start + size], CONFIG)]
    assert whole == parts


@pytest.mark.parametrize(
    "text",
    ["1" * 100_000, "1-" * 50_000, "a@" * 10_000, "a.b" * 30_000 + "@", "区市省路" * 20_000 + "5号", "密码：" * 30_000, "eyJ" * 30_000,
     "5 Main " * 15_000, "+1 (" * 25_000, "-----BEGIN PRIVATE KEY-----" * 3_000, "1.2." * 25_000, "2001:" * 20_000, "\\n" * 50_000],
)  # fmt: skip
def test_nasty_text_costs_no_more_than_its_length(text: str) -> None:
    started = time.process_time()
    clean(text)
    assert time.process_time() - started < 5


def test_a_list_of_many_values_is_searched_as_one_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [
        f"{number}号 u{number}@mail.cn，139{10_000_000 + 37 * number}；x139{10_000_000 + 37 * number}y"
        for number in range(60)
    ]
    want = redact([few, ["\n".join(few)]], Personal())
    monkeypatch.setattr(personal, "MANY", 1)
    assert redact([few, ["\n".join(few)]], Personal()) == want
    assert want[1].counts == {"email": 60, "phone": 120}  # what was found once is replaced inside of other words, too


def test_addresses_on_the_web_hide_their_own_numbers_only() -> None:
    lines = [f"http://shop.cn/{13_900_000_000 + number} 和 139{10_000_000 + number}，" for number in range(40)]
    assert redact([["".join(lines)]], Personal())[0].counts == {"phone": 40}
