"""Run the notebooks where they are, so that their committed outputs are up to date: `make notebooks`.

    python tools/run_notebooks.py notebooks/02_baseline.ipynb ...

Outputs of one stream are joined; timestamps and the state of widgets, which do nothing without a kernel, are left out.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from run_chain import Kernel

for name in sys.argv[1:]:
    path = Path(name)
    notebook = nbformat.read(path, 4)
    folder = {"metadata": {"path": str(path.parent)}}
    options = {"record_timing": False, "coalesce_streams": True, "kernel_manager_class": Kernel}
    NotebookClient(notebook, resources=folder, **options).execute()
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    print(path, flush=True)
