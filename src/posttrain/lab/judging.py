"""``posttrain judge pairs | single | calibrate``: items in; verdicts.jsonl, summary.json and a table out.

    items -> judges (a server, a local model, a reward model, or a panel) -> games -> win rates, bias report, calibration

Answers are kept in ``requests.sqlite`` as they arrive: a command that is stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.artifacts import RunDir, atomic_path, write_json
from posttrain.config import build, read_yaml
from posttrain.errors import ConfigError, InterruptedRunError, ModelError
from posttrain.eval.agreement import krippendorff_alpha
from posttrain.eval.judges.bias import bias_report, main_games
from posttrain.eval.judges.calibrate import calibrate
from posttrain.eval.judges.config import JudgePrompt, JudgeSource, PanelFile, Plan
from posttrain.eval.judges.items import Item, ItemsRead, read_items
from posttrain.eval.judges.judge import (
    Game,
    Question,
    asks_of,
    game_record,
    judge,
    outcomes,
    panel_outcomes,
    prepared,
    prompt_digest,
    sampling_of,
    shows_reference,
    try_out,
)
from posttrain.eval.judges.parsers import PARSERS
from posttrain.eval.judges.prompts import Language, load_prompt
from posttrain.eval.judges.scores import model_ratings, panel_ratings
from posttrain.eval.judges.win_rates import mean_interval, win_rates
from posttrain.eval.mt_bench import needs_reference
from posttrain.eval.verdicts import Missing, Verdict, account, mirrored
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Caps, Ledger, Prices
from posttrain.generate.engine import Engine, Fingerprint
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.lab.display import Display
from posttrain.types import Message, SftRow

if TYPE_CHECKING:
    from posttrain.types import Tokens

SCHEMA = 1
SHOWN_BAD_LINES = 20
REWARD_BATCH_TOKENS = 4096
Task = Literal["pair", "single"]
PLAN = Plan()
_ONLY_SERVERS = (JudgeSource().concurrency, JudgeSource().max_tokens_field)


@dataclass(frozen=True, kw_only=True)
class JudgeCommand:
    """What a command line says."""

    file: Path
    out: Path
    kind: str
    sources: tuple[JudgeSource, ...]
    """One judge, or a panel."""
    language: Language = "en"
    plan: Plan = PLAN
    check: bool = True
    """Try a judge of a file on three calls first."""
    max_money: float | None = None
    max_calls: int | None = None
    prompt_price: float | None = None
    """Per million tokens, as is the next."""
    completion_price: float | None = None
    cache: Path | None = None
    """None = requests.sqlite in ``out``."""
    confidence: float = 0.95
    resamples: int = 10_000


class Judged(NamedTuple):
    """One judge's games and what identifies the judge."""

    name: str
    fingerprint: Fingerprint
    games: list[Game]


# ---- who judges ----------------------------------------------------------------------------------------------------


def judge_sources(source: JudgeSource, panel: Path | None) -> tuple[JudgeSource, ...]:
    """The judge of the options, or those of a panel's file.

    Raises:
        ConfigError: none or several are named, or a judge's keys do not belong together.

    """
    given = [name for name in ("endpoint", "local", "reward") if getattr(source, name) is not None]
    if panel is not None:
        if source != JudgeSource():
            raise ConfigError(
                "a panel's file names all judges", where="--panel", fix="leave --endpoint, --local ... away"
            )
        found = build(PanelFile, read_yaml(panel)).judges
        for number, one in enumerate(found):
            _check_source(one, f"{panel}: judges.{number}")
        return found
    if not given:
        raise ConfigError(
            "who judges?",
            where="posttrain judge",
            fix="give --endpoint URL --model NAME, --local TARGET, --reward TARGET or --panel FILE",
        )
    _check_source(source, "posttrain judge")
    return (source,)


def _check_source(source: JudgeSource, where: str) -> None:
    given = [name for name in ("endpoint", "local", "reward") if getattr(source, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"one of endpoint, local and reward is needed, not {' and '.join(given) or 'none'}",
            where=where,
            fix="keep one",
        )
    if (given == ["endpoint"]) != (source.model is not None):
        raise ConfigError("endpoint and model belong together", where=where, fix="give both, or neither")
    if source.api_key_env is not None and given != ["endpoint"]:
        raise ConfigError("a key is for a server only", where=where, fix="leave api_key_env away")
    if given != ["endpoint"] and (source.concurrency, source.max_tokens_field) != _ONLY_SERVERS:
        raise ConfigError("concurrency and max_tokens_field are for servers only", where=where, fix="leave them away")
    if source.base is not None and given == ["endpoint"]:
        raise ConfigError("base is for a local or a reward model only", where=where, fix="leave base away")


def criteria_text(given: str) -> str:
    """Criteria as written on the command line, or the content of the text file it names.

    Raises:
        ConfigError: the file can't be read.

    """
    if len(given) > 255 or "\n" in given or not Path(given).is_file():
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the criteria: {error}", where=given, fix="give a text file in UTF-8") from error


def open_engine(source: JudgeSource, command: JudgeCommand) -> Engine:
    """The engine of a server's or a local judge. Calls to servers are written to ledger.jsonl."""
    if source.endpoint is not None and source.model is not None:
        endpoint = Endpoint(
            url=source.endpoint,
            model=source.model,
            api_key_env=source.api_key_env,
            concurrency=source.concurrency,
            max_tokens_field=source.max_tokens_field,
        )
        caps = Caps(money=command.max_money, calls=command.max_calls)
        return OpenAIEngine(endpoint, prices=_prices(command), caps=caps, ledger=command.out / "ledger.jsonl")
    return _local_engine(source)


def _prices(command: JudgeCommand) -> Prices | None:
    prompt, completion = command.prompt_price, command.completion_price
    if (prompt is None) != (completion is None):
        raise ConfigError(
            "prices of read and written tokens belong together",
            where="prices",
            fix="give --prompt-price and --completion-price",
        )
    if prompt is None or completion is None:
        return None
    return Prices(prompt_per_million=prompt, completion_per_million=completion)


def _local_engine(source: JudgeSource) -> Engine:
    from posttrain.generate.local import LocalEngine
    from posttrain.lab.experiment import model_digest, weights_digest
    from posttrain.lab.models import stop_sequences, template_of
    from posttrain.lab.targets import resolve_target
    from posttrain.model import hardware
    from posttrain.model.frozen import frozen_model

    assert source.local is not None, "a judge is a server, a local model or a reward model"
    weights, template_file = resolve_target(source.local, source.base)
    template = template_of(weights.folder, template_file)
    device = hardware.resolve_device("auto")
    model = frozen_model(*weights, hardware.choose_dtype("auto", device), device)
    identity = weights_digest(weights, "" if weights.adapter is None else model_digest(weights.folder))
    return LocalEngine(model, template, stop_sequences(model, template), f"{source.local}@{identity[:16]}")


def judge_names(sources: Sequence[JudgeSource]) -> list[str]:
    """Short names, all different: the model or the target, with a number where two are equal."""
    plain = [source.model or source.local or source.reward or "" for source in sources]
    return [f"{name} #{plain[: k + 1].count(name)}" if plain.count(name) > 1 else name for k, name in enumerate(plain)]


# ---- reward models -------------------------------------------------------------------------------------------------


def reward_judge(
    source: JudgeSource, items: Sequence[Item], plan: Plan, display: Display
) -> tuple[Fingerprint, list[Game]]:
    """Pairs judged by a trained reward model: the higher score wins, equal scores are a tie. No order, no samples, no prompt.

    A reply whose conversation the template refuses, or that is longer than the model's context, leaves its pair without a verdict.

    Raises:
        ModelError: the target has no trained score head.

    """
    import numpy as np
    import torch

    from posttrain.encode.collate import collate_shared
    from posttrain.encode.packing import pack
    from posttrain.lab.experiment import model_digest, weights_digest
    from posttrain.lab.models import template_of
    from posttrain.lab.targets import resolve_target
    from posttrain.model import hardware
    from posttrain.model.adapters import load_adapter
    from posttrain.model.load import causal_lm, load_model
    from posttrain.model.reward import batch_rewards

    assert source.reward is not None, "the caller chose a reward model"
    weights, template_file = resolve_target(source.reward, source.base)
    _check_score_head(weights.adapter or weights.folder, source.reward)
    template = template_of(weights.folder, template_file)
    device = hardware.resolve_device("auto")
    dtype = hardware.choose_dtype("auto", device)
    base = load_model(weights.folder, dtype, device, head="score").requires_grad_(False)
    model = base if weights.adapter is None else load_adapter(base, weights.adapter, trainable=False)
    text_config = causal_lm(model).config.get_text_config()
    room = getattr(text_config, "max_position_embeddings", None) or 1 << 30

    asks = asks_of(items, replace(plan, orders="original", samples=1, emphasis="no"), "pair")
    conversations = [_conversation(items[ask.item], ask.turn, second) for ask in asks for second in (False, True)]
    encoded = _scored(conversations, template, room, text_config.pad_token_id)
    places = [place for place, tokens in enumerate(encoded) if not isinstance(tokens, Missing)]
    sequences: list[Tokens] = [tokens for tokens in encoded if not isinstance(tokens, Missing)]
    rewards_N = np.full(len(encoded), np.nan)
    done = 0
    for indices in pack([len(sequence) for sequence in sequences], REWARD_BATCH_TOKENS):
        with torch.no_grad():
            batch = collate_shared([sequences[index] for index in indices])
            found_B = batch_rewards(model, batch, dtype).float().cpu().numpy()
        rewards_N[[places[index] for index in indices]] = found_B
        done += len(indices)
        display.tick("rewards", done, len(sequences))
    games = []
    for number, ask in enumerate(asks):
        sides = encoded[2 * number : 2 * number + 2]
        lost = next((side for side in sides if isinstance(side, Missing)), None)
        a, b = rewards_N[2 * number], rewards_N[2 * number + 1]
        won: Verdict = "tie" if a == b else "first" if a > b else "second"
        games.append(Game(ask._replace(order="none"), won if lost is None else lost))
    identity = weights_digest(weights, "" if weights.adapter is None else model_digest(weights.folder))
    return Fingerprint("reward", f"{source.reward}@{identity[:16]}", options=str(dtype)), games


def _check_score_head(folder: Path, target: str) -> None:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            if any(key.endswith("score.weight") for key in weights.keys()):  # noqa: SIM118 - no mapping
                return
    raise ModelError(
        "this model has no trained score head: it is no reward model",
        where=target,
        fix="train one with the objective reward, or let it judge in words with --local",
    )


def _conversation(item: Item, turn: int, second: bool) -> SftRow:
    replies = item.replies_b if second else item.replies_a
    messages: list[Message] = []
    for number in range(turn):
        messages.append(Message("user", item.turns[number]))
        messages.append(Message("assistant", replies[number], weight=None if number == turn - 1 else 0.0))
    return SftRow(tuple(messages), item.origin, "judge")


def _scored(rows: Sequence[SftRow], template: Any, room: int, pad_id: int | None) -> list[Tokens | Missing]:
    """Every conversation as a reward model scores it, or why it can't be."""
    from posttrain.encode.preferences import scored_at_end
    from posttrain.encode.template import RowRejected
    from posttrain.encode.tokens import encode_batch

    found: list[Tokens | Missing] = []
    for result in encode_batch(rows, template, room, "drop"):
        if isinstance(result, RowRejected):
            found.append(Missing("transport", f"invalid_request: {result.reason}: {result.detail}"))
        elif len(result.examples) != 1:
            dropped = (
                result.dropped[0] if result.dropped else RowRejected("reply_rewritten", "the template rewrites it")
            )
            found.append(Missing("transport", f"invalid_request: {dropped.reason}: {dropped.detail}"))
        else:
            found.append(scored_at_end(result.examples[0], pad_id))
    return found


# ---- the three commands --------------------------------------------------------------------------------------------


def judge_pairs(command: JudgeCommand, display: Display) -> dict[str, Any]:
    """Judge pairs: writes verdicts.jsonl and summary.json, returns the summary."""
    _refuse_ignored(command, "pair")
    read = read_items(command.file, "pair")
    prompt = load_prompt(command.kind, "pair", command.language)
    judged = _judge_all(command, read, prompt, display)
    by_judge = [outcomes(main_games(one.games)) for one in judged]
    final = by_judge[0] if len(judged) == 1 else panel_outcomes(by_judge)
    chance: dict[str, Any] = {"confidence": command.confidence, "resamples": command.resamples}
    summary = _summary(command, read, prompt, judged)
    summary["win_rates"] = _win_rates(read.items, final, chance)
    summary["win_rates_by_category"] = {
        category: _win_rates(
            read.items, {q: v for q, v in final.items() if read.items[q[0]].category == category}, chance
        )
        for category in dict.fromkeys(item.category for item in read.items)
        if category is not None
    }
    if PARSERS[prompt.parser].logprobs:
        summary["weighted"] = {one.name: _weighted(read.items, one.games, chance) for one in judged}
    if len(judged) > 1:
        summary["panel"] = _panel(by_judge, final, chance)
    summary["bias"] = {one.name: plain(bias_report(read.items, one.games, **chance)) for one in judged}
    return _written(command, read, judged, summary)


def judge_single(command: JudgeCommand, display: Display) -> dict[str, Any]:
    """Rate single replies: writes verdicts.jsonl and summary.json, returns the summary."""
    _refuse_ignored(command, "single")
    read = read_items(command.file, "single")
    prompt = load_prompt(command.kind, "single", command.language)
    judged = _judge_all(command, read, prompt, display)
    chance: dict[str, Any] = {"confidence": command.confidence, "resamples": command.resamples}
    games = judged[0].games if len(judged) == 1 else panel_ratings([one.games for one in judged])
    summary = _summary(command, read, prompt, judged)
    summary["scale"] = [prompt.lowest, prompt.highest]
    summary["ratings"] = plain(model_ratings(read.items, games, **chance))
    if len(judged) > 1:
        summary["ratings_by_judge"] = {
            one.name: plain(model_ratings(read.items, one.games, **chance)) for one in judged
        }
    return _written(command, read, judged, summary)


def judge_calibrate(command: JudgeCommand, display: Display) -> dict[str, Any]:
    """Judge labelled pairs in both orders and compare: writes verdicts.jsonl and summary.json, returns the summary."""
    _refuse_ignored(command, "pair", labelled=True)
    command = replace(command, plan=replace(command.plan, orders="both", turns="last"))
    read = read_items(command.file, "pair", labelled=True)
    prompt = load_prompt(command.kind, "pair", command.language)
    judged = _judge_all(command, read, prompt, display)
    chance: dict[str, Any] = {"confidence": command.confidence, "resamples": command.resamples}
    summary = _summary(command, read, prompt, judged)
    summary["calibration"] = {one.name: plain(calibrate(read.items, one.games, **chance)) for one in judged}
    summary["bias"] = {one.name: plain(bias_report(read.items, one.games, **chance)) for one in judged}
    return _written(command, read, judged, summary)


def _judge_all(command: JudgeCommand, read: ItemsRead, prompt: JudgePrompt, display: Display) -> list[Judged]:
    worded = [source for source in command.sources if source.reward is None]
    if worded:
        prepared(read.items, prompt, command.plan)  # what does not fit is told before a model is loaded
    names = judge_names(command.sources)
    found = []
    try:
        with RunDir(command.out).lock(), RequestCache(command.cache or command.out / "requests.sqlite") as cache:
            for name, source in zip(names, command.sources, strict=True):
                if source.reward is not None:
                    found.append(Judged(name, *reward_judge(source, read.items, command.plan, display)))
                    continue
                display.tick(f"opening {name}", 0, 1)
                engine = CachedEngine(open_engine(source, command), cache)
                display.tick(f"opening {name}", 1, 1)
                if command.check and command.kind.endswith((".yaml", ".yml")):
                    try_out(engine, read.items, prompt, command.plan, command.kind)

                def tick(done: int, total: int, name: str = name) -> None:
                    display.tick(f"judging with {name}", done, total)

                games = judge(engine, read.items, prompt, command.plan, tick)
                found.append(Judged(name, engine.fingerprint, games))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted", where=str(command.out), fix="run the same command again: answers are kept"
        ) from None
    return found


def _refuse_ignored(command: JudgeCommand, task: Task, *, labelled: bool = False) -> None:
    """An option that would be ignored without a word is an error."""
    plan, where = command.plan, "posttrain judge"
    if (task == "single" or labelled) and plan.orders != "both":
        what = "labels are compared with both orders" if labelled else "single replies have no order"
        raise ConfigError(what, where=f"{where} --orders", fix="leave it away")
    if labelled and plan.turns != "each":
        raise ConfigError("labels are about the last turn", where=f"{where} --turns", fix="leave it away")
    if command.kind.endswith((".yaml", ".yml")) and command.language != "en":
        raise ConfigError("a judge's file says its own language", where=f"{where} --language", fix="leave it away")
    caps = (command.max_money, command.max_calls, command.prompt_price, command.completion_price)
    if all(source.endpoint is None for source in command.sources) and any(cap is not None for cap in caps):
        raise ConfigError("caps and prices are for servers", where=where, fix="leave them away")
    if all(source.reward is not None for source in command.sources):
        if task == "single":
            raise ConfigError("a reward model judges pairs", where=f"{where} --reward", fix="use posttrain judge pairs")
        if plan != Plan(turns=plan.turns) or command.kind != "pair" or command.language != "en":
            raise ConfigError(
                "a reward model has no prompt, order or samples: only --turns means something to it",
                where=f"{where} --reward",
                fix="leave the other options away",
            )
    if task == "single" and any(source.reward is not None for source in command.sources):
        raise ConfigError("a reward model judges pairs", where=f"{where} --panel", fix="take it out of the panel")


def _win_rates(
    items: Sequence[Item], final: Mapping[Question, Verdict | Missing], chance: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One record for every two models; a pair of models is one whichever of them stands first."""
    groups: dict[tuple[str, str], list[tuple[Verdict | Missing, str]]] = {}
    for (place, _), outcome in final.items():
        item = items[place]
        models = (item.model_a, item.model_b)
        if (turned := models[::-1]) in groups:
            models = turned
            outcome = outcome if isinstance(outcome, Missing) else mirrored(outcome)
        groups.setdefault(models, []).append((outcome, item.id))
    return [
        {"model_a": a, "model_b": b, **plain(win_rates([o for o, _ in found], [c for _, c in found], **chance))}
        for (a, b), found in groups.items()
    ]


def _weighted(items: Sequence[Item], games: Sequence[Game], chance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean probability that reply a is better, over the games that give one (AlpacaEval's weighted win rate of a)."""
    known = [(game.to_second, game.ask) for game in main_games(games) if game.to_second is not None]
    of_a = [1 - p if ask.order == "original" else p for p, ask in known]
    found = mean_interval(of_a, [items[ask.item].id for _, ask in known], **chance)
    return None if found is None else {"games": len(known), "probability_a": plain(found)}


def _panel(
    by_judge: Sequence[Mapping[Question, Verdict | Missing]],
    final: Mapping[Question, Verdict | Missing],
    chance: Mapping[str, Any],
) -> dict[str, Any]:
    voted = [[v for judge in by_judge if not isinstance(v := judge[question], Missing)] for question in final]
    several = [votes for votes in voted if len(votes) > 1]
    return {
        "judges": len(by_judge),
        "questions": len(final),
        "unanimous": sum(len(votes) == len(by_judge) and len(set(votes)) == 1 for votes in voted),
        "missing": sum(isinstance(outcome, Missing) for outcome in final.values()),
        "krippendorff_alpha": plain(krippendorff_alpha(several, **chance)) if several else None,
    }


def _summary(command: JudgeCommand, read: ItemsRead, prompt: JudgePrompt, judged: Sequence[Judged]) -> dict[str, Any]:
    plan = command.plan
    worded = any(source.reward is None for source in command.sources)
    asks = asks_of(read.items, plan, prompt.task)
    questions = {(ask.item, ask.turn) for ask in asks}
    needed = [q for q in questions if (c := read.items[q[0]].category) is not None and needs_reference(c)]
    shown = {q for q in questions if shows_reference(read.items[q[0]], q[1], plan)}
    return {
        "schema": SCHEMA,
        "task": prompt.task,
        "file": str(command.file),
        "items": len(read.items),
        "questions": len(questions),
        "bad_lines": {
            "count": len(read.bad),
            "first": [{"place": str(bad.origin), "problem": bad.problem} for bad in read.bad[:SHOWN_BAD_LINES]],
        },
        "references": {"shown": len(shown), "needed_but_absent": sum(q not in shown for q in needed)},
        "judges": [
            {
                "name": one.name,
                "fingerprint": one.fingerprint._asdict(),
                "calls": plain(_calls(one.games)),
            }
            for one in judged
        ],
        "prompt": None
        if not worded
        else {
            "kind": command.kind,
            "language": None if command.kind.endswith((".yaml", ".yml")) else command.language,
            "parser": prompt.parser,
            "digest": prompt_digest(prompt, plan),
        },
        "sampling": plain(sampling_of(prompt, plan)) if worded else None,
        "plan": plain(plan),
        "confidence": command.confidence,
        "resamples": command.resamples,
    }


def _calls(games: Sequence[Game]) -> dict[str, Any]:
    """All games of a judge: asked = answered + failed; answered = parsed + missing for other reasons."""
    found = account([game.value for game in games])
    failures: dict[str, int] = {}
    for game in games:
        if isinstance(game.value, Missing) and game.value.reason == "transport":
            reason = game.value.detail.partition(":")[0]
            failures[reason] = failures.get(reason, 0) + 1
    cached = sum(getattr(game.outcome, "cached", False) for game in games)
    return {**found._asdict(), "failures": failures, "cached": cached}


def _written(
    command: JudgeCommand, read: ItemsRead, judged: Sequence[Judged], summary: dict[str, Any]
) -> dict[str, Any]:
    with atomic_path(command.out / "verdicts.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in judged:
            for game in one.games:
                file.write(json.dumps(game_record(game, read.items, one.name), ensure_ascii=False) + "\n")
    ledger = command.out / "ledger.jsonl"
    summary["spent"] = plain(Ledger(ledger).totals()) if ledger.exists() else None
    write_json(command.out / "summary.json", summary)
    return summary


def plain(value: Any) -> Any:
    """NamedTuples and dataclasses as dictionaries, NaN as null: what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {key: plain(found) for key, found in value._asdict().items()}
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [plain(found) for found in value]
    return None if isinstance(value, float) and value != value else value
