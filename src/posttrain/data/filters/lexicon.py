"""Words and phrases that ask for or describe serious harm. Kept moderate: requests, slurs, what has no other use.

Matched as whole words on text after NFKC and casefold, white space as one space. Chinese has no spaces, so its entries
must not arise across the border of two words: a common word for oral sex stands inside "crossing" + "traffic", and is left out.
Speaking about a subject (news, prevention, history, fiction) does no harm, so acts are listed as requests: every way of
asking with every act.
"""

from __future__ import annotations

_ASK = ("how to", "how do i", "how can i", "how do you", "ways to", "steps to", "instructions to", "teach me to")
_ACTS = (
    # weapons
    *("make a bomb", "make bombs", "build a bomb", "build bombs", "make a pipe bomb", "build a pipe bomb"),
    *("make explosives", "make a molotov cocktail", "make nerve gas", "make sarin", "make ricin"),
    # drugs
    *("cook meth", "make meth", "make crystal meth", "make methamphetamine", "make heroin", "sell drugs"),
    # violence
    *("kill someone", "murder someone", "kill my wife", "kill my husband", "poison someone", "kidnap someone"),
    *("dispose of a body", "hide a dead body", "plan a terrorist attack", "commit a mass shooting"),
    # self-harm
    *("kill myself", "commit suicide", "hang myself", "cut myself"),
    # crime
    *("steal a car", "rob a bank", "steal credit card numbers", "steal someone's identity"),
    *("make counterfeit money", "launder money", "write ransomware", "create ransomware"),
    *("hack someone's account", "hack into someone's account", "stalk someone", "blackmail someone"),
)
_ASK_ZH = ("如何", "怎么", "怎样", "教我", "教你", "告诉我")
_ACTS_ZH = (
    # weapons
    *("制作炸弹", "制造炸弹", "自制炸弹", "做炸弹", "制造炸药", "制作炸药", "制作燃烧瓶", "制造枪支", "制造毒气"),
    # drugs
    *("制造冰毒", "制作冰毒", "合成冰毒", "制造毒品", "制作毒品", "贩卖毒品"),
    # violence
    *("杀人", "毒死", "谋杀", "绑架", "分尸", "处理尸体", "策划恐怖袭击", "实施恐怖袭击"),
    # self-harm
    *("自杀", "割腕"),
    # crime
    *("盗取信用卡", "盗刷信用卡", "制造假币", "制作假币", "印假钞", "编写勒索软件"),
    *("盗取他人账号", "盗号", "抢银行", "骗保"),
)
_TERMS = (
    *("improvised explosive device instructions", "homemade explosives recipe"),
    # minors
    *("child porn", "child pornography download", "underage porn", "sex with a minor", "sex with minors"),
    *("sex with a child", "儿童色情下载", "幼女色情", "恋童癖资源"),
    # sexual
    *("blowjob", "cumshot", "gangbang", "hardcore porn", "肛交", "轮奸她", "强奸她", "成人视频下载"),
    # hate
    *("nigger", "niggers", "faggot", "faggots", "kike", "kikes", "gas the jews", "支那猪", "死基佬"),
)
LEXICON = (
    *_TERMS,
    *(f"{ask} {act}" for ask in _ASK for act in _ACTS),
    *(ask + act for ask in _ASK_ZH for act in _ACTS_ZH),
)
"""Every entry."""
