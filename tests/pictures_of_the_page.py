"""Makes the pictures of docs/demo.md: the page in Chromium, with a model and a voice.

    PYTHONPATH=tests python tests/pictures_of_the_page.py exp/asr_hra \
        --recording FILE --said TEXT --tasks it_carlo fr_june --language it \
        --voice DIR --task fr_tux --voice_language fr --config teach.yaml --seed 1

DIR has recordings in the order of their names, and what is said in them in
sentences.txt, one a line. Without --voice only the first picture is made. Pictures are
written to docs/demo.
"""

import argparse
import re
import tempfile
from pathlib import Path

from browser import PATIENCE, chromium, demo, panel, upload

#: Pixels around the page.
_MARGIN = 24


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an adaptation; its folder gets the new task")
    parser.add_argument("--recording", required=True, help="to compare")
    parser.add_argument("--said", required=True, help="what is said in it")
    parser.add_argument("--tasks", nargs="+", required=True, help="to compare")
    parser.add_argument("--language", help="code of the recording's language")
    parser.add_argument("--voice", type=Path, help="folder to teach")
    parser.add_argument("--task", help="name of the new task")
    parser.add_argument("--voice_language", help="code of its language")
    parser.add_argument("--config", help="as of espnet-hra demo")
    parser.add_argument("--seed", help="as of espnet-hra demo")
    parser.add_argument("--out", type=Path, default=Path("docs/demo"))
    return parser


def main() -> None:
    """Make them."""
    args = get_parser().parse_args()
    options = [args.model]
    if args.voice:
        options += ["--sentences", args.voice / "sentences.txt"]
    for name in ("config", "seed"):
        if getattr(args, name):
            options += [f"--{name}", getattr(args, name)]
    with (
        tempfile.TemporaryDirectory() as temporary,
        demo(options, Path(temporary)) as place,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.set_default_timeout(3000 * PATIENCE)
        page.goto(place)
        page.get_by_role("tab", name="Listen").wait_for()
        listen(page, args)
        shoot(page, args.out / "listen.png")
        if not args.voice:
            return
        teach(page, args)
        shoot(page, args.out / "teach.png")
        look(page, args)
        shoot(page, args.out / "inside.png")


def listen(page, args: argparse.Namespace) -> None:
    """Compare the base and tasks."""
    part = panel(page, "Listen")
    upload(part, args.recording)
    part.get_by_role("button", name="Play", exact=True).wait_for()
    for task in args.tasks:
        part.get_by_role("checkbox", name=task, exact=True).check()
    choose(page, part, "Language that is spoken", args.language)
    part.get_by_role("textbox", name=re.compile("What was said")).fill(args.said)
    part.get_by_role("button", name="Compare").click()
    part.get_by_role("table", name="Transcripts").wait_for()


def teach(page, args: argparse.Namespace) -> None:
    """Teach a task, and draw its learning curve."""
    part = panel(page, "Teach")
    paths = sorted(p for p in args.voice.iterdir() if p.name != "sentences.txt")
    upload(part, paths, first=False)
    part.get_by_text(f"{len(paths)} recordings were kept").wait_for()
    part.get_by_role("button", name="Play", exact=True).wait_for()
    part.get_by_role("textbox", name="Name of the new task").fill(args.task)
    choose(page, part, "Language of the sentences", args.voice_language)
    part.get_by_role("button", name="Teach", exact=True).click()
    part.get_by_text(f"The task {args.task} is taught").wait_for()
    part.get_by_role("button", name="Draw the learning curve").click()
    part.get_by_role("img", name=re.compile("Learning curve")).wait_for()


def look(page, args: argparse.Namespace) -> None:
    """Look inside, with what was recorded."""
    part = panel(page, "Look inside")
    for task in (*args.tasks, args.task):
        part.get_by_role("checkbox", name=task, exact=True).check()
    part.get_by_role("button", name="Look inside").click()
    part.get_by_role("table", name="Tasks side by side").wait_for()


def choose(page, part, label: str, code: str | None) -> None:
    """Choose a language, if there is one to choose."""
    if code:
        box = part.get_by_label(label)
        box.click()
        box.fill(code)
        page.get_by_role("option", name=code, exact=True).click()


def shoot(page, path: Path) -> None:
    """A picture of the whole page, with a margin and without the footer."""
    page.evaluate("() => document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.evaluate("() => window.scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    box = page.locator("main").bounding_box()
    clip = {key: box[key] - _MARGIN for key in ("x", "y")}
    clip |= {key: box[key] + 2 * _MARGIN for key in ("width", "height")}
    page.screenshot(path=path, full_page=True, clip=clip)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
