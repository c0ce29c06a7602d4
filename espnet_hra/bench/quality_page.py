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


def dev_tables(rows: Sequence[DevRow], differing: Mapping[str, float]) -> str:
    """What was judged on dev, for people.

    Args:
        rows: Of ``dev.tsv``.
        differing: Methods whose file has another rate than the best.
    """
    parts, best = [], best_rates(rows)
    by_method: dict[str, list[DevRow]] = {}
    for row in rows:
        if row.part == "rates":
            by_method.setdefault(row.method, []).append(row)
    if by_method:
        parts.append("## Learning rates, chosen on dev\n")
        parts.append(
            f"CER (%) on the dev sets of {rows[0].tasks} tasks at each peak rate, "
            f"after {rows[0].updates} updates.\n"
        )
        lines = [["method", "rate: CER", "chosen"]]
        for method, own in by_method.items():
            own = sorted(own, key=lambda row: float(row.setting))
            chosen = best[method].setting
            text = ", ".join(f"{row.setting}: {row.cer:.1f}" for row in own)
            if method in differing:
                chosen += " (its file has another)"
            lines.append([method, text, chosen])
        parts.append(markdown(lines))
    choices: dict[str, list[DevRow]] = {}
    for row in rows:
        if row.part == "choices":
            choices.setdefault(row.setting, []).append(row)
    if choices:
        first = next(iter(choices.values()))
        usual = {row.seed: row.cer for row in first}
        parts.append(f"## Choices of `{first[0].method}`, on dev\n")
        parts.append(
            f"CER (%) on the dev sets of {first[0].tasks} tasks after "
            f"{first[0].updates} updates, and the difference that each change makes "
            "with the same seeds.\n"
        )
        lines = [["", "seeds", "CER", "change"]]
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
