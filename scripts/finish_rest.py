"""After a run in which something could not be made: make what that held up.

A job makes a list, so what one mistake stops may hold up others. They are made by the same command
once more, without the rows that can't be.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.build import WITHOUT
from embedrepro.plan.plan import read_plan
from embedrepro.plan.restart import restart, restart_parser
from embedrepro.plan.show import refused


def main() -> None:
    options = restart_parser(__doc__).parse_args()
    plan = read_plan(options.plan)
    rows = plan.artifacts[plan.report].spec["rows"]
    known = set(json.loads(os.environ.get(WITHOUT, "[]")))
    lost = refused(plan, rows) | known
    left = [row for row in rows if not Path(row["scores"]).exists()]
    if lost == known or len(left) == len(lost - known):
        return
    restart(plan, options, "scores", {WITHOUT: json.dumps(sorted(lost))})


if __name__ == "__main__":
    run_cli(main)
