"""What tests ask of processes that are not their own children."""

import time

import psutil


def ended(pids, within_s=30):
    """Whether none of these processes runs any more; wait for it so long.

    One that only waits to be reaped has ended.
    """
    until_s = time.monotonic() + within_s
    while any(map(_runs, pids)):
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.05)
    return True


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
