"""A Slurm of its own on one host, without systemd, cgroups or a database: munged, slurmctld and
some slurmd with made-up GPUs. Needs root and Debian's packages slurm-wlm and munge.

    with Slurm(folder) as slurm:
        ...                    # sbatch, squeue and scontrol work, also for other processes
        slurm.kill_node(1)     # its slurmd and all processes of its jobs die at once

Its configuration is linked at /etc/slurm, the one place where every client finds it: the plugin
that starts a job's step removes SLURM_CONF from the environment.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ETC = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")

# Nodes are pretended to have 16 cores and 400 GB, so that what limits a job is its GPU. No memory
# or core is enforced. Finished jobs stay visible: there is no database to ask for them.
CONFIG = """\
ClusterName=simulated
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
FirstJobId={first_job}
MinJobAge=3600
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=2
ReturnToService=2
UnkillableStepTimeout=10
MaxArraySize=1001
"""
NODE = (
    "NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=400000 "
    "Gres=gpu:fake:{gpus}\n"
)
PARTITION = "PartitionName={name} Nodes=ALL MaxTime=UNLIMITED State=UP{default}\n"


def missing() -> str | None:
    """Why no Slurm can be started here; None if it can."""
    if os.geteuid() != 0:
        return "needs root, to start Slurm's daemons"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    if (ETC / "slurm.conf").exists() or (ETC / "slurm.conf").is_symlink():
        return f"{ETC}/slurm.conf exists: a Slurm is configured here already"
    return None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def fields(line: str) -> dict[str, str]:
    """`A=1 B=two words C=3`, as scontrol writes it."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Za-z:/_]+=|\s*$)", line))


class Slurm:
    """`nodes` nodes with `gpus` GPUs each, in the partitions gpu and cpu."""

    def __init__(self, folder: Path, nodes: int = 2, gpus: int = 4) -> None:
        self.folder = folder
        self.nodes = nodes
        self.gpus = gpus
        # Numbers that no other cluster's job here has: processes are found by their job's.
        self.first_job = 100_000 + os.getpid() % 100_000 * 100
        self._links: list[Path] = []

    def __enter__(self) -> "Slurm":
        self._configure()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.records():
            if job["JobState"] in ("RUNNING", "PENDING", "COMPLETING"):
                self._call("scancel", job["JobId"], check=False)
                self._end(processes(job["JobId"]))
        names = [f"node{i}" for i in range(1, self.nodes + 1)]
        for name in [*names, "slurmctld", "munged"]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                self._end([int((self.folder / f"{name}.pid").read_text())])
        for link in self._links:
            link.unlink(missing_ok=True)

    def records(self) -> list[dict[str, str]]:
        """What slurmctld knows of each job, finished ones included."""
        done = self._call("scontrol", "--oneliner", "--details", "show", "job", check=False)
        return [fields(line) for line in done.splitlines() if line.startswith("JobId=")]

    def kill_node(self, i: int) -> list[str]:
        """As if its power went: slurmd and every process of its jobs are gone. Returns the jobs."""
        name = f"node{i}"
        running = [
            job["JobId"]
            for job in self.records()
            if job["JobState"] == "RUNNING" and job.get("NodeList") == name
        ]
        os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)
        for job in running:
            self._end(processes(job), signal.SIGKILL)
        self._call("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")
        return running

    def _configure(self) -> None:
        # Slurm's daemons refuse keys and sockets that others could have written.
        for name in ("munge", "state", "devices", *(f"node{i}" for i in self._numbers())):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name).chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        port, *ports = free_ports(1 + self.nodes)
        config = CONFIG.format(host=host, port=port, folder=self.folder, first_job=self.first_job)
        for i, one in zip(self._numbers(), ports, strict=True):
            config += NODE.format(i=i, host=host, port=one, gpus=self.gpus)
        config += PARTITION.format(name="gpu", default="")
        config += PARTITION.format(name="cpu", default=" Default=YES")
        (self.folder / "slurm.conf").write_text(config)
        # Slurm sets CUDA_VISIBLE_DEVICES only for devices that are character devices.
        for i in range(self.gpus):
            device = self.folder / "devices" / f"gpu{i}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        files = f"{self.folder}/devices/gpu[0-{self.gpus - 1}]"
        lines = [f"NodeName=node{i} Name=gpu Type=fake File={files}\n" for i in self._numbers()]
        (self.folder / "gres.conf").write_text("".join(lines))

    def _start(self) -> None:
        ETC.mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).symlink_to(self.folder / name)
            self._links.append(ETC / name)
        munge = self.folder / "munge"
        self._call(
            *("munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket"),
            *(f"--pid-file={self.folder}/munged.pid", f"--seed-file={munge}/seed"),
            f"--log-file={self.folder}/munged.log",
        )
        self._call("slurmctld", "-c")
        for i in self._numbers():
            self._call("slurmd", "-N", f"node{i}")
        for _ in range(240):
            states = self._call("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t", check=False).split()
            if states == ["idle"] * self.nodes:
                return
            time.sleep(0.25)
        raise RuntimeError(f"the nodes did not become idle ({states}); see {self.folder}/*.log")

    def _numbers(self) -> range:
        return range(1, self.nodes + 1)

    @staticmethod
    def _call(*command: str, check: bool = True) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    @staticmethod
    def _end(pids: list[int], first: int = signal.SIGTERM) -> None:
        """End these processes, at the latest after five seconds."""
        for sign, seconds in ((first, 5), (signal.SIGKILL, 5)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            deadline = time.monotonic() + seconds
            while any(map(alive, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def processes(job: str) -> list[int]:
    """Every process of a job, however it was started: the job's number stands in its environment,
    or it is one of Slurm's own that look after the job."""
    return [int(folder.name) for folder in _folders() if _belongs(folder, job.encode())]


def _folders() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _belongs(folder: Path, job: bytes) -> bool:
    try:
        environment = (folder / "environ").read_bytes().split(b"\0")
        command = (folder / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return b"SLURM_JOB_ID=" + job in environment or command.startswith(
        b"slurmstepd: [" + job + b"."
    )
