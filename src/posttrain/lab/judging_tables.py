"""What ``posttrain judge`` shows in the terminal, from what it has written (summary.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

WEAK = 0.1
"""Share of calls without a verdict from which on there is a warning."""
_STYLES = {"good enough": "bold blue", "not good enough": "bold yellow", "not decided": "bold"}


def summary_view(summary: Mapping[str, Any], out: Path) -> RenderableType:
    """The tables of a summary of any of the three commands."""
    parts: list[RenderableType] = [*_head(summary)]
    if "ratings" in summary:
        parts.append(_ratings(summary))
    if "win_rates" in summary:
        parts.append(_win_rates(summary))
    if summary.get("panel") is not None:
        parts.append(_panel(summary["panel"]))
    for name, found in summary.get("calibration", {}).items():
        parts += _calibration(name, found)
    for name, report in summary.get("bias", {}).items():
        parts += [*_bias(name, report), _mitigations(report["mitigations"])]
    parts.append(Text(f"\nEvery judgment is in {out / 'verdicts.jsonl'}, all numbers in {out / 'summary.json'}"))
    return Group(*parts)


def _head(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    bad = summary["bad_lines"]
    yield Text(f"{summary['file']}: {summary['items']} items, {summary['questions']} questions", "bold")
    if bad["count"]:
        first = bad["first"][0]
        yield Text(f"! lines left out: {bad['count']}; the first: {first['place']}: {first['problem']}", "yellow")
    absent = summary["references"]["needed_but_absent"]
    if absent:
        yield Text(
            f"! {absent} questions on maths, reasoning or coding are judged without a reference answer", "yellow"
        )
    for judge in summary["judges"]:
        calls = judge["calls"]
        cached = f", {calls['cached']} from the cache" if calls["cached"] else ""
        again = f", {calls['asked_again']} cut off and asked again" if calls["asked_again"] else ""
        yield Text(
            f"judge {judge['name']}: {calls['asked']} calls asked, {calls['answered']} answered, {calls['parsed']} parsed"
            f"{_reasons(calls)}{again}{cached}"
        )
        if calls["asked"] and 1 - calls["parsed"] / calls["asked"] > WEAK:
            yield Text(f"! {1 - calls['parsed'] / calls['asked']:.0%} of the calls have no verdict", "yellow")
    spent = summary["spent"]
    if spent is not None:
        money = f", {spent['counted_price']:.4g} counted" if spent["counted_price"] else ""
        tokens = f"{spent['prompt_tokens']:,} tokens read, {spent['completion_tokens']:,} written"
        yield Text(f"spent: {spent['calls']} calls sent, {tokens}{money}", "dim")


def _reasons(calls: Mapping[str, Any]) -> str:
    reasons = {**{k: v for k, v in calls["missing"].items() if k != "transport"}, **calls["failures"]}
    return f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})" if reasons else ""


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def share(interval: Mapping[str, Any] | None) -> str:
    """``62.5% (40.1 to 80.2)``; a dash where there is none."""
    if interval is None or interval["estimate"] is None:
        return "-"
    low, high = (f"{100 * interval[key]:.1f}" if interval[key] is not None else "?" for key in ("low", "high"))
    return f"{interval['estimate']:.1%} ({low} to {high})"


def number(interval: Mapping[str, Any] | None, digits: int = 2) -> str:
    """``7.25 (6.90 to 7.60)``; a dash where there is none."""
    if interval is None or interval["estimate"] is None:
        return "-"
    low, high = (f"{interval[key]:.{digits}f}" if interval[key] is not None else "?" for key in ("low", "high"))
    return f"{interval['estimate']:.{digits}f} ({low} to {high})"


def _win_rates(summary: Mapping[str, Any]) -> Table:
    table = _table(
        f"Win rates ({summary['confidence']:.0%} intervals)",
        ("", "W", "L", "T", "none", "W/n", "(W+T/2)/n", "p"),
    )
    rows = [("", record) for record in summary["win_rates"]]
    rows += [(f"{c}: ", record) for c, found in summary["win_rates_by_category"].items() for record in found]
    for prefix, r in rows:
        counts = (str(r[key]) for key in ("wins", "losses", "ties", "missing"))
        name = f"{prefix}{r['model_a']} against {r['model_b']}"
        table.add_row(name, *counts, bare(r["win_rate"]), share(r["adjusted"]), f"{r['p_value']:.3g}")
    return table


def _ratings(summary: Mapping[str, Any]) -> Table:
    low, high = summary["scale"]
    table = _table(
        f"Mean ratings from {low:g} to {high:g} ({summary['confidence']:.0%} intervals)",
        ("", "mean", "parsed", "asked"),
    )
    for model, found in summary["ratings"].items():
        rows = [(model, found["overall"])]
        rows += [(f"  turn {turn}", one) for turn, one in found["by_turn"].items() if len(found["by_turn"]) > 1]
        rows += [(f"  {category}", one) for category, one in found["by_category"].items()]
        for name, one in rows:
            table.add_row(name, number(one["mean"]), str(one["calls"]["parsed"]), str(one["calls"]["asked"]))
    return table


def _panel(panel: Mapping[str, Any]) -> Text:
    return Text(
        f"panel: {panel['unanimous']} of {panel['questions']} questions unanimous, {panel['missing']} without a verdict, "
        f"Krippendorff's alpha {number(panel['krippendorff_alpha'])}"
    )


def _calibration(name: str, found: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _of_ratings(name, found) if "spearman" in found else _of_pairs(name, found)
    yield Text(f"{name}: {found['decision']}", _STYLES[found["decision"]])
    for reason in found["reasons"]:
        yield Text(f"  {reason}")


def _of_pairs(name: str, found: Mapping[str, Any]) -> Table:
    measured = found["measured"]
    table = _table(f"{name} against the labels of {found['pairs']} pairs", ("", "estimate and interval"))
    table.add_row("accuracy, both orders agree", share(measured["both_orders"]))
    table.add_row("accuracy, one order", share(measured["one_order"]))
    table.add_row("accuracy of a constant answer", f"{found['chance']:.1%}")
    table.add_row("Cohen's kappa", number(measured["kappa"]))
    table.add_row("consistency", share(measured["orders"]["consistent"]))
    return table


def _of_ratings(name: str, found: Mapping[str, Any]) -> Table:
    title = f"{name} against people's ratings of {found['replies']} replies, {found['rated']} of them rated by it"
    table = _table(title, ("", "estimate and interval"))
    table.add_row("rank correlation (Spearman)", number(found["spearman"]))
    table.add_row("correlation (Pearson)", number(found["pearson"]))
    table.add_row("quadratic kappa", number(found["kappa"]))
    table.add_row("points off on average", number(found["error"]))
    table.add_row("points off, of a constant answer", f"{found['constant_error']:.2f}")
    table.add_row("milder than people by", number(found["shift"]))
    table.add_row("less than half a point off", share(found["exact"]))
    table.add_row("at most one point off", share(found["within_one"]))
    return table


def _bias(name: str, report: Mapping[str, Any]) -> Iterator[RenderableType]:
    variant = ", emphasised prompt" if report["emphasised"] else ""
    one = report["overall"]
    orders, length = one["orders"], one["length"]
    table = _table(f"Bias of {name}{variant}", ("", "estimate and interval", "p"))
    if orders is not None:
        table.add_row(f"both orders agree (of {orders['judged']} judged)", share(orders["consistent"]), "")
        table.add_row("first shown wins both", share(orders["to_first"]), f"{orders['direction_p']:.3g}")
        table.add_row("second shown wins both", share(orders["to_second"]), "")
        table.add_row("a tie in one order only", share(orders["half_tie"]), "")
    table.add_row("first shown wins (of single judgments)", share(one["first_shown"]), "")
    table.add_row(f"ties (of {one['judged']} outcomes)", share(one["ties"]), "")
    table.add_row(f"longer wins (of {length['decided']})", share(length["longer"]), f"{length['p_value']:.3g}")
    table.add_row("winner is longer by, in characters", number(length["difference"], 0), "")
    table.add_row("slope of winning on length", number(length["slope"]), "")
    table.add_row("questions without an outcome", str(one["dropped"]), "")
    yield table
    if report["by_category"]:
        yield _categories(report["by_category"])


def _categories(categories: Mapping[str, Any]) -> Table:
    table = _table("By category", ("", "judged", "dropped", "agree", "first", "second", "tie", "longer"))
    for category, one in categories.items():
        orders = one["orders"]
        shares = [orders[key] if orders else None for key in ("consistent", "to_first", "to_second")]
        shares += [one["ties"], one["length"]["longer"]]
        table.add_row(category, str(one["judged"]), str(one["dropped"]), *map(bare, shares))
    return table


def bare(interval: Mapping[str, Any] | None) -> str:
    """``62.5%``, without its interval; a dash where there is none."""
    return "-" if interval is None or interval["estimate"] is None else f"{interval['estimate']:.1%}"


def _mitigations(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        f"Ways of asking, on the same {rows[0]['questions']} questions",
        ("", "a wins", "tie", "first", "agree", "changed", "right"),
    )
    for row in rows:
        keys = ("win_rate_a", "ties", "first_shown", "consistent", "changed", "accuracy")
        table.add_row(row["name"], *(bare(row[key]) for key in keys))
    return table
