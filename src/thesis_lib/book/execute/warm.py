"""Kernels that start warm: forked from a process that has imported what they import.

A kernel spends seconds on importing what the kernel before it imported as well. A
*zygote* imports a notebook's modules once and forks a child for each kernel. The
child is the process that a cold kernel is after its imports: it shares no state with
other children, because no cell ever runs in the zygote. Three things differ, and a
notebook that depends on them needs a cold kernel: what a module prints while it is
imported is not shown, a variable of the environment that a cell sets before it imports
comes too late, and strings hash alike in all children.

The owner and its zygote talk over a socket pair, one JSON object a line. The zygote
ends when the socket closes, and the kernel of the operating system then kills the
children, so that nothing outlives an owner that was killed.
"""

import ast
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from thesis_lib.common.errors import InvalidInput

# A context of CUDA does not survive a fork, and these may open one when imported.
CUDA = {"torch", "bitsandbytes"}
CUDA_DEVICE = Path("/dev/nvidiactl")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_CONTROL_S = 10  # more than a thread takes that has been told to end
# What every kernel of ipykernel imports before its first cell.
_OF_A_KERNEL = (
    "ipykernel.kernelapp", "ipykernel.debugger", "IPython.core.completerlib",
    "IPython.extensions.storemagic", "tornado.platform.asyncio",
)  # fmt: skip


def imports(source: str) -> list[str]:
    """Dotted names that Python source imports, in order and once each.

    `from a import b` gives 'a' and 'a.b', which may or may not be a module.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return list(dict.fromkeys(names))


def supported(modules: Iterable[str]) -> bool:
    """Whether kernels that import `modules` can be forked on this machine.

    Linux alone has the parent-death signal. Where CUDA may be in use they cannot.
    """
    roots = {name.partition(".")[0] for name in modules}
    uses_cuda = CUDA_DEVICE.exists() and (
        not roots.isdisjoint(CUDA)
        or any(name.startswith("thesis_lib.memory") for name in modules)
    )
    return sys.platform == "linux" and not uses_cuda


class ForkedKernel:
    """A child of the zygote, as `subprocess.Popen` shows a process."""

    stdin = stdout = stderr = None

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

    def poll(self) -> int | None:
        """Its exit status (minus the signal that ended it), None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask(op="poll", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended.

        Raises subprocess.TimeoutExpired after `timeout` seconds.
        """
        end_s = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end_s is not None and time.monotonic() > end_s:
                raise subprocess.TimeoutExpired("a warm kernel", timeout or 0)
            time.sleep(0.02)
        return status

    def send_signal(self, signum: int) -> None:
        """Signal its process group; nothing where it has ended."""
        self._zygote.ask(op="signal", pid=self.pid, signum=int(signum))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Zygote:
    """A process that has imported `modules` and forks kernels; a context manager.

    Names that cannot be imported are left to the notebook, whose cell then says why.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    # A kernel, too, looks into its folder only from the first cell on.
                    "import sys; sys.path[:] = [path for path in sys.path if path]; "
                    "from thesis_lib.book.execute.warm import serve; "
                    "serve(int(sys.argv[1]))",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the owner's affair
            )
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        # It imports while its owner goes on; the first kernel waits for it.
        self._send({"modules": list(modules)})

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, request: dict[str, Any]) -> None:
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()

    def ask(self, **request: Any) -> Any:
        """The zygote's answer; without a zygote, that of a killed child."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._send(request)
            if line := self._lines.readline():
                return json.loads(line)
        return -signal.SIGKILL if request.get("op") == "poll" else None

    def fork(
        self, arguments: list[str], environment: Mapping[str, str], folder: str
    ) -> ForkedKernel:
        """Start a kernel: the arguments of ipykernel, its environment and folder."""
        pid = self.ask(
            op="fork", arguments=arguments, environment=dict(environment), folder=folder
        )
        if pid is None:
            raise InvalidInput(
                "the process that imports for warm kernels has ended: killed, or out "
                "of memory; run the point again"
            )
        return ForkedKernel(self, pid)

    def close(self) -> None:
        """End the zygote, and with it any kernel that still runs."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WarmProvisioner(LocalProvisioner):
    """Launches a kernel by a fork, where it is one of this interpreter."""

    async def launch_kernel(
        self, cmd: list[str], **kwargs: Any
    ) -> KernelConnectionInfo:
        if cmd[0] != sys.executable or "ipykernel_launcher" not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        folder = str(kwargs.get("cwd") or Path.cwd())
        environment = kwargs.get("env") or os.environ
        assert self.parent is not None
        process = self.parent.zygote.fork(arguments, environment, folder)
        # Its own group is signalled by the zygote, which knows whether it still runs.
        self.process, self.pid, self.pgid = process, process.pid, None
        self.cwd = folder
        return self.connection_info


class WarmKernelManager(AsyncKernelManager):
    """Starts kernels from `zygote`; `kernel_manager` makes the class for one."""

    zygote: ClassVar[Zygote]

    async def start_kernel(self, **options: Any) -> None:
        # Assigned before jupyter_client would choose one by the kernel's specification.
        self.kernel_id = self.kernel_id or os.urandom(16).hex()
        if self.provisioner is None:
            self.provisioner = WarmProvisioner(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
            )
        await super().start_kernel(**options)


def kernel_manager(zygote: Zygote) -> type[WarmKernelManager]:
    """The class of kernel managers, as nbclient wants one, that fork from `zygote`."""
    return type("WarmKernelManager", (WarmKernelManager,), {"zygote": zygote})


# --- in the zygote -----------------------------------------------------------
@contextlib.contextmanager
def _silence() -> Any:
    """Nothing of what imports print belongs into the log of the owner."""
    kept = [os.dup(1), os.dup(2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(null, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


def _import(name: str) -> None:
    """As `from a import b` does it: b may be an attribute that a makes on demand."""
    parent, _, last = name.rpartition(".")
    module = importlib.import_module(parent or name)
    if parent and not hasattr(module, last):
        importlib.import_module(name)


def _preload(modules: Iterable[str]) -> None:
    # As a kernel sets them before its first cell runs. Process 1 stands for "no parent
    # to watch": the parent-death signal watches.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ["JPY_PARENT_PID"] = "1"
    for name in dict.fromkeys((*_OF_A_KERNEL, *modules)):
        # Whatever an import can raise, it raises again in the cell that asks for it.
        with contextlib.suppress(Exception):
            _import(name)
    if (numba := sys.modules.get("numba")) is not None:
        # Its compiler loads half of itself at the first function that it meets.
        numba.njit("int64(int64)")(lambda number: number)


def _become_kernel(request: dict[str, Any], parent: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was set
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["ipykernel_launcher", *request["arguments"]]
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()  # or all children would draw the same "random" numbers
    if (pandas := sys.modules.get("pandas")) is not None:
        # Imported by no kernel it took a terminal for granted, whose width it asks for.
        pandas.set_option("display.max_columns", 20)
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
    # ipykernel closes its channels when the interpreter ends, while its control thread
    # may still write to them: one kernel in four then hung until it was killed.
    control = kernelapp.IPKernelApp.instance().control_thread
    if control is not None:
        control.join(timeout=_CONTROL_S)
    sys.exit()


def serve(descriptor: int) -> None:
    """Be the zygote of the owner at the other end of a socket, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    lines = control.makefile("rw", encoding="utf-8")
    ended: dict[int, int] = {}  # status of children, until it was asked for
    me = os.getpid()

    def status(pid: int) -> int | None:
        if pid not in ended:
            found, raw = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(raw)
        return ended.get(pid)

    def answer(value: Any) -> None:
        lines.write(json.dumps(value) + "\n")
        lines.flush()

    with _silence():
        _preload(json.loads(lines.readline())["modules"])
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    while line := lines.readline():
        request = json.loads(line)
        match request["op"]:
            case "fork":
                if (pid := os.fork()) == 0:
                    lines.detach()
                    control.close()
                    _become_kernel(request, me)
                answer(pid)
            case "poll":
                answer(status(request["pid"]))
            case "signal":
                if status(request["pid"]) is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(request["pid"], request["signum"])
                answer(None)
