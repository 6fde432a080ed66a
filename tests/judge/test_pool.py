"""Judges ready to be asked: opened late and once, one budget, and a record of every session."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import build, parse_yaml
from posttrain.errors import ConfigError
from posttrain.generate import engines
from posttrain.generate.cache import RequestCache
from posttrain.generate.engine import Fingerprint
from posttrain.generate.fake import FakeEngine
from posttrain.judge.bias import bias_report
from posttrain.judge.config import JudgeConfig, JudgeSource, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import prompt_digest
from posttrain.judge.pool import JudgePool, judge_names
from posttrain.judge.prompts import load_prompt
from posttrain.stats.intervals import IntervalSettings
from servers import chat_body, name_of

PAIR, SINGLE = load_prompt("pair", "pair"), load_prompt("single", "single")
FEW = IntervalSettings(resamples=50)


def pairs(*names):
    return [Item(name, (f"{name}?",), ("long reply",), ("short",)) for name in names]


def first_always(body):
    return chat_body(name_of(body), "[[A]]")


class Silent:
    """Is told how far the judges are and keeps quiet."""

    def tick(self, label, done, total):
        """Nothing."""

    def note(self, text):
        """Nothing."""

    def record(self, record):
        """Nothing."""


@pytest.fixture
def judge_pool(tmp_path):
    """``judge_pool(source, ..., max_calls=...)``: a judge_pool whose answers and calls are kept in one folder, however often it is made."""
    opened = []

    def make(*sources, **config):
        cache = RequestCache(tmp_path / "requests.sqlite")
        opened.append(cache)
        return JudgePool(JudgeConfig(judges=sources, **config), cache, tmp_path / "judge.jsonl", Silent())

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def scripted(monkeypatch):
    """Engines by the server's model, and the names in the order they were opened."""
    scripts = {"a": lambda request: "[[A]]", "b": lambda request: "[[B]]", "seven": lambda request: "[[7]]"}
    scripted_engines = {name: FakeEngine(script, model=name) for name, script in scripts.items()}
    opened = []

    def open_source(source, *_):
        opened.append(source.model)
        return scripted_engines[source.model]

    monkeypatch.setattr(engines, "open_source", open_source)
    return scripted_engines, opened


def server_judge(model, url="http://127.0.0.1:9/v1"):
    return JudgeSource(endpoint=url, model=model)


def test_judges_are_opened_at_their_first_question_and_once(judge_pool, scripted):
    asked, opened = scripted
    with judge_pool(server_judge("a"), server_judge("b")) as judging:
        session = judging.session("chat")
        assert opened == []
        for names in ("x", "y"):
            first, second = session.ask(pairs(names), PAIR, Plan())
            assert (first.name, second.name) == ("a", "b")
            assert {judgment.value for judgment in first.judgments} == {"first"}
            assert {judgment.value for judgment in second.judgments} == {"second"}
        judging.session().ask(pairs("z"), PAIR, Plan())
    assert opened == ["a", "b"]
    assert len(asked["a"].requests) == 3 * 2


def test_a_record_is_of_its_session_alone(judge_pool, scripted):
    with judge_pool(server_judge("seven"), server_judge("a"), language="zh", check=False) as judging:
        other = judging.session()
        other.ask(pairs("elsewhere"), PAIR, Plan())
        session = judging.session()
        assert session.language == "zh"
        assert session.record() is None
        session.ask([Item("r", ("r?",), ("reply",))], SINGLE, Plan())
        asked = pairs("x", "y"), pairs("y")
        emphasised = Plan(emphasis="yes")
        judged = [session.ask(items, PAIR, plan) for items, plan in zip(asked, (Plan(), emphasised), strict=True)]
        record = session.record(FEW)
    one, two = record.judges
    assert (one.name, two.name) == ("seven", "a")
    assert one.fingerprint == Fingerprint("fake", "seven")
    assert one.prompts == two.prompts == (prompt_digest(SINGLE, Plan()), prompt_digest(PAIR, Plan()))
    assert one.calls.asked == two.calls.asked == 1 + 4 + 2
    assert one.calls.parsed == 1  # a rating is no verdict on a pair
    assert two.calls.missing == {"parse": 1}
    assert record.plan == judging.config.plan  # the session asked in two ways
    assert record.language == "zh"
    assert record.spent is None
    # the bias report is over all pairs of the session, each with its own items
    together = [*asked[0], *asked[1]]
    judgments = [*judged[0][1].judgments]
    judgments += [judgment._replace(ask=judgment.ask._replace(item=2)) for judgment in judged[1][1].judgments]
    assert record.bias["a"] == bias_report(
        together, judgments, settings=IntervalSettings(confidence=0.95, resamples=50, seed=0)
    )
    assert record.bias["a"].overall.orders.to_first.estimate == 1


def test_a_record_of_ratings_has_no_bias_of_order(judge_pool, scripted):
    with judge_pool(server_judge("seven")) as judging:
        session = judging.session()
        session.ask([Item("r", ("r?",), ("reply",))], SINGLE, Plan(samples=2))
        record = session.record(FEW)
    assert record.bias == {}
    assert record.plan.samples == 2
    empty = judging.session()
    empty.ask([], PAIR, Plan())
    assert empty.record() is None


def test_sessions_know_what_they_have_spent_also_after_a_restart(judge_pool, serve):
    server = serve(bodies=first_always, does=lambda name, attempt: "503" if attempt == 1 and "x?" in name else "answer")

    def both():
        found = []
        with judge_pool(server_judge("j", server.url)) as judging:
            for names in (("x",), ("y", "z")):
                session = judging.session()
                session.ask(pairs(*names), PAIR, Plan())
                found.append(session.record(FEW))
        return found

    first, second = both()
    assert first.spent.calls == 4  # both orders, each refused once
    assert second.spent.calls == second.spent.answers == 4
    assert len(server.asked) == 8
    again = both()
    assert len(server.asked) == 8
    assert [one.spent for one in again] == [first.spent, second.spent]
    assert [one.judges[0].calls.cached for one in again] == [2, 4]


def test_all_judges_of_a_room_share_one_cap(judge_pool, serve):
    server = serve(bodies=first_always)
    with judge_pool(server_judge("j", server.url), server_judge("k", server.url), max_calls=5) as judging:
        session = judging.session()
        session.ask(pairs("x"), PAIR, Plan())
        one, two = session.ask(pairs("y"), PAIR, Plan())
    # 2 + 2 of the first question, then one is left; a budget a judge would have sent 7
    assert len(server.asked) == 5
    failures = [
        judgment.value.detail.partition(":")[0]
        for judgment in (*one.judgments, *two.judgments)
        if judgment.value != "first"
    ]
    assert failures == ["budget"] * 3


def test_what_can_not_be_asked_is_told_before_anything_is_opened(judge_pool, scripted, tmp_path):
    _, opened = scripted
    with judge_pool(server_judge("a"), JudgeSource(reward="r")) as judging:
        with pytest.raises(ConfigError, match="a reward model judges pairs"):
            judging.session().ask([Item("r", ("r?",), ("reply",))], SINGLE, Plan())
        with pytest.raises(ConfigError, match="no place for criteria"):
            judging.session().ask(pairs("x"), PAIR, Plan(criteria="be kind"))
    with RequestCache(tmp_path / "other.sqlite") as cache:
        nobody = JudgePool(None, cache, tmp_path / "judge.jsonl", Silent())
        with nobody, pytest.raises(ConfigError, match="there is no judge"):
            nobody.session()
    assert opened == []


def test_judges_of_one_name_are_numbered():
    sources = (server_judge("m"), JudgeSource(local="m"), JudgeSource(gguf="m.gguf"))
    assert judge_names(sources) == ["m #1", "m #2", "m.gguf"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("judges: []", "judges: must be a list with at least 1 entry"),
        ("judges: [{endpoint: 'http://x/v1'}]", "judges.0: endpoint and model belong together"),
        ("judges: [{local: a, reward: b}]", "judges.0: one of endpoint, local, gguf and reward is needed"),
        ("judges: [{}]", "is needed, not none"),
        ("judges: [{local: a}]\nmax_calls: 3", "caps and prices are for servers"),
        ("judges: [{endpoint: 'http://u', model: m}]\nprompt_price: 1", "belong together"),
        ("judges: [{endpoint: 'http://u', model: m}]\nmax_money: 1", "a cap on money needs prices"),
        ("judges: [{gguf: f, concurency: 2}]", "did you mean 'concurrency'"),
        ("judges: [{local: a}]\nplan: {temperature: -1}", "plan.temperature: must be a number of at least 0"),
    ],
)
def test_a_recipe_names_what_is_wrong_with_its_judges(text, told):
    with pytest.raises(ConfigError) as caught:
        build(JudgeConfig, parse_yaml(text, "recipe.yaml"))
    assert told in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml:")


def test_a_recipe_may_name_every_kind_of_judge():
    text = """
    judges:
      - {endpoint: 'http://x/v1', model: m, concurrency: 4}
      - {gguf: judge.gguf, context: 4096, concurrency: 2}
      - {local: org/judge}
      - {reward: runs/r/train}
    plan: {orders: both, retry_cut: 2}
    max_calls: 10
    """
    config = build(JudgeConfig, parse_yaml(text, "recipe.yaml"))
    assert [source.kind for source in config.judges] == ["endpoint", "gguf", "local", "reward"]
    assert [source.name for source in config.judges] == ["m", "judge.gguf", "org/judge", "runs/r/train"]
    assert config.plan == Plan(retry_cut=2)


def test_a_gguf_judge_gets_its_room_and_is_closed(judge_pool, monkeypatch):
    from posttrain.generate import llamacpp

    made = []

    class Engine(FakeEngine):
        def __init__(self, path, context, slots):
            super().__init__(lambda request: "[[A]]", model=path.name)
            made.append((path, context, slots))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            made.append("closed")

    monkeypatch.setattr(llamacpp, "LlamaCppEngine", Engine)
    with judge_pool(
        JudgeSource(gguf="some/judge.gguf"), JudgeSource(gguf="b.gguf", context=512, concurrency=1)
    ) as judging:
        judged = judging.session().ask(pairs("x"), PAIR, Plan())
        assert [one.name for one in judged] == ["some/judge.gguf", "b.gguf"]
    assert made == [(Path("some/judge.gguf"), 8192, 4), (Path("b.gguf"), 512, 1), "closed", "closed"]
