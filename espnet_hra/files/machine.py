"""What the machine has."""

import re
from pathlib import Path


def available_memory() -> int:
    """Bytes of memory that can still be taken; 0 where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    found = re.search(r"MemAvailable:\s*(\d+)", text)
    return 1024 * int(found[1]) if found else 0
