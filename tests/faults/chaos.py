"""Random faults over a small run: python tests/faults/chaos.py --faults 100 --seed 1

Each fault starts from a finished run from which the outputs of some step on are taken away. Then a
process is killed at a random moment, a file is damaged, or the disk is full. A user's remedy
follows: delete what the error lines name, run again. Survived: the final files are those of the
undisturbed run, and nothing in the store is damaged or temporary. Lost: they are not. Hung: a run
did not end by itself. Exit status 1 if anything is lost or hung.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from small_run import REMEDY, Run, config, cut_short, flip, job_processes, write_corpus

# How often a run is taken up at each step; the early ones are slow and load torch.
STARTS = {"score": 8, "merge": 8, "search": 4, "encode": 2, "stage": 1, "all": 1}
KINDS = (
    "kill the machine",
    "kill the workflow",
    "kill a job",
    "flip a bit",
    "cut a file",
    "full disk",
)
SCRIPTS = {  # that run after the step's outputs were taken away
    "score": ["score_runs", "make_report", "show_results"],
    "merge": ["merge_runs", "bm25_run", "fuse_runs", "score_runs"],
    "search": ["search", "merge_runs"],
    "encode": ["encode", "search"],
    "stage": ["stage_model", "preflight_model", "encode"],
    "all": ["download_model", "prepare_dataset", "stage_model"],
}


class Fault(NamedTuple):
    number: int
    kind: str
    start: str
    seed: int


class Outcome(NamedTuple):
    fault: Fault
    what: str  # survived, lost or hung
    detail: str
    seconds: float


def faults(count: int, seed: int) -> list[Fault]:
    rng = random.Random(seed)
    chosen = []
    for number in range(count):
        start = rng.choices(list(STARTS), list(STARTS.values()))[0]
        chosen.append(Fault(number, rng.choice(KINDS), start, rng.getrandbits(32)))
    return chosen


def disturb(run: Run, fault: Fault, rng: random.Random) -> str:
    """Bring the fault about; returns what was done."""
    if fault.kind.startswith("kill"):
        return kill(run, fault, rng)
    if fault.kind == "full disk":
        return fill(run, fault, rng)
    files = [p for top in ("store", "results") for p in (run.workdir / top).rglob("*")]
    files = sorted(p for p in files if p.is_file() and not p.is_symlink() and p.stat().st_size)
    if not files:  # the run starts from nothing
        return "nothing to damage"
    path = rng.choice(files)
    (flip if fault.kind == "flip a bit" else cut_short)(path, rng)
    return str(path.relative_to(run.workdir))


def kill(run: Run, fault: Fault, rng: random.Random) -> str:
    script, delay = rng.choice(SCRIPTS[fault.start]), rng.uniform(0, 1.5)
    process = run.start()
    while process.poll() is None and not job_processes(process.pid, script):
        time.sleep(0.05)
    time.sleep(delay)
    late = "" if process.poll() is None else ", too late"
    if fault.kind == "kill a job":
        for number in job_processes(process.pid)[:1]:
            with suppress(ProcessLookupError):  # it was faster
                os.kill(number, signal.SIGKILL)
        run.finish(process)
    elif fault.kind == "kill the workflow":  # its jobs go on, beside those of the next run
        process.kill()
        process.wait()
    else:
        run.kill(process)
    return f"{delay:.1f} s into {script}{late}"


def fill(run: Run, fault: Fault, rng: random.Random) -> str:
    """Run once with the store or the whole working directory on a disk that soon is full."""
    place = rng.choice([run.workdir, run.workdir / "store"])
    place.mkdir(exist_ok=True)
    kept = run.workdir.parent / f"kept-{fault.number}"
    shutil.copytree(place, kept, symlinks=True)
    used = int(subprocess.check_output(["du", "-sk", "--apparent-size", kept]).split()[0])
    files = sum(1 for _ in kept.rglob("*"))
    room = rng.choice([rng.randrange(4, 200), rng.randrange(200, 12000)])
    size = used + 4 * files + room
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "chaos", str(place)]
    subprocess.run(mount, check=True)
    try:
        shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)
        run()
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        shutil.copytree(place, kept, symlinks=True)  # what the full disk left
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    shutil.rmtree(place)
    shutil.move(kept, place)
    return f"{room} kB left for {place.relative_to(run.workdir.parent)}"


def suffer(fault: Fault, finished: Run, folder: Path) -> Outcome:
    """One fault, its remedy and what came of it."""
    began = time.monotonic()
    rng = random.Random(fault.seed)
    run = finished.copy(folder / f"fault-{fault.number}")
    run.cut(fault.start)
    detail = ""
    try:
        detail = disturb(run, fault, rng)
        status, said = run.mend()
        what, why = judge(run, finished, status)
        if REMEDY.search("".join(said)):
            detail += "; refused by name"
        detail += f"; {len(said) // 2 or 1} run(s){why}"
        if what == "lost":
            detail += "".join(f"\n    {line}" for line in said[-1].splitlines()[-15:])
    except subprocess.TimeoutExpired:
        what = "hung"
    if what == "survived":
        shutil.rmtree(run.workdir)
    return Outcome(fault, what, detail, time.monotonic() - began)


def judge(run: Run, finished: Run, status: int) -> tuple[str, str]:
    if status:
        return "lost", f"; the last run ended with status {status}"
    wanted, found = finished.results(), run.results()
    differ = sorted(name for name in wanted if wanted[name] != found.get(name))
    if differ:
        return "lost", f"; {', '.join(differ)} differ"
    left = run.temporaries()
    return ("lost", f"; left in the store: {left[0].name}") if left else ("survived", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--only", type=int, help="one fault of the seed, by its number")
    parser.add_argument("--first", type=int, default=0, help="leave out those before this one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        finished = Run(Path(folder) / "finished", config(write_corpus(Path(folder) / "corpus")))
        status, output = finished()
        if status:
            sys.exit(f"the undisturbed run failed:\n{output}")
        chosen = faults(args.faults, args.seed)
        chosen = [f for f in chosen if args.only in (None, f.number) and f.number >= args.first]
        counts: Counter[str] = Counter()
        with ThreadPoolExecutor(args.at_once) as pool:
            for done in pool.map(lambda f: suffer(f, finished, Path(folder)), chosen):
                fault = done.fault
                counts[done.what] += 1
                print(
                    f"{fault.number:3} {done.what:8} {fault.kind}, run from {fault.start}: "
                    f"{done.detail} ({done.seconds:.0f} s)",
                    flush=True,
                )
    shown = ", ".join(f"{counts[what]} {what}" for what in ("survived", "lost", "hung"))
    print(f"{sum(counts.values())} faults: {shown}")
    sys.exit(1 if counts["lost"] or counts["hung"] else 0)


if __name__ == "__main__":
    main()
