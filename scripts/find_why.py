"""Why isn't a published number reproduced? Try the usual suspects and name the one that matches.

Settings are rows of a plan with more rows, which the same workflow is started with once more: they
are cached, and a cluster runs them as it runs others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.evaluation import suspects
from embedrepro.files import write_text
from embedrepro.plan.build import GIVEN
from embedrepro.plan.plan import read_plan, write_plan
from embedrepro.plan.restart import restart, restart_parser
from embedrepro.plan.trials import inquire
from embedrepro.report.write import show

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    options = restart_parser(__doc__).parse_args()
    plan = read_plan(options.plan)
    folder, rows = Path(plan.report).parent, plan.artifacts[plan.report].spec["rows"]
    results = Path(plan.results)
    inquiry = inquire(plan, REPOSITORY)
    answers, status = [], 0
    if inquiry:
        wider = write_plan(inquiry.plan, ".embed-repro")
        status = restart(inquiry.plan, options, "scores", {GIVEN: str(wider.absolute())})
        answers = inquiry.answers()
    write_text(folder / suspects.TABLE, suspects.table(answers))
    print(show(folder, rows, results))
    for line in suspects.told(answers):
        print(line)
    if answers:
        print(f"All settings tried: {results / suspects.TABLE}")
    elif inquiry:
        print("why: no setting can be varied of the rows whose numbers were not reproduced")
    else:
        print("why: no published number that was compared is off")
    sys.exit(status)


if __name__ == "__main__":
    run_cli(main)
