"""`python -m tests.soak --minutes 10`: the soak; its report goes to build/soak.json."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.soak.run import soak


def main() -> int:
    options = argparse.ArgumentParser(prog="soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and the victims")
    options.add_argument("--output", type=Path, default=Path("build/soak.json"))
    given = options.parse_args()
    report = {"seed": given.seed, **soak(given.minutes * 60, given.seed)}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "log"}, indent=2))
    return bool(report["mismatches"] or report["io_errors"])


if __name__ == "__main__":
    sys.exit(main())
