#!/usr/bin/env python3
"""Run a command with N GPUs of its own: gpu_slot.py N [--shared] -- command [argument…]

Snakemake counts `gpu` but sets no CUDA_VISIBLE_DEVICES. Here each device has a lock file in a
folder of this node; a job that wants N devices waits for a gate, takes N free ones at once and
becomes the command, which keeps the locks. The kernel drops a lock when its holder ends, however it
ends. An inherited CUDA_VISIBLE_DEVICES is the pool and is only ever narrowed; an allocation of
exactly N devices is passed on as it is. `--shared`: one device, together with a few others that
said so. Standard library only: it starts with every GPU job.
"""

# ruff: noqa: PTH101, PTH102
# (pathlib alone would double the time this takes to start)
import contextlib
import fcntl
import os
import sys
import time

POLL = 0.2  # seconds between looks for a free device
SHARES = 4  # jobs of little work on one device


def fail(message: str) -> None:
    print(f"error: gpu_slot: {message}", file=sys.stderr)
    sys.exit(2)


def listed() -> list[list[str]]:
    """What `nvidia-smi -L` lists: for each GPU its UUID, then those of its MIG instances."""
    import subprocess

    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    groups: list[list[str]] = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        kind, _, uuid = line.strip().partition("UUID: ")
        if uuid and kind.startswith("GPU "):
            groups.append([uuid.rstrip(")")])
        elif uuid and kind.startswith("MIG ") and groups:
            groups[-1].append(uuid.rstrip(")"))
    return groups


def pool() -> list[str]:
    """The devices this process may use: CUDA_VISIBLE_DEVICES if set, else all of the node.

    Of the node, a GPU is its index and a MIG instance, which has none, its UUID.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        groups = listed()
        return [one for i, group in enumerate(groups) for one in (group[1:] or [str(i)])]
    ids = [part.strip() for part in given.split(",")]
    # As CUDA reads it: the list ends at the first invalid entry.
    end = next((i for i, one in enumerate(ids) if one in ("", "-1")), len(ids))
    return list(dict.fromkeys(ids[:end]))


def allocation() -> str | None:
    """The scheduler's job this process is part of."""
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    return None


def plain(text: str) -> str:
    """`text` as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)


def lock_names(ids: list[str]) -> dict[str, str]:
    """A lock's name for each id: one GPU has one name, be it given by index or by UUID."""
    names = {}
    groups = listed() if any(one.startswith("GPU-") for one in ids) else []
    for one in ids:
        found = [str(i) for i, group in enumerate(groups) if group[0].startswith(one)]
        name = found[0] if len(found) == 1 and one.startswith("GPU-") else one
        names[one] = "device-" + plain(name)
    return names


def lock_folder() -> str:
    """A folder of this node, shared by its users; one per allocation, where ids may be relative."""
    base = os.environ.get("EMBEDREPRO_GPU_LOCKS", "/tmp")
    folder = f"{base}/embedrepro-gpu-{plain(allocation() or 'node')}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        os.chmod(folder, 0o1777)
    return folder


def lock(path: str, wait: bool, shared: bool = False) -> int | None:
    """A locked descriptor of `path` that survives exec; None if another holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Created apart from opened: Linux forbids O_CREAT on another user's file in such a folder.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        return lock(path, wait, shared)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.set_inheritable(descriptor, True)
    return descriptor


def take(ids: list[str], count: int) -> list[str]:
    """Lock `count` of the devices, waiting as long as it takes; the locks outlive this call.

    Who waits holds the gate, so jobs are served one after the other: those that want one device
    don't overtake one that wants many, and no two hold half of what they want.
    """
    folder = lock_folder()
    names = lock_names(ids)
    gate = lock(f"{folder}/gate", wait=True)
    held: list[str] = []
    while True:
        for one in ids:
            if one in held or lock(f"{folder}/{names[one]}", wait=False) is None:
                continue
            held.append(one)
            if len(held) == count:
                os.close(gate)
                return sorted(held, key=ids.index)
        time.sleep(POLL)


def join(ids: list[str]) -> str:
    """A share of one of the devices, of the emptiest first; waits like `take`."""
    folder = lock_folder()
    names = lock_names(ids)
    gate = lock(f"{folder}/gate", wait=True)
    while True:
        for share in range(SHARES):
            for one in ids:
                place = lock(f"{folder}/{names[one]}.share-{share}", wait=False)
                if place is None:
                    continue
                if lock(f"{folder}/{names[one]}", wait=False, shared=True) is not None:
                    os.close(gate)
                    return one
                os.close(place)  # a job has the device for itself
        time.sleep(POLL)


def choose(count: int, shared: bool = False) -> str | None:
    """What CUDA_VISIBLE_DEVICES has to be for `count` devices; None leaves it as it is."""
    if count == 0:
        return ""
    ids = pool()
    if not ids:
        return None  # no GPU here: the command runs on the CPU
    if len(ids) < count:
        fail(f"{count} GPUs asked for, {len(ids)} visible ({','.join(ids)}); lower the rule's gpu")
    if len(ids) == count and allocation():
        return None
    return join(ids) if shared else ",".join(take(ids, count))


def main(arguments: list[str]) -> None:
    shared = arguments[:2] == ["1", "--shared"]
    if shared:
        del arguments[1]
    if len(arguments) < 3 or arguments[1] != "--" or not arguments[0].isdecimal():
        fail("usage: gpu_slot.py N [--shared] -- command [argument…]; only one can be shared")
    devices = choose(int(arguments[0]), shared)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    if shown := os.environ.get("CUDA_VISIBLE_DEVICES"):  # the job's log says where it ran
        where = f" ({allocation()})" if allocation() else ""
        print(f"gpu_slot: CUDA_VISIBLE_DEVICES={shown}{where}", file=sys.stderr, flush=True)
    try:
        os.execvp(arguments[2], arguments[2:])
    except OSError as error:
        fail(f"{arguments[2]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
