"""What stands beside the rates in a comparison's page: choices on dev, and hours."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_hra.bench.quality_plan import DevRow
from espnet_hra.files.tables import markdown
from espnet_hra.report.page import stage_times


def best_rates(rows: Sequence[DevRow]) -> dict[str, DevRow]:
    """Of each method the rate that was best on dev, the lowest of equals.

    Args:
        rows: Of ``dev.tsv``.
    """
    rates = [row for row in rows if row.part == "rates"]
    rates.sort(key=lambda row: (row.cer, float(row.setting)), reverse=True)
    return {row.method: row for row in rates}


#: A longer training that is better by less than this share of its error is not better:
#: so much do two seeds differ.
_FLAT = 0.02


def open_ends(rows: Sequence[DevRow]) -> dict[str, str]:
    """Methods that may be better than they look: what they would need, in words.

    A best rate must have a worse one on either side, and of the lengths the longest
    must bring nothing more.

    Args:
        rows: Of ``dev.tsv``.
    """
    found: dict[str, list[str]] = {}
    for method, best in best_rates(rows).items():
        tried = [
            float(row.setting)
            for row in rows
            if (row.part, row.method) == ("rates", method)
        ]
        rate = float(best.setting)
        if rate in (min(tried), max(tried)):
            which = "highest" if rate == max(tried) else "lowest"
            found.setdefault(method, []).append(
                f"the best rate is the {which} that was tried, {best.setting}"
            )
    for method, own in _of_part(rows, "lengths").items():
        by_length = sorted(own, key=lambda row: int(row.setting))
        if len(by_length) > 1:
            *shorter, longest = by_length
            if longest.cer < (1.0 - _FLAT) * min(row.cer for row in shorter):
                found.setdefault(method, []).append(
                    f"dev still falls at {longest.setting} times the updates"
                )
    return {method: "; ".join(said) for method, said in found.items()}


def _of_part(rows: Sequence[DevRow], part: str) -> dict[str, list[DevRow]]:
    """The rows of a part, by method."""
    by_method: dict[str, list[DevRow]] = {}
    for row in rows:
        if row.part == part:
            by_method.setdefault(row.method, []).append(row)
    return by_method


def dev_tables(
    rows: Sequence[DevRow], differing: Mapping[str, float], measure: str = "CER"
) -> str:
    """What was judged on dev, for people.

    Args:
        rows: Of ``dev.tsv``.
        differing: Methods whose file has another rate than the best.
        measure: What they were judged by.
    """
    parts, best = [], best_rates(rows)
    by_method, open_methods = _of_part(rows, "rates"), open_ends(rows)
    if by_method:
        one = next(iter(by_method.values()))[0]
        parts.append("## Learning rates, chosen on dev\n")
        parts.append(
            f"{measure} (%) on the dev sets of {one.tasks} tasks at each peak rate, "
            f"after {one.updates} updates.\n"
        )
        lines = [["method", f"rate: {measure}", "chosen"]]
        for method, own in by_method.items():
            own = sorted(own, key=lambda row: float(row.setting))
            chosen = best[method].setting
            text = ", ".join(f"{row.setting}: {row.cer:.1f}" for row in own)
            if method in differing:
                chosen += " (its file has another)"
            lines.append([method, text, chosen])
        parts.append(markdown(lines))
    by_length = _of_part(rows, "lengths")
    if by_length:
        parts.append("## Lengths, judged on dev\n")
        parts.append(f"{measure} (%) on dev after so many updates.\n")
        lines = [["method", "updates: result"]]
        for method, own in by_length.items():
            own = sorted(own, key=lambda row: int(row.setting))
            lines.append(
                [method, ", ".join(f"{row.updates}: {row.cer:.1f}" for row in own)]
            )
        parts.append(markdown(lines))
    if open_methods:
        parts.append("What is open (a fair comparison goes on with these):\n")
        parts += [f"* `{method}`: {said}" for method, said in open_methods.items()]
        parts.append("")
    choices: dict[str, list[DevRow]] = {}
    for row in rows:
        if row.part == "choices":
            choices.setdefault(row.setting, []).append(row)
    if choices:
        first = next(iter(choices.values()))
        usual = {row.seed: row.cer for row in first}
        parts.append(f"## Choices of `{first[0].method}`, on dev\n")
        parts.append(
            f"{measure} (%) on the dev sets of {first[0].tasks} tasks after "
            f"{first[0].updates} updates, and the difference that each change makes "
            "with the same seeds.\n"
        )
        lines = [["", "seeds", measure, "change"]]
        for name, own in choices.items():
            mean = sum(row.cer for row in own) / len(own)
            paired = [row.cer - usual[row.seed] for row in own if row.seed in usual]
            change = ""
            if own is not first and paired:
                change = f"{sum(paired) / len(paired):+.1f}"
            lines.append([name, str(len(own)), f"{mean:.1f}", change])
        parts.append(markdown(lines))
    return "\n".join(parts)


def hours(times: Path) -> str:
    """What all of it took."""
    if not times.exists():
        return ""
    seconds = {"training": 0, "decoding": 0}
    for stage, *_, value in stage_times(times):
        kind = {"11": "training", "9": "decoding", "12": "decoding"}.get(stage)
        if kind and value.isdecimal():
            seconds[kind] += int(value)
    said = ", ".join(f"{kind} {s / 3600:.1f} h" for kind, s in seconds.items())
    return (
        f"## Time\n\nAll runs together: {said} ({os.cpu_count()} CPU cores, "
        "shared with other work).\n"
    )
