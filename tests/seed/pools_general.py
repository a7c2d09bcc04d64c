"""Everyday phrases for the general text: two shared blocks and thirty topics in English and Chinese.

A block is plain text. A line `slot: a|b|c` names a pool (the same slot again adds to it); a line `- ...` is one
sentence. `{slot}` takes a phrase from the topic's pool, else from the shared one; `{slot2}` takes another one of the
same pool. Slots in `make_seed.BOUND` keep one value for the whole document.
"""

from __future__ import annotations

EN_SHARED = """
name: Mei|Tom|Anna|Li Wei|Sara|Ben|Yuki|Omar|Nina|Peter|Lucy|Hugo|Clara|David|Rosa|Ivan|Emma|Jun|Paul|Lena|Max|Ada
who: my brother|my sister|the teacher|an old man|our neighbour|a young woman|the driver|her uncle|his friend|my cousin
who: the doctor|a student|their father|my aunt|a tall boy|the cook|a tourist|our grandmother|two children|the guide
when: In the morning|After lunch|Yesterday|Last week|On a cold day|Before dinner|At noon|Late at night|On Sunday
when: In early spring|One summer evening|During the holiday|Last winter|At six o'clock|Two days later|This year
day: Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday
month: January|March|April|May|June|July|August|October|November|December
city: Paris|Lisbon|Beijing|Osaka|Oslo|Cairo|Lima|Dublin|Vienna|Hanoi|Boston|Rome|Delhi|Quebec|Chengdu|Helsinki
place: the old bridge|the station|the small park|the main square|the harbour|the corner shop|the north gate
place: the school yard|the river bank|the tea house|the post office|the new theatre|the hill behind the village
mood: happy|tired|calm|curious|proud|hungry|surprised|nervous|cheerful|a little sad|full of hope|very busy
colour: red|blue|green|yellow|white|black|brown|grey|orange|purple|silver|golden
- {when}, {name} felt {mood} and went for a walk near {place}.
- {name} smiled and said, "This was a good day."
- {who} asked, "Can we come back on {day}?"
- Nobody wanted to go home before dark.
- It took about {n} minutes to walk from {place} to {place2}.
- {name} wrote everything down in a {colour} notebook.
- In the end, everyone was {mood}.
- They agreed to meet again at {place} on {day}.
- {who} had never seen anything like it before.
- The whole visit cost {n} coins, which was not much.
- Later, {name} told the story to {who}.
- {name} looked at the clock: it was {clock}.
- There were {n} people in front of {place} that day.
- {who} carried a {colour} bag and said nothing.
- Nothing special happened after that, but {name} was {mood}.
- "Look over there," said {name}, and pointed at {place}.
- Every year in {month}, many visitors come from {city}.
- A {colour} sign stood next to {place}.
"""

ZH_SHARED = """
name: 小梅|王芳|李伟|张强|陈静|刘洋|小林|赵敏|周杰|吴婷|孙浩|老高|郑爽|马丽|胡军|朱琳|何平|罗勇|谢云|小宋|唐宁
who: 我哥哥|她妹妹|老师|一位老人|邻居阿姨|一个年轻人|司机师傅|他叔叔|我的朋友|表姐|医生|一名学生|他们的父亲
who: 高个子男孩|厨师|几位游客|奶奶|两个孩子|导游|班长|爷爷|一位母亲
when: 早上|午饭后|昨天|上周|有一天|晚饭前|中午|深夜|星期天|初春时节|夏天的傍晚|放假期间|去年冬天|六点钟|两天以后
when: 今年|下雨那天|天刚亮的时候|周末
day: 星期一|星期二|星期三|星期四|星期五|星期六|星期日
month: 一月|三月|四月|五月|六月|七月|八月|十月|十一月|十二月
city: 北京|杭州|成都|广州|西安|南京|大连|昆明|苏州|厦门|武汉|青岛|长沙|桂林|洛阳|哈尔滨
place: 老桥边|火车站|小公园|中心广场|码头|街角的小店|市政厅|北门|操场|河岸|茶馆|邮局|新剧院|村后的小山|巷子口
mood: 高兴|疲倦|平静|好奇|自豪|饿|惊讶|紧张|兴奋|难过|开心|忙碌
colour: 红色|蓝色|绿色|黄色|白色|黑色|棕色|灰色|橙色|紫色|银色|金色
- {when}，{name}觉得很{mood}，就到{place}走了走。
- {name}笑着说：“今天过得真好。”
- {who}问：“我们{day}还能再来吗？”
- 天黑之前，谁也不想回家。
- 从{place}走到{place2}大约要{n}分钟。
- {name}把这些事都记在一本{colour}的本子上。
- 最后，大家都很{mood}。
- 他们约好{day}在{place}再见面。
- {who}以前从来没有见过这样的事。
- 这次一共花了{n}元，并不算贵。
- 后来，{name}把这个故事讲给{who}听。
- {name}看了看表，已经{clock}了。
- 那天，{place}有{n}个人在等。
- {who}背着一个{colour}的包，一句话也没说。
- 之后没有发生什么特别的事，不过{name}很{mood}。
- “你看那边。”{name}指着{place}说。
- 每年{month}，都有许多客人从{city}来。
- {place}旁边立着一块{colour}的牌子。
"""

EN_TOPICS: dict[str, str] = {
    "weather": """
wind: north wind|sea breeze|storm|warm wind|east wind|gale
sky: grey clouds|thin fog|bright sunshine|light rain|heavy snow|a clear blue sky|soft hail
- {when}, {sky} covered the hills around {city}.
- The {wind} blew all day and the trees bent low.
- The radio said the temperature would fall to {n} degrees.
- {name} closed the window because the {wind} was strong.
- By {clock}, {sky} had replaced {sky2}.
- Farmers were {mood}, since the fields needed water.
- Take a coat and an umbrella when you go to {city} in {month}.
""",
    "trains": """
size: small|tiny|quiet|sleepy|lonely
train: night train|local train|express train|mountain railway|goods train
part: ticket window|platform|dining car|waiting room|last carriage|signal box
- The {train} to {city} left the station at {clock}.
- {name} waited near the {part} with two suitcases.
- {who} slept for {n} minutes while the {train} crossed the plain.
- A guard walked from the {part} to the {part2} and checked the tickets.
- Because of snow, the {train} arrived {n} minutes late.
- From the window {name} saw rivers, tunnels and {size} villages.
- "Is this seat free?" asked {who}.
""",
    "cooking": """
food: tomato soup|fried rice|apple pie|bean stew|fish curry|onion bread|egg noodles|pumpkin porridge
item: salt|ginger|butter|garlic|sugar|pepper|vinegar|fresh herbs|sesame oil
tool: wooden spoon|sharp knife|deep pan|clay pot|round bowl
- {name} learned to make {food} from {who}.
- First wash the vegetables, then add {item} and {item2}.
- Stir slowly with a {tool} for {n} minutes.
- The {food} smelled of {item} and {item2}.
- If it tastes too plain, put in a little more {item}.
- Cover the {tool} and let the {food} rest until {clock}.
- {who} ate two plates of {food} and asked for more.
""",
    "library": """
book: atlas|novel|dictionary|book of poems|history of ships|guide to birds|biography|comic book
spot: reading room|second shelf|front desk|children's corner|quiet hall
- The library of {city} keeps more than {n} thousand books.
- {name} found a {colour} {book} in the {spot}.
- Readers may keep a {book} for {n} days.
- "Please speak softly," said the woman at the {spot}.
- {who} read the {book} until {clock}.
- Someone had left a letter inside the {book}.
- The {spot} smells of paper, dust and old wood.
""",
    "animals": """
colour: brown|grey|white|black|red
animal: fox|owl|rabbit|wolf|horse|turtle|squirrel|goat|swan|hedgehog|badger|crow
act: slept under a tree|drank from the stream|ran across the road|watched the moon|dug a hole|looked for seeds
- A {colour} {animal} {act}.
- {when}, {name} saw a {animal} near {place}.
- The {animal} and the {animal2} never meet, because one sleeps by day.
- A young {animal} weighs about {d} kilograms.
- {who} gave the {animal} some water, and then it {act}.
- In winter the {animal} grows thick {colour} hair.
- "Do not feed the {animal}," says the sign.
""",
    "river": """
colour: brown|grey|green|dark blue|yellow
boat: ferry|fishing boat|canoe|sailing boat|raft
thing: reeds|stones|wild ducks|small fish|willow trees|water lilies
- The river rises in the mountains and flows past {city}.
- {name} counted {n} {boat}s before sunset.
- Along the bank there are {thing} and {thing2}.
- A {boat} crosses the water every {n} minutes.
- After the rain the water turned {colour} and ran fast.
- {who} sat on the bank and looked at the {thing}.
- In {month} the river is so low that children walk across it.
""",
    "school": """
size: small|large|tiny|huge|perfect
subject: history|geography|chemistry|drawing|grammar|biology|arithmetic|music
item: pencil|ruler|map|blackboard|notebook|globe
- The {subject} lesson begins at {clock}.
- {name} forgot a {item} and borrowed one from {who}.
- There are {n} pupils in the class, and most of them like {subject}.
- The teacher drew a {size} circle and put down the {item}.
- "{subject2} is easier than {subject}," said {name}.
- After the exam, everyone felt {mood}.
- For homework, write {n} lines about {city}.
""",
    "music": """
tool: violin|piano|flute|drum|guitar|cello|trumpet|harp
song: an old folk song|a slow waltz|a lullaby|a sea song|a wedding march|a quiet melody
- {name} has played the {tool} for {n} years.
- {when}, the band played {song} at {place}.
- The {tool} starts softly and the {tool2} answers.
- {who} sang {song}, and the whole hall was silent.
- The concert in {city} ended at {clock}.
- A good {tool} is made of dry wood and needs care.
- {name} practises {song} every {day}.
""",
    "market": """
goods: apples|onions|melons|eggs|cherries|mushrooms|potatoes|honey jars|dried fish|lemons
seller: farmer's wife|fruit seller|baker|old fisherman|flower girl
- The market opens on {day} at {clock}.
- {name} bought {n} {goods} and a bag of {goods2}.
- "How much are the {goods}?" asked {who}.
- The {seller} put the {goods} on a wooden table.
- In {month} the {goods} are cheap and the {goods2} are dear.
- A {seller} called out prices until noon.
- {who} counted the change twice: {n} coins.
""",
    "hospital": """
staff: nurse|young doctor|dentist|surgeon|porter
illness: a cold|a broken arm|a high fever|a sore throat|back pain|a cough
- {name} went to the hospital because of {illness}.
- The {staff} told {who} to rest for {n} days.
- Visitors may come in from {clock}.
- "Breathe slowly," said the {staff}.
- {who} had {illness}, but it was not serious.
- The {staff} and the {staff2} work at night on {day}.
- Drink warm water and take the medicine {n} minutes after a meal.
""",
    "sport": """
game: football|tennis|basketball|table tennis|volleyball|ice hockey
role: goalkeeper|captain|coach|youngest player|referee
- The {game} match in {city} began at {clock}.
- {name} scored {n} points in the first half.
- The {role} shouted, and the team ran faster.
- {who} plays {game} every {day} after work.
- Rain stopped the game for {n} minutes.
- The {role} shook hands with the {role2}.
- Our team lost, but the {role} was {mood}.
""",
    "garden": """
size: small|large|heavy|round|flat
plant: roses|beans|sunflowers|tulips|carrots|grape vines|mint|cabbages|strawberries
tool: spade|watering can|rake|basket|pair of scissors
- {name} planted {plant} beside the {plant2}.
- Water the {plant} every {day}, but not at noon.
- {who} found a {size} stone while digging with a {tool}.
- In {month} the {plant} are ready, and bees visit the {plant2}.
- The {tool} hangs on a nail behind the door.
- About {n} {colour} butterflies flew over the {plant}.
- Good soil is dark, soft and a little wet.
""",
    "mountain": """
way: stony path|snow field|steep stair|rope bridge|pine forest
need: a warm blanket|dry socks|a lamp|a map|bread and cheese|a whistle
- The way to the top leads over a {way} and through a {way2}.
- {name} packed {need} and {need2}.
- At {clock} the group reached the {way}.
- The mountain is {n} hundred metres high.
- {who} slipped on the {way} but was not hurt.
- From the top you can see {city} on a clear day.
- Do not climb alone, and always carry {need}.
""",
    "post": """
mail: letter|parcel|postcard|small box|newspaper
stamp: bird|ship|king|flower|bridge
- {name} sent a {mail} to {who} in {city}.
- The stamp shows a {colour} {stamp}.
- A {mail} needs {n} days to reach {city}.
- The postman rides a {colour} bicycle and comes at {clock}.
- "There is a {mail} for you," called {who}.
- {who} collects stamps with a {stamp} or a {stamp2}.
- The {mail} was wet, but the writing was still clear.
""",
    "bakery": """
bread: rye bread|cherry cake|butter rolls|walnut bread|sweet buns|cheese pie
- The baker lights the oven at {clock}.
- {when}, the street smelled of {bread}.
- {name} ordered {n} boxes of {bread}.
- {who} likes {bread} more than {bread2}.
- The dough must rest for {n} minutes in a warm place.
- By noon the {bread} was sold out.
- "Fresh {bread}!" cried the boy at the door.
""",
    "sea": """
thing: shell|starfish|piece of amber|bottle|crab|smooth stone
sight: lighthouse|sand bank|white cliff|fishing village|small island
- {name} found a {thing} and a {thing2} on the beach.
- The {sight} stands {n} kilometres from {city}.
- At low tide you can walk to the {sight}.
- Waves broke against the {sight} all night.
- {who} swam for {n} minutes and came back {mood}.
- The {thing} was {colour} and quite beautiful.
- A captain watched the {sight} until {clock}.
""",
    "museum": """
object: stone lion|bronze bell|silk robe|clay horse|silver cup|wooden mask|old clock
age: hundred|thousand
- The museum shows a {object} that is two {age} years old.
- {name} drew the {object} in a notebook.
- Please do not touch the {object} or the {object2}.
- The hall with the {object} closes at {clock}.
- {who} came from {city} only to see the {object}.
- Scientists found the {object} under {place}.
- A guide told {n} visitors the story of the {object}.
""",
    "painting": """
motif: a sleeping cat|a bowl of pears|a stormy sea|an old farmer|a winter street|two dancers
- {name} painted {motif} in {colour} and {colour2}.
- The picture of {motif} hangs near {place}.
- {who} needed {n} days to finish the picture of {motif}.
- First draw light lines, then mix {colour} with a little {colour2}.
- {who} looked at {motif} and felt {mood}.
- The gallery in {city} bought the picture in {month}.
""",
    "cinema": """
film: a film about pirates|a love story|a film about the moon|a silent comedy|a detective story
- The cinema in {city} showed {film} on {day}.
- {name} laughed so loudly that {who} turned around.
- The show starts at {clock} and lasts {n} minutes.
- {who} liked {film} better than {film2}.
- Two tickets and some nuts cost {n} coins.
- When the lights went out, {name} was {mood}.
""",
    "bicycle": """
part: brake|chain|front wheel|saddle|bell|lamp
- {name} repaired the {part} of a {colour} bicycle.
- {when}, {who} rode {n} kilometres to {city}.
- Check the {part} and the {part2} before a long ride.
- The {part} made a strange noise on the hill.
- A {colour} bicycle stood against the wall of {place}.
- {who} learned to ride in {month}, near {place}.
""",
    "stars": """
colour: white|yellow|silver|red|pale blue|golden
body: moon|evening star|comet|north star|bright planet
- {when}, the {body} stood above {place}.
- {name} looked at the {body} through a long telescope.
- The light of the {body} was {colour}.
- Sailors used the {body} to find the way to {city}.
- {who} counted {n} falling stars before {clock}.
- "Is the {body} farther away than the {body2}?" asked {name}.
""",
    "farm": """
animal: cows|sheep|hens|pigs|ducks|horses
crop: wheat|corn|barley|hay|rice|sugar beet
- The farm near {city} keeps {n} {animal} and a few {animal2}.
- {name} gets up at {clock} to feed the {animal}.
- In {month} the whole family brings in the {crop}.
- {who} drove a {colour} tractor through the {crop}.
- The {animal} stayed inside because of the rain.
- A bag of {crop} weighs {n} kilograms.
""",
    "festival": """
show: lantern parade|boat race|puppet play|fire dance|kite contest
- The {show} in {city} takes place every {month}.
- {name} wore a {colour} hat and joined the {show}.
- After the {show}, there was a {show2} at {place}.
- {who} sold {n} paper lanterns before {clock}.
- Children ran behind the drums and felt {mood}.
- The {show} was short, because it began to rain.
""",
    "family": """
dish: dumplings|roast potatoes|a large fish|plum cake|lentil soup
- On {day} the whole family ate {dish} together.
- {name} is {n} years old and lives near {place}.
- {who} brought {dish} and told a long joke.
- Grandfather keeps an old photograph of {city} on the wall.
- The baby slept until {clock}, and everybody was quiet.
- {name} washed the plates while {who} made tea.
""",
    "tea": """
tea: green tea|black tea|jasmine tea|mint tea|white tea
cup: porcelain cup|glass|small bowl|clay cup
- {who} drinks {tea} from a {cup} every morning.
- Pour hot water over the leaves and wait {n} minutes.
- The {tea} from {city} tastes a little sweet.
- {name} prefers {tea} to {tea2}.
- A {colour} {cup} stood on the table at {place}.
- They talked over {tea} until {clock}.
""",
    "airport": """
item: passport|suitcase|ticket|camera|winter coat
- The plane from {city} landed at {clock}.
- {name} lost a {item} between two flights.
- {who} waited {n} minutes for a {colour} suitcase.
- "May I see your {item}?" asked the officer.
- Fog closed the airport on {day}.
- From above, {city} looked small and quiet.
- {name} put the {item} next to the {item2}.
""",
    "clothes": """
size: small|large|long|short|heavy
wear: coat|scarf|pair of gloves|shirt|dress|pair of boots|straw hat
cloth: wool|cotton|silk|linen|leather
- The tailor made a {colour} {wear} of {cloth}.
- {name} bought a {wear} in {city} for {n} coins.
- The {wear} is too {size} for {who}.
- Wash {cloth} in cold water and dry it in the shade.
- {who} wore a {colour} {wear} and a {wear2}.
- {who} forgot the {wear} near {place}.
""",
    "chess": """
piece: queen|knight|rook|bishop|pawn
- {name} plays chess with {who} every {day}.
- The {piece} took the {piece2} after {n} moves.
- {who} thought for {n} minutes and moved the {piece}.
- "Your {piece} is in danger," whispered {name}.
- The final game in {city} ended at {clock}.
- The loser was {mood} and asked for another game.
""",
    "photos": """
view: a foggy street|the harbour at night|a laughing baby|a field of snow|an empty theatre
- {name} took {n} photographs of {view}.
- The best picture shows {view}.
- {who} prefers {view} to {view2}.
- The light was soft at {clock}, and the sky looked {colour}.
- A magazine in {city} printed the picture of {view}.
- Hold the camera still and wait until everyone is {mood}.
""",
    "bridge": """
stuff: stone|steel|wood|iron|brick
job: engineer|mason|painter|diver|crane driver
- The bridge near {city} is made of {stuff} and {stuff2}.
- An old plan shows that the bridge is {n} metres long.
- The {job} checked every bolt before {clock}.
- {who} works as a {job} and feels {mood}.
- Ships wait while the gate opens.
- In {month} the {job} and the {job2} began to repair the road.
""",
}

EN_CODES: dict[str, tuple[str, ...]] = {
    "trains": (
        "{name} had a ticket for train {code}.",
        "Train {code} stood at platform {d}.",
        'The speaker said: "Train {code} will leave at {clock}."',
        "So {name} got on train {code} and found seat {room}.",
    ),
    "library": (
        "{name} borrowed book no. {code}.",
        "Book {code} must be back on {day0}.",
        'The card says: {{"book": "{code}", "reader": "{name}", "day": "{day0}"}}.',
        "On {day0}, {name} returned book {code}.",
    ),
    "post": (
        "The parcel has the number {code}.",
        'The clerk asked, "Which number?" {name} answered, "{code}."',
        "Parcel {code} was kept in box {room}.",
        "At {clock}, {name} signed for parcel {code}.",
    ),
    "museum": (
        "The oldest object has the mark {code}.",
        "In the catalogue, {code} means: found near {city} (room {room}).",
        "{name} asked for object {code}.",
        "Object {code} was shown in room {room}.",
    ),
    "hospital": (
        "{name} took the waiting number {code}.",
        'At {clock} the screen said: "{code}, room {room}."',
        "With number {code}, {name} went to room {room}.",
        'Note: {{"patient": "{name}", "number": "{code}", "room": {room}}}.',
    ),
    "airport": (
        "Flight {code} goes to {city0}.",
        "The board shows: {code} | {city0} | {clock} | gate {d}.",
        "{name} ran, because flight {code} was boarding.",
        "Flight {code} left on time.",
    ),
    "school": (
        "{name} has the pupil number {code}.",
        "Write the number {code} at the top of the page.",
        'List: {{"name": "{name}", "number": "{code}", "class": {d}}}.',
        "The teacher read out {code}, and {name} stood up.",
    ),
    "cinema": (
        "The ticket code is {code}.",
        "{name} showed the code {code} at the door.",
        "Code {code} is good for seat {room}.",
        'Ticket: {{"code": "{code}", "seat": {room}, "time": "{clock}"}}.',
    ),
    "bicycle": (
        "The rented bicycle has the number {code}.",
        "{name} unlocked bicycle {code} near {place}.",
        "Bicycle {code} came back at {clock}.",
        "The list said: {code} (returned, {n} minutes).",
    ),
    "farm": (
        "One of the animals wears the ear tag {code}.",
        "{name} looked for the animal with tag {code}.",
        "Tag {code} was found near {place}.",
        'Record: {{"tag": "{code}", "weight": {n}, "note": null}}.',
    ),
    "sport": (
        "{name} ran with the start number {code}.",
        "Number {code} finished in {n} minutes.",
        'The speaker called, "Number {code}, please come to {place}."',
        "The prize went to number {code}.",
    ),
    "sea": (
        "The ship has the sign {code} on its side.",
        "{name} wrote in the log: {code}, {n} people on board.",
        "Ship {code} reached the harbour at {clock}.",
        'Log: {{"ship": "{code}", "from": "{city}", "cargo": null}}.',
    ),
}

ZH_TOPICS: dict[str, str] = {
    "weather": """
wind: 北风|海风|暴风|暖风|东风|台风
sky: 乌云|薄雾|阳光|细雨|大雪|冰雹|晚霞
- {when}，{city}的上空满是{sky}。
- {wind}刮了一整天，树枝都弯了腰。
- 广播里说，气温将降到{n}度。
- {name}关上窗户，因为{wind}太大了。
- 到了{clock}，{sky}散去，又来了{sky2}。
- 农民们很{mood}，因为田里正缺水。
- {month}去{city}，最好带上外套和雨伞。
""",
    "trains": """
train: 夜车|慢车|快车|山区小火车|货车
part: 售票口|站台|餐车|候车室|最后一节车厢
- 开往{city}的{train}在{clock}离站。
- {name}提着两个箱子在{part}等车。
- {train}穿过平原时，{who}睡了{n}分钟。
- 列车员从{part}走到{part2}，一张一张地检票。
- 因为下雪，{train}晚点了{n}分钟。
- {name}从车窗看见河流、隧道和许多村庄。
- “这个座位有人吗？”{who}问。
""",
    "cooking": """
food: 番茄汤|蛋炒饭|苹果派|红烧豆腐|鱼香茄子|葱花饼|鸡蛋面|南瓜粥
item: 盐|生姜|黄油|大蒜|白糖|胡椒|醋|香菜|芝麻油|酱油
tool: 木勺|菜刀|深锅|砂锅|圆碗
- {name}跟{who}学会了做{food}。
- 先把菜洗净，再放入{item}和{item2}。
- 用{tool}慢慢搅拌{n}分钟。
- {food}里有{item}和{item2}的香味。
- 如果味道太淡，可以再加一点{item}。
- 盖上盖子，让{food}焖到{clock}。
- {who}吃了两盘{food}，还想再要。
""",
    "library": """
book: 地图册|小说|词典|诗集|航海史|鸟类图鉴|传记|漫画
spot: 阅览室|第二排书架|前台|儿童角|自习厅
- {city}的图书馆有{n}万多册藏书。
- {name}在{spot}找到一本{colour}的{book}。
- 每本{book}可以借{n}天。
- “请小声一点。”{spot}的管理员说。
- {who}读那本{book}，一直读到{clock}。
- 有人把一封信夹在{book}里忘了拿走。
- {spot}里有纸张、灰尘和旧木头的气味。
""",
    "animals": """
colour: 棕色|灰色|白色|黑色|红色
animal: 狐狸|猫头鹰|兔子|狼|马|乌龟|松鼠|山羊|天鹅|刺猬|猴子|乌鸦
act: 在树下睡觉|在溪边喝水|跑过马路|望着月亮|在挖洞|寻找种子
- 有只{colour}的{animal}{act}。
- {when}，{name}在{place}看见了{animal}。
- {animal}和{animal2}很少碰面，因为一个白天睡觉。
- 小{animal}大约有{d}公斤重。
- {who}给{animal}喂了些水，后来它{act}。
- 到了冬天，{animal}会长出厚厚的毛。
- 牌子上写着：“请勿投喂{animal}。”
""",
    "river": """
colour: 黄色|棕色|绿色|深蓝色|灰色
boat: 渡船|渔船|独木舟|帆船|竹筏
thing: 芦苇|鹅卵石|野鸭|小鱼|柳树|荷花
- 这条河从山里流出，经过{city}。
- 日落之前，{name}数到了{n}条{boat}。
- 岸边有{thing}，还有{thing2}。
- {boat}每隔{n}分钟过一次河。
- 雨后河水变成了{colour}，流得很急。
- {who}坐在岸上看{thing}。
- {month}水很浅，孩子们可以蹚水过去。
""",
    "school": """
subject: 历史|地理|化学|美术|语文|生物|算术|音乐
item: 铅笔|尺子|地图|黑板|练习本|地球仪
- {subject}课{clock}开始。
- {name}忘了带{item}，只好向{who}借。
- 班里有{n}个学生，多数人喜欢{subject}。
- 老师画了一个圆，然后放下{item}。
- “{subject2}比{subject}容易。”{name}说。
- 考试结束后，大家都很{mood}。
- 今天的作业是写{n}行字，介绍{city}。
""",
    "music": """
tool: 小提琴|钢琴|笛子|鼓|吉他|大提琴|小号|竖琴|二胡
song: 一首老民歌|一支慢圆舞曲|摇篮曲|一首渔歌|婚礼进行曲|一段安静的旋律
- {name}学{tool}已经{n}年了。
- {when}，乐队在{place}演奏了{song}。
- {tool}轻轻响起，{tool2}跟着回应。
- {who}唱了{song}，全场鸦雀无声。
- {city}的音乐会{clock}结束。
- 好的{tool}用干燥的木头做成，需要爱护。
- 每到{day}，{name}都练习{song}。
""",
    "market": """
goods: 苹果|洋葱|西瓜|鸡蛋|樱桃|蘑菇|土豆|蜂蜜|鱼干|柠檬|豆角
seller: 农妇|卖水果的大叔|面包师|老渔夫|卖花姑娘
- 集市{day}{clock}开门。
- {name}买了{n}斤{goods}和一袋{goods2}。
- “{goods}怎么卖？”{who}问道。
- {seller}把{goods}摆在木桌上。
- {month}里{goods}便宜，{goods2}却很贵。
- {seller}一直吆喝到中午。
- {who}把零钱数了两遍，一共{n}元。
""",
    "hospital": """
staff: 护士|年轻的医生|牙医|外科大夫|护工
illness: 感冒|手臂骨折|发高烧|喉咙痛|腰疼|咳嗽
- {name}因为{illness}去了医院。
- {staff}让{who}休息{n}天。
- 探病时间从{clock}开始。
- “慢慢呼吸。”{staff}说。
- {who}{illness}，不过并不严重。
- {day}晚上由{staff}和{staff2}值班。
- 多喝温水，饭后{n}分钟再吃药。
""",
    "sport": """
game: 足球|网球|篮球|乒乓球|排球|冰球|羽毛球
role: 守门员|队长|教练|最年轻的队员|裁判
- {city}的{game}比赛{clock}开始。
- {name}上半场得了{n}分。
- {role}大喊一声，队员们跑得更快了。
- {who}每个{day}下班后都打球。
- 比赛因为下雨停了{n}分钟。
- {role}跟{role2}握了握手。
- 我们队输了，但是{role}很{mood}。
""",
    "garden": """
plant: 玫瑰|豆苗|向日葵|郁金香|胡萝卜|葡萄藤|薄荷|白菜|草莓|菊花
tool: 铁锹|水壶|耙子|竹篮|剪刀
- {name}在{plant}旁边种了{plant2}。
- {day}要给{plant}浇水，但别在正午浇。
- {who}用{tool}翻土时挖到一块石头。
- {month}，{plant}成熟了，蜜蜂飞到{plant2}上。
- {tool}挂在门后的钉子上。
- 大约{n}只{colour}的蝴蝶从{plant}上飞过。
- 好的泥土又黑又软，还有一点湿。
""",
    "mountain": """
way: 石子路|雪坡|陡峭的台阶|吊桥|松林
need: 毛毯|干袜子|手电筒|地图|面包和奶酪|哨子
- 上山要走过{way}，再穿过{way2}。
- {name}带上了{need}和{need2}。
- {clock}，队伍到达了{way}。
- 这座山有{n}百米高。
- {who}在{way}上滑了一跤，没有受伤。
- 天气晴朗时，在山顶能望见{city}。
- 不要独自爬山，并且一定要带{need}。
""",
    "post": """
mail: 信|包裹|明信片|小盒子|报纸
stamp: 小鸟|轮船|国王|花朵|大桥
- {name}给住在{city}的朋友寄了{mail}。
- 邮票上画着{colour}的{stamp}。
- {mail}寄到{city}需要{n}天。
- 邮递员骑着{colour}的自行车，{clock}到。
- “有你的{mail}！”{who}喊道。
- {who}收集印着{stamp}和{stamp2}的邮票。
- {mail}湿了，不过字迹还很清楚。
""",
    "bakery": """
bread: 黑麦面包|樱桃蛋糕|奶油卷|核桃面包|豆沙包|芝士派|肉松饼
- 面包师{clock}就点起了烤炉。
- {when}，整条街都是{bread}的香味。
- {name}订了{n}盒{bread}。
- 比起{bread2}，{who}更喜欢{bread}。
- 面团要在温暖的地方放{n}分钟。
- 不到中午，{bread}就卖完了。
- “新鲜的{bread}！”门口的男孩喊。
""",
    "sea": """
thing: 贝壳|海星|琥珀|漂流瓶|螃蟹|光滑的石头
sight: 灯塔|沙洲|白色悬崖|渔村|小岛
- {name}在沙滩上捡到了{thing}和{thing2}。
- {sight}离{city}有{n}公里。
- 退潮的时候可以走到{sight}。
- 整夜都有海浪拍打着{sight}。
- {who}游了{n}分钟，回来时很{mood}。
- 那个{thing}是{colour}的，非常漂亮。
- 船长望着{sight}，一直望到{clock}。
""",
    "museum": """
object: 石狮|铜钟|丝绸长袍|陶马|银杯|木面具|古瓷瓶
age: 百|千
- 博物馆里有一件两{age}年前的{object}。
- {name}把{object}画在本子上。
- 请不要触摸{object}和{object2}。
- 摆放{object}的展厅{clock}关门。
- {who}从{city}赶来，只为看一眼{object}。
- 科学家在{place}发现了这件{object}。
- 讲解员给{n}位观众讲了{object}的故事。
""",
    "painting": """
motif: 睡着的猫|一盘梨|暴风雨中的海|一位老农|冬天的街道|两个跳舞的人
- {name}用{colour}和{colour2}画了{motif}。
- 那幅《{motif}》挂在{place}附近。
- {who}花了{n}天才画完{motif}。
- 先画轻轻的线条，再把{colour}和{colour2}调在一起。
- {who}看着{motif}，心里很{mood}。
- {city}的画廊在{month}买下了这幅画。
""",
    "cinema": """
film: 海盗片|爱情片|登月的电影|无声喜剧|侦探片
- {day}，{city}的影院放映了一部{film}。
- {name}笑得太大声，{who}回头看了看。
- 电影{clock}开始，放{n}分钟。
- {who}觉得{film}比{film2}好看。
- 两张票加一包花生花了{n}元。
- 灯光暗下来时，{name}很{mood}。
""",
    "bicycle": """
part: 刹车|链条|前轮|车座|铃铛|车灯
- {name}修好了那辆{colour}自行车的{part}。
- {when}，{who}骑了{n}公里到{city}。
- 骑远路之前，先检查{part}和{part2}。
- 上坡时，{part}发出奇怪的声音。
- 一辆{colour}的自行车靠在{place}的墙上。
- {who}是{month}在{place}学会骑车的。
""",
    "stars": """
colour: 白色|黄色|银色|红色|淡蓝色|金色
body: 月亮|金星|彗星|北极星|木星
- {when}，{body}升到了{place}的上空。
- {name}用望远镜观察{body}。
- {body}的光是{colour}的。
- 从前，水手靠{body}找到去{city}的路。
- {who}在{clock}之前数到了{n}颗流星。
- “{body}比{body2}更远吗？”{name}问。
""",
    "farm": """
animal: 奶牛|绵羊|母鸡|猪|鸭子|马
crop: 小麦|玉米|大麦|干草|水稻|甜菜
- {city}附近的农场养了{n}头牲口，还有一些{animal}。
- {name}{clock}起床去喂{animal}。
- {month}，全家人一起收{crop}。
- {who}开着{colour}的拖拉机穿过{crop}地。
- 因为下雨，{animal}都待在棚里。
- 一袋{crop}有{n}公斤重。
""",
    "festival": """
show: 灯会|龙舟赛|木偶戏|篝火舞会|风筝比赛|庙会
- 每年{month}，{city}都会举办{show}。
- {name}戴着{colour}的帽子去看{show}。
- {show}结束后，{place}还有{show2}。
- {who}在{clock}之前卖出了{n}个灯笼。
- 孩子们跟着鼓声跑，个个都很{mood}。
- 因为下雨，{show}很快就散了。
""",
    "family": """
dish: 饺子|烤土豆|一条大鱼|梅子糕|汤圆|炖排骨
- {day}，全家人一起吃{dish}。
- {name}今年{n}岁，住在{place}附近。
- {who}端来{dish}，还讲了一个长长的笑话。
- 爷爷把一张{city}的旧照片挂在墙上。
- 宝宝一直睡到{clock}，大家都不敢出声。
- {name}洗碗的时候，{who}泡了茶。
""",
    "tea": """
tea: 绿茶|红茶|茉莉花茶|薄荷茶|白茶|乌龙茶
cup: 瓷杯|玻璃杯|小碗|陶杯
- {who}每天早晨用{cup}喝{tea}。
- 用热水冲泡茶叶，等{n}分钟。
- {city}的{tea}尝起来有点甜。
- 比起{tea2}，{name}更爱喝{tea}。
- {place}的桌上放着一只{colour}的{cup}。
- 他们喝着{tea}，一直聊到{clock}。
""",
    "airport": """
item: 护照|行李箱|机票|相机|冬衣
- 从{city}来的飞机{clock}降落。
- {name}转机时丢了{item}。
- {who}等一个{colour}的箱子，等了{n}分钟。
- “请出示您的{item}。”工作人员说。
- {day}，大雾让机场关闭了半天。
- 从天上看，{city}又小又安静。
- {name}把{item}和{item2}放在一起。
""",
    "clothes": """
size: 大|小|长|短|厚|薄
wear: 件大衣|条围巾|双手套|件衬衫|条连衣裙|双靴子|顶草帽|件毛衣
cloth: 羊毛|棉布|丝绸|亚麻|皮革
- 裁缝用{colour}的{cloth}做了一{wear}。
- {name}在{city}花{n}元买了一{wear}。
- 对{who}来说，这{wear}太{size}了。
- {cloth}要用冷水洗，在阴凉处晾干。
- {who}得到了一{wear}，很{mood}。
- {who}把那{wear}忘在了{place}。
""",
    "chess": """
piece: 车|马|炮|象|兵
- {name}每个{day}都跟{who}下棋。
- 走了{n}步以后，{piece}吃掉了{piece2}。
- {who}想了{n}分钟，才移动了{piece}。
- “你的{piece}危险了。”{name}小声说。
- {city}的决赛{clock}结束。
- 输的人很{mood}，要求再下一盘。
""",
    "photos": """
view: 雾中的街道|夜晚的港口|大笑的婴儿|一片雪地|空空的剧场
- {name}给{view}拍了{n}张照片。
- 最好的一张拍的是{view}。
- 比起{view2}，{who}更喜欢{view}。
- {clock}的光线很柔和，颜色看起来偏{colour}。
- {city}的一家杂志登了这张{view}的照片。
- 拿稳相机，等到每个人都很{mood}再拍。
""",
    "bridge": """
stuff: 石头|钢材|木头|铁|砖
job: 工程师|石匠|油漆工|潜水员|吊车司机
- {city}附近的桥是用{stuff}和{stuff2}造的。
- 旧图纸上写着，这座桥长{n}米。
- {job}在{clock}之前检查了每颗螺丝。
- {who}是一名{job}，工作起来很{mood}。
- 闸门打开时，船都停下来等。
- {month}，{job}和{job2}开始一起修路。
""",
}

ZH_CODES: dict[str, tuple[str, ...]] = {
    "trains": (
        "{name}买了{code}次列车的票。",
        "{code}次列车停在{d}号站台。",
        "广播说：“{code}次列车{clock}发车。”",
        "于是{name}上了{code}次列车，找到{room}号座位。",
    ),
    "library": (
        "{name}借了编号{code}的书。",
        "编号{code}的书{day0}要还。",
        '借书卡上写着：{{"book": "{code}", "reader": "{name}", "day": "{day0}"}}。',
        "到了{day0}，{name}还了{code}这本书。",
    ),
    "post": (
        "包裹的单号是{code}。",
        "柜台问：“单号是多少？”{name}回答：“{code}。”",
        "{code}号包裹放在{room}号柜子里。",
        "{clock}，{name}签收了{code}号包裹。",
    ),
    "museum": (
        "最古老的展品编号是{code}。",
        "目录里写着，{code}：出土于{city}（{room}展厅）。",
        "{name}想看{code}号展品。",
        "{code}号展品就在{room}展厅。",
    ),
    "hospital": (
        "{name}取的号是{code}。",
        "{clock}，屏幕上显示：“{code}，{room}诊室。”",
        "{name}拿着{code}号去了{room}诊室。",
        '记录：{{"name": "{name}", "number": "{code}", "room": {room}}}。',
    ),
    "airport": (
        "{code}航班飞往{city0}。",
        "屏幕上写着：{code} | {city0} | {clock} | {d}号登机口。",
        "{name}跑了起来，因为{code}航班正在登机。",
        "{code}航班准时起飞了。",
    ),
    "school": (
        "{name}的学号是{code}。",
        "请把学号{code}写在第一行。",
        '名单：{{"name": "{name}", "number": "{code}", "class": {d}}}。',
        "老师念到{code}，{name}站了起来。",
    ),
    "cinema": (
        "取票码是{code}。",
        "{name}在门口出示了{code}。",
        "凭{code}可以坐{room}号座。",
        '电影票：{{"code": "{code}", "seat": {room}, "time": "{clock}"}}。',
    ),
    "bicycle": (
        "租来的自行车编号是{code}。",
        "{name}在{place}打开了{code}号车。",
        "{code}号车{clock}还了回来。",
        "表上写着：{code}（已还，{n}分钟）。",
    ),
    "farm": (
        "有一头牲口戴着{code}号耳标。",
        "{name}到处找戴{code}号耳标的那头。",
        "{code}号耳标掉在了{place}。",
        '登记：{{"tag": "{code}", "weight": {n}, "note": null}}。',
    ),
    "sport": (
        "{name}的参赛号码是{code}。",
        "{code}号用了{n}分钟跑完全程。",
        "广播喊道：“{code}号，请到{place}来。”",
        "奖品发给了{code}号。",
    ),
    "sea": (
        "船身上写着{code}。",
        "{name}在日志里写道：{code}，船上{n}人。",
        "{code}号船{clock}进了港。",
        '日志：{{"ship": "{code}", "from": "{city}", "cargo": null}}。',
    ),
}
