"""A sweep on a Slurm cluster, through dask-jobqueue. UNRUN on a real cluster.

    pip install dask-jobqueue
    python examples/slurm.py 4 data/grids/04_evaluation.yml --jobs 16

Run it on a login node, from the checkout, in the environment of the thesis. Each job is
one worker that executes one point at a time; jobs see the checkout where the login node
sees it, on the file system that such clusters share. Set the queue, the account and the
network interface of your cluster below.
"""

import argparse
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# Keyword arguments of dask_jobqueue.SLURMCluster.
JOB = {
    "queue": "normal",
    "account": None,
    "cores": 2,  # of a job; its one worker gives them all to one kernel
    "processes": 1,
    "memory": "8GB",
    "walltime": "04:00:00",
    "interface": None,  # such as ib0, where the default is not reachable
    "python": sys.executable,
    "local_directory": "/tmp",  # of the node: nothing in it is needed afterwards
    "log_directory": str(CHECKOUT / "build" / "slurm"),
    "job_script_prologue": [
        f"cd {CHECKOUT}",
        # Dask would give each kernel one thread, whatever the job has.
        *(
            f"export {name}=2"
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        ),
    ],
    # The last one counts: one thread, which is one kernel, whatever the cores.
    "worker_extra_args": ["--nthreads", "1"],
    "scheduler_options": {"dashboard": False},
}


def command(chapter: str, grid: str, address: str) -> list[str]:
    """The sweep itself: the client of the cluster's scheduler."""
    thesis = str(Path(sys.executable).with_name("thesis"))
    return [thesis, "sweep", chapter, grid, "--scheduler", address]


def main() -> int:
    parser = argparse.ArgumentParser(description="A sweep on Slurm.")
    parser.add_argument("chapter")
    parser.add_argument("grid")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument(
        "--script", action="store_true", help="print the script of a job and end"
    )
    given = parser.parse_args()
    from dask_jobqueue import SLURMCluster  # no dependency of the thesis

    with SLURMCluster(**JOB) as cluster:
        if given.script:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=given.jobs)
        words = command(given.chapter, given.grid, cluster.scheduler_address)
        return subprocess.run(words, cwd=CHECKOUT).returncode


if __name__ == "__main__":
    sys.exit(main())
