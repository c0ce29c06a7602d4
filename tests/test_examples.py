"""The examples run as users run them, and say what they promise."""

import subprocess
import sys

from conftest import ROOT


def test_adapt_an_encoder():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "adapt_an_encoder.py")],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "a new task is the backbone: True"
    first, last = (float(line.rpartition(" ")[2]) for line in lines[1:3])
    assert last < 0.2 * first
    assert lines[3:6] == [
        "backbone: unchanged, bit for bit",
        "it_carlo: unchanged, bit for bit",
        "fr_june: adapted",
    ]
    assert lines[6].endswith("loaded again: True")
