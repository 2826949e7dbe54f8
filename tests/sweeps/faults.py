"""A fault planted into a process that a test does not start itself, such as one of Ray's workers.

`plant` writes a `sitecustomize.py`; every Python process that has its folder on PYTHONPATH reads it at start. When the
named module has been imported there, the named function is replaced by one whose n-th call kills the process, once:
the folder keeps a mark. The product knows nothing of this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

CODE = '''
import importlib.abc, importlib.util, os, pathlib, signal, sys

MARK, MODULE, NAME, CALL, HALF = {mark!r}, {module!r}, {name!r}, {call}, {half}
calls = 0


def harmful(real):
    def call(*given, **named):
        global calls
        calls += 1
        if calls == CALL and not os.path.exists(MARK):
            pathlib.Path(MARK).write_text(str(os.getpid()))
            if HALF:  # a copy of files from one folder to another: the first file alone arrives
                source, target = (pathlib.Path(named[k]) for k in ("source", "destination"))
                first = sorted(source.iterdir())[0]
                target.mkdir(parents=True, exist_ok=True)
                (target / first.name).write_bytes(first.read_bytes()[:-1])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    return call


class Planter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            setattr(module, NAME, harmful(getattr(module, NAME)))

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Planter())
'''


def plant(folder: Path, function: str, *, call: int, half: bool = False) -> dict[str, str]:
    """Variables for the process whose children are to suffer; `function` is `package.module.name`.

    `half`: the call copies the folder `source` to `destination`; one file, not whole, arrives before the kill.
    """
    module, _, name = function.rpartition(".")
    folder.mkdir(parents=True)
    code = CODE.format(mark=str(folder / "killed"), module=module, name=name, call=call, half=half)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def befall(folder: Path) -> None:
    """Bring the fault of a folder about in this process, where its module may have been imported already."""
    planted: dict[str, Any] = {}
    exec((folder / "sitecustomize.py").read_text(), planted)
    if module := sys.modules.get(planted["MODULE"]):
        setattr(module, planted["NAME"], planted["harmful"](getattr(module, planted["NAME"])))


def struck(folder: Path) -> bool:
    """Whether the fault came about."""
    return (folder / "killed").exists()
