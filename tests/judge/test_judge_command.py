"""posttrain judge, end to end: a real server on loopback, files, tables, refusals; local and reward models."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from posttrain.config import build, parse_yaml
from posttrain.generate import engines
from posttrain.generate.fake import FakeEngine
from posttrain.judge.config import JudgeConfig
from posttrain.judge.parsers import PARSERS
from posttrain.judge.prompts import load_prompt
from posttrain.lab.one_stage import JUDGE_OPTIONS, judge_value


def read(out: Path):
    (stage,) = (path.parent for path in out.glob("*/verdicts.jsonl"))
    lines = [json.loads(line) for line in (stage / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.loads((stage / "summary.json").read_text(encoding="utf-8")), lines


def fair(body):
    """The server's model: prefers GOOD, as `perfect` does."""
    text = body["messages"][-1]["content"]
    first = text.split("<answer_a>")[1].split("</answer_a>")[0]
    return {
        "choices": [
            {"message": {"content": "Looked.\n[[A]]" if "GOOD" in first else "Looked.\n[[B]]"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4},
    }


@pytest.fixture
def scripted(monkeypatch):
    """``scripted(script)``: the judge that every source opens."""

    def use(script, model="scripted"):
        engine = FakeEngine(script, model=model)
        monkeypatch.setattr(engines, "open_source", lambda *_: engine)
        return engine

    return use


SERVER = ("--endpoint", "http://127.0.0.1:9/v1", "--model", "j")


def test_pairs_on_a_server_and_again_from_the_cache(cli, serve, pairs_file, tmp_path):
    server = serve(bodies=fair, does=lambda name, attempt: "503" if attempt == 1 and "Ode" in name else "answer")
    out = tmp_path / "out"
    arguments = ("judge", "pairs", pairs_file, "-o", out, "--endpoint", server.url, "--model", "gpt-x")
    done = cli(*arguments)
    assert done.code == 0, done.err
    summary, lines = read(out)
    assert len(lines) == 8
    assert {line["verdict"] for line in lines} == {"first", "second"}
    assert all(line["usage"] == {"prompt_tokens": 10, "completion_tokens": 4} for line in lines)
    (rates,) = summary["win_rates"]
    assert (rates["wins"], rates["losses"], rates["ties"], rates["missing"]) == (2, 2, 0, 0)
    assert list(summary["win_rates_by_category"]) == ["math", "writing"]
    (judge,) = summary["judges"]
    assert judge["fingerprint"]["model"] == "gpt-x"
    assert judge["fingerprint"]["endpoint"] == server.url
    assert judge["calls"]["asked"] == judge["calls"]["parsed"] == 8
    assert summary["bias"]["gpt-x"]["overall"]["orders"]["consistent"]["estimate"] == 1
    assert summary["spent"]["answers"] == 8
    assert summary["spent"]["calls"] == len(server.asked) > 8
    assert "Win rates" in done.out
    assert "Bias of gpt-x" in done.out
    asked = len(server.asked)
    assert "unchanged" in cli(*arguments).out
    again = cli(*arguments, "--no-check", "--json")  # another setting: judged anew, from the cache
    assert len(server.asked) == asked
    told = json.loads(again.out)
    assert told["judges"][0]["calls"]["cached"] == 8
    assert told["win_rates"] == summary["win_rates"]


def test_a_server_that_fails_every_first_time_loses_nothing_and_pays_nothing_twice(cli, serve, pairs_file, tmp_path):
    faults = ("429", "500", "drop", "half")
    server = serve(bodies=fair, does=lambda name, attempt: faults[len(name) % 4] if attempt == 1 else "answer")
    arguments = ("-o", tmp_path / "out", "--endpoint", server.url, "--model", "m")
    assert cli("judge", "pairs", pairs_file, *arguments).code == 0
    summary, _ = read(tmp_path / "out")
    assert summary["judges"][0]["calls"]["parsed"] == 8
    assert len(server.billed) == len(set(server.billed)) == 8
    assert len(server.asked) == summary["spent"]["calls"] == 16
    assert summary["win_rates"][0]["missing"] == 0


def test_a_cap_on_calls_leaves_questions_without_a_verdict(cli, serve, pairs_file, tmp_path):
    server = serve(bodies=fair)
    out = tmp_path / "out"
    arguments = (
        "judge",
        "pairs",
        pairs_file,
        "-o",
        out,
        "--endpoint",
        server.url,
        "--model",
        "m",
        "--concurrency",
        "1",
    )
    assert cli(*arguments, "--max-calls", "5").code == 0
    summary, _ = read(out)
    assert len(server.asked) == 5
    assert summary["judges"][0]["calls"]["failures"] == {"budget": 3}
    assert summary["win_rates"][0]["missing"] == 2
    # without the cap only the rest is asked
    assert cli(*arguments).code == 0
    assert len(server.asked) == 8
    assert read(out)[0]["win_rates"][0]["missing"] == 0


def test_two_servers_share_the_questions_and_two_runs_a_budget(cli, serve, pairs_file, tmp_path):
    two = [serve(bodies=fair, think_time=0.01) for _ in range(2)]
    asked = ("--endpoint", f"[{two[0].url}, {two[1].url}]", "--model", "m", "--concurrency", "2")
    capped = ("--max-calls", "11", "--shared-budget", tmp_path / "budget.sqlite")
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "first", *asked, *capped)
    assert done.code == 0, done.err
    summary, _ = read(tmp_path / "first")
    assert summary["judges"][0]["fingerprint"]["endpoint"] == two[0].url
    assert summary["spent"]["servers"] == {server.url: len(server.asked) for server in two}
    assert f"{len(two[1].asked)} from {two[1].url}" in " ".join(done.out.split())
    assert sum(len(server.asked) for server in two) == 8
    assert cli("judge", "pairs", pairs_file, "-o", tmp_path / "second", *asked, *capped).code == 0
    assert sum(len(server.asked) for server in two) == 11
    assert read(tmp_path / "second")[0]["judges"][0]["calls"]["failures"] == {"budget": 5}


def test_bad_lines_are_counted_and_shown(cli, scripted, judges, pairs_file, tmp_path):
    scripted(judges["perfect"])
    with pairs_file.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *SERVER)
    summary, _ = read(tmp_path / "out")
    assert summary["bad_lines"] == {"count": 1, "first": [{"place": f"{pairs_file}:5", "problem": "not JSON"}]}
    assert summary["references"] == {"shown": 0, "needed_but_absent": 2}
    assert "lines left out: 1" in done.out
    assert "2 questions on maths" in done.out


def test_calibrate_prints_its_decision_and_ends_well_either_way(cli, scripted, judges, pairs_file, tmp_path):
    for name, decision in (("perfect", "not decided"), ("first", "not good enough")):
        scripted(judges[name])
        done = cli("judge", "calibrate", pairs_file, "-o", tmp_path / name, *SERVER)
        assert done.code == 0, done.err
        assert f"j: {decision}" in done.out
        assert read(tmp_path / name)[0]["calibration"]["j"]["decision"] == decision


def test_calibrate_wants_labels(cli, scripted, judges, pairs_file, tmp_path):
    records = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    pairs_file.write_text("".join(json.dumps(r | {"label": None}) + "\n" for r in records))
    assert "no label" in cli("judge", "calibrate", pairs_file, "-o", tmp_path / "out", *SERVER).refused()


def test_single_with_a_rubric_and_criteria_from_a_file(cli, scripted, tmp_path):
    engine = scripted({"fine": "[[5]]", "poor": "[[2]]"})
    replies = tmp_path / "replies.jsonl"
    records = [{"id": k, "prompt": "Q", "reply": r, "model": "sft"} for k, r in enumerate(("fine", "poor", "poor"))]
    replies.write_text("".join(json.dumps(r) + "\n" for r in records))
    criteria = tmp_path / "criteria.txt"
    criteria.write_text("Names the source.")
    arguments = ("judge", "single", replies, "-o", tmp_path / "out", *SERVER, "--prompt", "rubric")
    assert "needs criteria" in cli(*arguments).refused()
    done = cli(*arguments, "--criteria", criteria)
    assert done.code == 0, done.err
    assert "Names the source." in engine.requests[0].prompt[-1].content
    summary, lines = read(tmp_path / "out")
    assert summary["ratings"]["sft"]["overall"]["mean"]["estimate"] == 3
    assert summary["scale"] == [1, 5]
    assert [line["verdict"] for line in lines] == [5, 2, 2]
    assert "3.00" in done.out


def test_a_panel_votes_and_shares_the_cache_and_the_folder(cli, monkeypatch, judges, pairs_file, tmp_path):
    scripts = {"p": judges["perfect"], "q": judges["perfect"], "r": judges["longer"]}
    monkeypatch.setattr(
        engines,
        "open_source",
        lambda source, *_: FakeEngine(scripts[source.model], model=source.model),
    )
    panel = tmp_path / "panel.yaml"
    judges_yaml = "".join(f"  - {{endpoint: 'http://127.0.0.1:9/v1', model: {name}}}\n" for name in "pqr")
    panel.write_text("judges:\n" + judges_yaml)
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", "--panel", panel)
    assert done.code == 0, done.err
    summary, lines = read(tmp_path / "out")
    assert len(lines) == 24
    assert [judge["name"] for judge in summary["judges"]] == ["p", "q", "r"]
    # the longer reply is the better one in two of the four: those are unanimous
    assert summary["panel"]["unanimous"] == 2
    assert (summary["win_rates"][0]["wins"], summary["win_rates"][0]["losses"]) == (2, 2)
    assert set(summary["bias"]) == {"p", "q", "r"}
    assert "2 of 4 questions unanimous" in done.out


def test_a_judge_of_a_file_is_tried_first(cli, scripted, judges, pairs_file, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("task: pair\nparser: pair_five\nprompt: '<answer_a>\n\n {{reply_a}}\n\n </answer_a> {{reply_b}}'\n")
    arguments = ("judge", "pairs", pairs_file, "-o", tmp_path / "out", *SERVER, "--prompt", mine)
    engine = scripted(judges["prose"])
    error = cli(*arguments).refused()
    assert "none of 3 trial replies can be read by parser pair_five" in error
    assert "each in its own way" in error
    assert len(engine.requests) == 3
    assert cli(*arguments, "--no-check").code == 0
    assert len(engine.requests) == 8  # the three of the trial were in the cache
    engine = scripted(lambda request: "[[A>>B]]", model="other")
    assert cli(*arguments).code == 0
    assert len(engine.requests) == 8


def no_temperature(body):
    """A reasoning model: it takes neither ``temperature`` nor ``max_tokens``."""
    for name in ("temperature", "max_tokens"):
        if name in body:
            return {
                "error": {
                    "message": f"Unsupported parameter: '{name}' is not supported with this model.",
                    "param": name,
                }
            }
    return None


def test_a_refused_field_is_told_with_its_option_and_can_be_left_away(cli, serve, pairs_file, tmp_path):
    server = serve(bodies=fair, refuses=no_temperature)
    arguments = ("judge", "pairs", pairs_file, "-o", tmp_path / "out", "--endpoint", server.url, "--model", "o")
    first = cli(*arguments).refused()
    assert "field 'temperature'" in first
    assert "extra_body: {temperature: null}" in first
    body = ("--extra-body", "{temperature: null, options: {num_ctx: 8192}}")
    assert "max_tokens_field: max_completion_tokens" in cli(*arguments, *body).refused()
    assert cli(*arguments, *body, "--max-tokens-field", "max_completion_tokens").code == 0
    sent = server.asked[-1].body
    assert "temperature" not in sent
    assert sent["options"] == {"num_ctx": 8192}
    assert sent["max_completion_tokens"] == 2048
    summary, _ = read(tmp_path / "out")
    options = json.loads(summary["judges"][0]["fingerprint"]["options"])
    assert options == {"temperature": None, "options": {"num_ctx": 8192}}
    told = cli(*arguments, "--extra-body", "{max_tokens: 5}").refused()
    assert "max_tokens can't be set in extra_body" in told


@pytest.mark.parametrize("kind", ["pair", "five", "binary"])
def test_every_prompt_is_tried_on_three_calls(cli, scripted, judges, pairs_file, tmp_path, kind):
    engine = scripted(judges["prose"])
    arguments = ("judge", "pairs", pairs_file, "-o", tmp_path / "out", *SERVER, "--prompt", kind)
    assert "none of 3 trial replies can be read" in cli(*arguments).refused()
    assert len(engine.requests) == 3
    assert cli(*arguments, "--no-check").code == 0
    assert len(engine.requests) == 8


def test_a_run_in_which_every_call_failed_ends_with_its_reason(cli, serve, pairs_file, tmp_path):
    server = serve(does=lambda name, attempt: "400")
    out = tmp_path / "out"
    arguments = ("judge", "pairs", pairs_file, "-o", out, "--endpoint", server.url, "--model", "j")
    told = cli(*arguments).refused()
    assert "none of 3 trial calls (invalid_request: status 400: scripted 400)" in told
    assert len(server.asked) == 3
    told = cli(*arguments, "--no-check").refused()
    assert "none of 8 calls to the judge was answered (invalid_request: status 400: scripted 400)" in told
    summary, lines = read(out)  # what happened stands in the files all the same
    assert summary["judges"][0]["calls"]["failures"] == {"invalid_request": 8}
    assert {line["missing"] for line in lines} == {"transport"}


def test_models_are_compared_whichever_stands_first(cli, scripted, judges, tmp_path):
    scripted(judges["perfect"])
    path = tmp_path / "pairs.jsonl"
    one = {"id": 1, "prompt": "Q", "reply_a": "GOOD", "reply_b": "bad", "model_a": "dpo", "model_b": "sft"}
    other = {"id": 2, "prompt": "Q", "reply_a": "bad", "reply_b": "GOOD", "model_a": "sft", "model_b": "dpo"}
    path.write_text(json.dumps(one) + "\n" + json.dumps(other) + "\n")
    assert cli("judge", "pairs", path, "-o", tmp_path / "out", *SERVER).code == 0
    (rates,) = read(tmp_path / "out")[0]["win_rates"]
    assert (rates["model_a"], rates["model_b"], rates["wins"], rates["losses"]) == ("dpo", "sft", 2, 0)


def test_the_weighted_verdict_on_a_server(cli, serve, pairs_file, tmp_path):
    def weighted(body):
        assert body["max_tokens"] == 1
        assert body["logprobs"] is True
        top = [
            {"token": "m", "logprob": -0.2231435513142097},
            {"token": "M", "logprob": -1.6094379124341003},
        ]  # 0.8, 0.2
        token = top[0] | {"top_logprobs": top}
        choice = {"message": {"content": "m"}, "finish_reason": "length", "logprobs": {"content": [token]}}
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}

    server = serve(bodies=weighted)
    arguments = ("--endpoint", server.url, "--model", "w", "--prompt", "binary", "--orders", "original")
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *arguments)
    assert done.code == 0, done.err
    summary, lines = read(tmp_path / "out")
    assert [line["to_second"] for line in lines] == pytest.approx([0.2] * 4)
    assert {line["verdict"] for line in lines} == {"first"}
    assert summary["weighted"]["w"]["probability_a"]["estimate"] == pytest.approx(0.8)
    # in both orders the preference for the first place cancels out: 0.8 for a, then 0.8 for b
    assert cli("judge", "pairs", pairs_file, "-o", tmp_path / "both", *arguments[:6]).code == 0
    weights = read(tmp_path / "both")[0]["weighted"]["w"]
    assert weights["judgments"] == 8
    assert weights["probability_a"]["estimate"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("pairs",), "who judges?"),
        (("pairs", "--endpoint", "http://x/v1"), "endpoint and model belong together"),
        (
            ("pairs", *SERVER, "--local", "x"),
            "one of endpoint, local, gguf and reward is needed, not endpoint and local",
        ),
        (("pairs", "--local", "x", "--api-key-env", "KEY"), "a key is for a server only"),
        (("pairs", "--local", "x", "--concurrency", "3"), "for servers and GGUF files only"),
        (
            ("pairs", "--local", "x", "--max-tokens-field", "max_completion_tokens"),
            "max_tokens_field is for servers only",
        ),
        (("pairs", *SERVER, "--context", "4096"), "context is for GGUF files only"),
        (("pairs", "--gguf", "none.gguf"), "no such judge.judges.0.gguf file"),
        (("pairs", *SERVER, "--smaples", "3"), "unknown option --smaples (did you mean 'samples'?)"),
        (("pairs", *SERVER, "--samples", "0"), "samples: must be a whole number of at least 1, got 0"),
        (("pairs", *SERVER, "--retry-cut", "0"), "retry_cut: must be a whole number of at least 1, got 0"),
        (("pairs", *SERVER, "other.jsonl"), "one file is needed, not 2"),
        (("pairs", "--local", "x", "--max-calls", "3"), "caps and prices are for servers"),
        (("pairs", *SERVER, "--base", "x"), "base is for a local or a reward model"),
        (("pairs", "--panel", "panel.yaml", "--model", "x"), "a panel's file names all judges"),
        (("pairs", *SERVER, "--prompt", "single"), "unknown judge 'single'"),
        (("pairs", *SERVER, "--samples", "3", "--temperature", "0"), "3 samples at temperature 0"),
        (("pairs", *SERVER, "--criteria", "be brief"), "no place for criteria"),
        (("pairs", *SERVER, "--max-money", "1"), "a cap on money needs prices"),
        (("pairs", *SERVER, "--prompt-price", "1"), "belong together"),
        (("pairs", "--reward", "x", "--samples", "3"), "only turns means something to it"),
        (("single", "--reward", "x"), "a reward model judges pairs"),
        (("single", *SERVER, "--orders", "original"), "single replies have no order"),
        (("calibrate", *SERVER, "--orders", "original"), "labels are compared with both orders"),
        (("calibrate", *SERVER, "--turns", "last"), "labels are about the last turn"),
        (("calibrate", *SERVER, "--prompt", "single", "--orders", "original"), "single replies have no order"),
        (("calibrate", "--reward", "x", "--prompt", "single"), "a reward model judges pairs"),
    ],
)
def test_refusals(cli, pairs_file, tmp_path, arguments, told):
    verb, *options = arguments
    error = cli("judge", verb, pairs_file, "-o", tmp_path / "out", *options).refused()
    assert told in error.replace("\n", " ")


def test_interrupted_is_told_and_what_was_answered_stays(cli, scripted, judges, pairs_file, tmp_path):
    calls = []

    def script(request):
        calls.append(request)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judges["perfect"](request)

    scripted(script)
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *SERVER)
    assert done.code == 130
    assert "run the same command again" in done.err
    assert cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *SERVER).code == 0


def test_what_the_guide_shows_works(pairs_file, tmp_path, monkeypatch, capsys):
    import re

    guide = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    own, panel, recipe = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "own.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "panel.yaml").write_text(panel, encoding="utf-8")
    assert load_prompt(str(tmp_path / "own.yaml"), "pair").emphasis == "Which patch stands first means nothing."
    assert len(judge_value([f"panel={tmp_path / 'panel.yaml'}"], "judge")["judges"]) == 3
    in_recipe = build(JudgeConfig, parse_yaml(recipe, "recipe.yaml"), ("judge",))
    assert [source.kind for source in in_recipe.judges] == ["endpoint", "gguf"]
    for name in PARSERS:
        assert f"| `{name}` |" in guide
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(pairs_file.parent)
    exec(code, {})
    assert "to_first=Interval(estimate=1.0" in capsys.readouterr().out


# ---- models of this machine ----------------------------------------------------------------------------------------


@pytest.mark.demo_model
def test_a_local_model_judges(cli, tiny_model, pairs_file, tmp_path):
    """Random weights say nothing that can be read: the failures are counted, nothing is claimed."""
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", "--local", tiny_model, "--max-tokens", "4")
    assert done.code == 0, done.err
    summary, lines = read(tmp_path / "out")
    assert summary["judges"][0]["fingerprint"]["engine"] == "transformers"
    assert len(lines) == 8
    assert {line["missing"] for line in lines} <= {"length", "parse", "empty"}
    assert summary["win_rates"][0]["missing"] == 4
    assert "100% of the calls have no verdict" in done.out


@pytest.mark.demo_model
def test_a_reward_model_judges_as_transformers_scores(cli, monkeypatch, tiny_model, pairs_file, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from posttrain.model import hardware
    from posttrain.model.companions import copy_tokenizer
    from posttrain.model.load import load_model

    # scores of random weights are close to each other: bf16 could exchange them
    monkeypatch.setattr(hardware, "choose_dtype", lambda name, device: torch.float32)
    folder = tmp_path / "reward"
    load_model(tiny_model, torch.float32, torch.device("cpu"), head="score", seed=3).save_pretrained(folder)
    copy_tokenizer(tiny_model, folder)
    done = cli("judge", "calibrate", pairs_file, "-o", tmp_path / "out", "--reward", folder)
    assert done.code == 0, done.err
    summary, lines = read(tmp_path / "out")

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = [json.loads(line) for line in pairs_file.read_text().splitlines()]

    def score(record, side):
        turns = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record[side]}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits)

    expected = ["first" if score(r, "reply_a") > score(r, "reply_b") else "second" for r in records]
    assert [line["verdict"] for line in lines] == expected
    assert {line["order"] for line in lines} == {"none"}
    assert summary["prompt"] is None
    assert summary["bias"][str(folder)]["overall"]["orders"] is None
    assert (
        "no trained score head"
        in cli("judge", "pairs", pairs_file, "-o", tmp_path / "o", "--reward", tiny_model).refused()
    )


@pytest.mark.slow
@pytest.mark.demo_model
def test_a_gguf_file_judges(cli, pairs_file, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    from posttrain.assets import MODELS, fetch
    from posttrain.generate import llamacpp

    one_thread = functools.partial(
        llamacpp.LlamaCppEngine, threads=1
    )  # its threads spin where others want the processor
    monkeypatch.setattr(llamacpp, "LlamaCppEngine", one_thread)
    gguf = fetch(MODELS["smollm2-135m-instruct"])
    short = tmp_path / "short.yaml"  # few tokens to read: the engine is what is tried here
    short.write_text("task: pair\nparser: pair_letter\nprompt: 'Which is better, {{reply_a}} or {{reply_b}}?'\n")
    options = ("--prompt", short, "--no-check", "--orders", "original", "--max-tokens", "2", "--retry-cut", "2")
    judge = ("--gguf", gguf, "--context", "128", "--concurrency", "2")
    done = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *judge, *options)
    assert done.code == 0, done.err
    summary, lines = read(tmp_path / "out")
    assert summary["judges"][0]["fingerprint"]["engine"] == "llamacpp"
    assert len(lines) == 4
    assert all(line["asked_again"] for line in lines)  # a small model says more than two tokens
    assert {line["usage"]["completion_tokens"] for line in lines} == {4}
    assert summary["judges"][0]["calls"]["missing"] == {"length": 4}
    assert "asked again 4" in done.out


def test_a_gguf_judge_without_llama_cpp_is_told(cli, pairs_file, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    (tmp_path / "judge.gguf").write_bytes(b"GGUF")
    error = cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", "--gguf", tmp_path / "judge.gguf").refused()
    assert "posttrain[llamacpp]" in error


def test_help_lists_the_options_of_judges(cli):
    told = cli("judge", "calibrate", "--help")
    assert told.code == 0
    for option in (*(name for keys in JUDGE_OPTIONS for name in keys.listed()), "prompt", "cache"):
        assert f"--{option.replace('_', '-')} " in told.out
    assert "--concurrency  [a whole number of at least 1 or null; default null]" in told.out


def test_any_text_may_be_an_option(cli, scripted, judges, pairs_file, tmp_path):
    """What YAML would take for a number or a mapping stays the text that was typed."""
    scripted(judges["perfect"])
    server = ("--endpoint", "http://127.0.0.1:9/v1", "--model=7", "--api-key-env", "null")
    assert cli("judge", "pairs", pairs_file, "-o", tmp_path / "out", *server).code == 0
    assert read(tmp_path / "out")[0]["judges"][0]["name"] == "7"
