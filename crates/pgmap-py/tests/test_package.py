"""The package itself."""

import importlib.resources
import inspect
import subprocess
import sys

import pytest

import pgmap
from pgmap import _errors


def test_it_imports_no_array_library():
    code = "import sys, pgmap; print([m for m in ('torch', 'numpy', 'lmcache') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_what_is_there_is_documented_and_typed():
    stubs = (importlib.resources.files("pgmap") / "_native.pyi").read_text()
    assert (importlib.resources.files("pgmap") / "py.typed").is_file()
    for kind in (pgmap.Pool, pgmap.Pin, pgmap.Writer, pgmap.FileInfo, pgmap.PoolInfo):
        assert kind.__doc__, kind
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert member.__doc__, f"{kind.__name__}.{name}"
                assert f"def {name}(" in stubs or f"    {name}:" in stubs, f"{name} has no stub"


def test_each_kind_of_error_has_one_class():
    for kind, expected in _errors._CLASSES.items():
        error = _errors.make(kind, 5, "text")
        assert type(error) is expected and isinstance(error, pgmap.Error)
        assert (error.kind, error.errno, str(error)) == (kind, 5, "text")
        assert getattr(pgmap, expected.__name__) is expected
    assert type(_errors.make("new_kind", 5, "text")) is pgmap.Error


def test_the_demo_ends_well():
    run = subprocess.run(
        [sys.executable, "-m", "pgmap.demo"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "'tokens\\n'" in run.stdout and "2 MiB wait" in run.stdout and "killed" in run.stdout


@pytest.mark.parametrize("adapter", ["lmcache", "vllm", "sglang"])
def test_an_adapter_without_its_engine_says_what_is_missing(adapter):
    code = f"""
import pgmap.{adapter} as module
try:
    module.require()
except ImportError as error:
    assert "{adapter}" in str(error), error
    print("missing")
else:
    print("there")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in ("missing", "there")
