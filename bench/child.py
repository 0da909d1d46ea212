"""One task of one case, in a process of its own; what was measured goes to stdout as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.measure import case_named, perform

if __name__ == "__main__":
    name, task, folder, argument = sys.argv[1:]
    print(json.dumps(perform(case_named(name), task, Path(folder), argument)))
