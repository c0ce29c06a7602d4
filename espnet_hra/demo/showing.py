"""What the page shows, as HTML that screen readers can read."""

import difflib
import html
from collections.abc import Sequence

from espnet_hra.demo.learned import Learned, verdict
from espnet_hra.demo.listening import Reading
from espnet_hra.demo.sentences import folded
from espnet_hra.demo.teaching import Progress
from espnet_hra.report.scoring import count_errors
from espnet_hra.report.statistics import Interval

#: How differences are marked: not by colour alone.
STYLE = """
.hra-table {border-collapse: collapse; width: 100%; margin: 0.5em 0}
.hra-table caption {text-align: left; font-weight: 600; padding: 0.3em 0}
.hra-table th, .hra-table td {border: 1px solid #8886; padding: 0.35em 0.6em;
    text-align: left; vertical-align: top}
.hra-table td.number {text-align: right; white-space: nowrap}
.hra-new {text-decoration: underline; text-decoration-thickness: 2px;
    font-weight: 600; background: #0072b233}
.hra-gone {text-decoration: line-through; background: #d55e0033}
.hra-note {margin: 0.4em 0}
.hra-error {border-left: 5px solid #c62828; padding: 0.5em 0.8em; font-weight: 600}
.hra-sentence {font-size: 1.5em; line-height: 1.35; margin: 0.2em 0}
.hra-status progress {width: 100%; height: 1.2em; accent-color: #2563eb}
"""

#: How the base is called on the page.
BASE = "base (no task)"


def escape(text: str) -> str:
    """A text that is no HTML."""
    return html.escape(text, quote=True)


def marked(text: str, other: str) -> str:
    """A text whose words that another does not have are marked, as HTML.

    Words are compared without case and signs. Words that only the other has are shown
    struck through.

    Args:
        text: The text.
        other: What it is compared with.
    """
    words, others = text.split(), other.split()
    keys, other_keys = ([folded(w) or w for w in one] for one in (words, others))
    matcher = difflib.SequenceMatcher(None, other_keys, keys, autojunk=False)
    parts = []
    for tag, i, j, k, n in matcher.get_opcodes():
        gone = escape(" ".join(others[i:j]))
        new = escape(" ".join(words[k:n]))
        if tag == "equal":
            parts.append(new)
            continue
        if gone:
            parts.append(f'<del class="hra-gone">{gone}</del>')
        if new:
            parts.append(f'<ins class="hra-new">{new}</ins>')
    return " ".join(parts)


def readings(found: Sequence[Reading], said: str = "") -> str:
    """Texts of the base and of tasks side by side.

    Args:
        found: The base's first.
        said: What was said, if it is known: differences are then those from it, and
            word error rates are told.
    """
    against = said or found[0].text
    head = ["read by", "text"] + (["word errors"] if said else [])
    body = []
    for one in found:
        text = marked(one.text, against) if one.task or said else escape(one.text)
        if not one.text.strip():
            text = f"<em>(nothing)</em> {text}".strip()
        row = [escape(one.task or BASE), text]
        if said:
            errors = count_errors([(folded(said), folded(one.text))])
            row.append(f"{errors.wer:.0f} %")
        body.append(row)
    against_what = "from what was said" if said else "from the base"
    note = (
        f'<p class="hra-note">Differences {against_what}: <ins class="hra-new">only '
        'here</ins>, <del class="hra-gone">not here</del>.</p>'
    )
    return table("Transcripts", head, body, numbers=(2,)) + note


def learned(found: Learned, task: str) -> str:
    """Error rates before and after, and each held-out sentence."""
    rates = []
    for what, name in (("word_errors", "words"), ("character_errors", "characters")):
        before, after, change = found.rates(what)
        rates.append(
            [f"wrong {name}", *map(_rate, (before, after)), _rate(change, "+")]
        )
    count = len(found.held)
    caption = (
        f"Error rates on {count} held-out sentence{'s' if count != 1 else ''} (taught "
        f"with {found.sentences}), with 95 % intervals"
    )
    head = ["", BASE, f"task {task}", "change"]
    text = table(caption, head, [[escape(c) for c in row] for row in rates], (1, 2, 3))
    text += note(verdict(found))
    if count < 2:
        text += note("Of one sentence there is no interval: record more of them.")
    body = [
        [escape(one.said), marked(one.before, one.said), marked(one.after, one.said)]
        for one in found.held
    ]
    names = ["said", BASE, f"task {task}"]
    return text + table("Each held-out sentence", names, body)


def curve(found: Sequence[Learned]) -> str:
    """A learning curve as a table: the base, then heads of more and more sentences."""
    before, _, _ = found[0].rates()
    body = [["0", escape(_rate(before))]]
    body += [[str(one.sentences), escape(_rate(one.rates()[1]))] for one in found]
    caption = "Wrong words by the number of sentences that were learned"
    return table(caption, ["sentences", "wrong words"], body, (1,))


def _rate(value: Interval, sign: str = "") -> str:
    unit = " %" if not sign else ""
    text = value.text(sign)
    return text.replace(" [", f"{unit} [", 1) if " [" in text else f"{text}{unit}"


def table(
    caption: str,
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
) -> str:
    """A table; cells of the body are HTML already, caption and head are not.

    Args:
        caption: What it is of.
        head: Names of the columns.
        body: Rows; the first cell of each is its name.
        numbers: Columns that are set to the right.
    """
    lines = ['<table class="hra-table">', f"<caption>{escape(caption)}</caption>"]
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines.append(f"<thead><tr>{names}</tr></thead><tbody>")
    for first, *rest in body:
        cells = "".join(
            f"<td{' class="number"' if i in numbers else ''}>{cell}</td>"
            for i, cell in enumerate(rest, 1)
        )
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def note(text: str) -> str:
    """A remark."""
    return f'<p class="hra-note">{escape(text)}</p>'


def error(text: str) -> str:
    """What went wrong; read out at once."""
    return f'<p class="hra-error" role="alert">{escape(text)}</p>'


def progress(found: Progress) -> str:
    """How far a training is."""
    share = round(100 * found.share)
    return (
        f'<div class="hra-status" role="status"><p>{escape(found.text)}</p>'
        f'<progress max="100" value="{share}" aria-label="Progress of the training">'
        f"{share} %</progress></div>"
    )


def sentence(number: int, sentences: Sequence[str], recorded: Sequence[int]) -> str:
    """The sentence that is to be read."""
    state = "recorded" if number in recorded else "not recorded yet"
    return (
        f'<div role="status"><p class="hra-note">Sentence {number + 1} of '
        f"{len(sentences)} ({state}; {len(recorded)} recorded in all)</p>"
        f'<p class="hra-sentence">{escape(sentences[number])}</p></div>'
    )
