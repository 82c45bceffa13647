"""Importing bnnlib is light and leaves the reader's session as it was."""

import json
import subprocess
import sys

import pytest

HEAVY = [
    "arviz",
    "ivon",
    "jax",
    "laplace",
    "pandas",
    "posteriors",
    "pyro",
    "scipy",
    "seaborn",
    "sklearn",
    "statsmodels",
    "torchbnn",
]

# What an import could change behind the reader's back, once the libraries below it are there.
STATE = """
import json, locale, logging, os, random, sys, warnings
import matplotlib, numpy as np, torch, tqdm, torch.func, torch.distributions

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "torch seed": torch.get_rng_state().tolist(),
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matrix product precision": torch.get_float32_matmul_precision(),
        "tensor printing": str(torch._tensor_str.PRINT_OPTS),
        "argument checks of distributions": torch.distributions.Distribution._validate_args,
        "numpy seed": str(np.random.get_state()),
        "numpy errors": np.geterr(),
        "numpy printing": str(np.get_printoptions()),
        "python seed": hash(random.getstate()),
        "rcParams": str(dict(matplotlib.rcParams)),
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
        "warnings": str(warnings.filters),
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion limit": sys.getrecursionlimit(),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
    }

before = state()
{imports}
after = state()
print(json.dumps([[key for key in before if before[key] != after[key]], sorted(sys.modules)]))
"""
EVERYTHING = """
import importlib, pkgutil
for module in pkgutil.walk_packages(bnnlib.__path__, "bnnlib."):
    importlib.import_module(module.name)
"""


def fresh(imports: str) -> tuple[list[str], set[str]]:
    """Run the imports in a new interpreter; return what changed and which modules are loaded."""
    code = STATE.replace("{imports}", imports)
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    changed, modules = json.loads(ran.stdout)
    return changed, set(modules)


@pytest.mark.parametrize("imports", ["import bnnlib", "import bnnlib" + EVERYTHING], ids=["package", "every module"])
def test_importing_changes_nothing_and_loads_nothing_heavy(imports):
    changed, modules = fresh(imports)
    assert changed == []
    assert sorted(modules & set(HEAVY)) == []


def test_importing_the_package_does_not_load_pyplot():
    _, modules = fresh("import bnnlib")
    assert "matplotlib.pyplot" not in modules


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("torch.manual_seed(0)", "torch seed"),
        ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ("np.random.rand()", "numpy seed"),
        ("matplotlib.rcParams['figure.dpi'] = 50", "rcParams"),
        ("logging.basicConfig(level=10)", "logging"),
        ("warnings.simplefilter('ignore')", "warnings"),
    ],
)
@pytest.mark.slow
def test_a_side_effect_is_seen(line, what):
    changed, _ = fresh(line)
    assert changed == [what]
