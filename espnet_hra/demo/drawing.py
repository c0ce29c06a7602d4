"""Pictures of the page, with a text for those who do not see them."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espnet_hra.demo.learned import Learned
from espnet_hra.demo.showing import escape
from espnet_hra.report.pictures import encoded, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve(found: Sequence[Learned]) -> "Figure":
    """The learning curve: wrong words by sentences learned, the base first.

    Raises:
        ReportError: matplotlib is not installed.
    """
    before, _, _ = found[0].rates()
    values = [before, *(one.rates()[1] for one in found)]
    at = [0, *(one.sentences for one in found)]
    bars = [
        [max(0.0, v.value - v.low) if v.low == v.low else 0.0 for v in values],
        [max(0.0, v.high - v.value) if v.high == v.high else 0.0 for v in values],
    ]
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    axes.errorbar(
        at,
        [v.value for v in values],
        yerr=bars,
        marker="o",
        color="#0072B2",
        capsize=3,
        linewidth=1.2,
    )
    axes.set_ylim(bottom=0)
    axes.set_xticks(at)
    axes.set_xlabel("sentences that were learned")
    axes.set_ylabel("wrong words (%)")
    axes.grid(axis="y", color="#d0d0d0", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def image(figure: "Figure", alt: str) -> str:
    """A figure within the page.

    Args:
        figure: The figure.
        alt: What it shows, in words.
    """
    content = base64.b64encode(encoded(figure, "png")).decode()
    return (
        f'<img src="data:image/png;base64,{content}" alt="{escape(alt)}" '
        'style="max-width: 100%; background: white">'
    )
