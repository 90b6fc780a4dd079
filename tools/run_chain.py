"""Run notebooks one after the other by papermill, in one kernel: the Snakefile's command.

    python tools/run_chain.py FOLDER '{"profile": "demo", "corpus": "emodb"}' 02_baseline 03_attention_rollout ...

The kernel imports PyTorch once, which takes longer than most notebooks; its names are cleared before each notebook.
FOLDER gets the executed notebooks. One that fails is left there as <name>.failed.ipynb, with its traceback; its error
is reported to 'samsg reproduce', where that started this program.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import papermill
import zmq
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import DeadKernelError
from traitlets import Type

from samsg.storage import report

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


class ShellChannel(AsyncZMQSocketChannel):
    """While nbclient waits for a cell, it sends the outputs of widgets; a reply that came meanwhile went unnoticed."""

    def send(self, message: dict[str, Any]) -> None:
        super().send(message)
        self.socket.get(zmq.EVENTS)  # wakes whoever waits for what is there


class KernelClient(AsyncKernelClient):
    shell_channel_class = Type(ShellChannel)


class Kernel(AsyncKernelManager):
    """A kernel that knows its clients: papermill makes one for each notebook and leaves it open.

    All have the same identity, and the kernel sends its replies to the one that connected last: none may reconnect.
    """

    client_factory = Type(KernelClient)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.clients: list[KernelClient] = []

    def client(self, **options: Any) -> KernelClient:
        self.clients.append(super().client(**options))
        return self.clients[-1]

    def close_clients(self) -> None:
        while self.clients:
            self.clients.pop().stop_channels()


def main(folder: Path, parameters: dict[str, object], names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as sockets:
        # Of two kernels that start at the same time, one may find its TCP ports taken. Sockets have names of their own.
        address = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
        run(Kernel(kernel_name="python3", **address), folder, parameters, names)


def run(kernel: Kernel, folder: Path, parameters: dict[str, object], names: list[str]) -> None:
    options = {"cwd": NOTEBOOKS, "progress_bar": False, "km": kernel}
    for name in names:
        if kernel.has_kernel:
            client = kernel.blocking_client()
            client.start_channels()
            client.wait_for_ready()
            reply = client.execute_interactive("get_ipython().reset()", store_history=False)
            client.stop_channels()
            assert reply["content"]["status"] == "ok", reply  # or the next notebook would see this one's names
        partial = folder / f"{name}.failed.ipynb"
        try:
            papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", partial, parameters, **options)
        except Exception as error:
            message = str(error)
            if isinstance(error, papermill.PapermillExecutionError):  # of a cell
                message = error.evalue if error.ename == "SamsgError" else f"{error.ename}: {error.evalue}"
            elif isinstance(error, DeadKernelError):
                message += ", perhaps for lack of memory"
            report(f"{name} failed: {' '.join(message.split()).rstrip('.')}. Notebook with traceback: {partial}")
            raise
        kernel.close_clients()
        partial.rename(folder / f"{name}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
