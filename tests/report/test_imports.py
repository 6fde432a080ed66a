from __future__ import annotations

import pkgutil
import subprocess
import sys

import posttrain.report


def test_no_module_of_the_report_loads_torch_transformers_or_matplotlib() -> None:
    modules = [f"posttrain.report.{module.name}" for module in pkgutil.iter_modules(posttrain.report.__path__)]
    assert "posttrain.report.page" in modules
    program = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
