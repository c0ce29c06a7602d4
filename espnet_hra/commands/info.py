"""Options with what is said about a task: licence, languages, data."""

import argparse
from typing import Any


def add_info(parser: argparse.ArgumentParser, data: str) -> None:
    """Options with what is said about a task."""
    parser.add_argument("--license", help="licence, e.g. cc-by-4.0")
    parser.add_argument("--language", help="language codes, e.g. fr or 'fr it'")
    parser.add_argument("--data", dest="about", metavar="TEXT", help=data)


def info_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say about a task."""
    languages = (args.language or "").replace(",", " ").split()
    return {
        "license": args.license,
        "languages": languages or None,
        "data": args.about,
    }
