"""The rules of ``ratchets.py`` hold in the project, and each fails on a file that breaks it."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

import ratchets
import sources
from ratchets import Rule
from sources import Source


@pytest.mark.parametrize("rule", ratchets.PACKAGE_RULES, ids=lambda r: r.__name__)
def test_package(rule: Rule) -> None:
    assert list(rule(sources.package())) == []


@pytest.mark.parametrize("rule", ratchets.OUTSIDE_RULES, ids=lambda r: r.__name__)
def test_outside(rule: Rule) -> None:
    assert list(rule(sources.outside())) == []


@pytest.mark.parametrize("rule", ratchets.PROJECT_RULES, ids=lambda r: r.__name__)
def test_project(rule: Rule) -> None:
    assert list(rule(sources.package() + sources.outside())) == []


def test_public_names() -> None:
    expected = ratchets.NAMES.read_text().split()
    found = sources.public_names(sources.package())
    assert found == expected, "a public name came or went; if meant: python tests/ratchets.py --write-names"


def test_core_dependencies() -> None:
    project = tomllib.loads((sources.ROOT / "pyproject.toml").read_text())["project"]
    assert 1 <= len(project["dependencies"]) <= 6


def test_import_is_light() -> None:
    """Neither an optional package nor the parser of the command line comes with ``import saltus``."""
    code = "import sys, saltus; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & (ratchets.OPTIONAL | {"tyro", "rich", "PIL"})


def file(module: str, text: str, package: bool = False) -> Source:
    return Source(module, text, package)


OPTION = "@dataclass\nclass A:\n    size: int\n"
LONG = "def f() -> None:\n" + "    pass\n" * 71

BREAKS: dict[str, tuple[Rule, list[Source]]] = {
    "upwards": (ratchets.import_arrows, [file("saltus.maps", "from saltus.samplers import ode")]),
    "upwards by the root": (ratchets.import_arrows, [file("saltus.maps", "from saltus import methods")]),
    "upwards in a function": (
        ratchets.import_arrows,
        [file("saltus.legs", "def f() -> None:\n    import saltus.training.loop")],
    ),
    "upwards for types": (
        ratchets.import_arrows,
        [file("saltus.times", "if TYPE_CHECKING:\n    from saltus.maps import AverageVelocity")],
    ),
    "upwards, relative": (
        ratchets.import_arrows,
        [file("saltus.nn.mlp", "from ..interpolants import Linear")],
    ),
    "sideways at level 3": (
        ratchets.import_arrows,
        [file("saltus.metrics.error", "from saltus.exact import A")],
    ),
    "two objectives": (
        ratchets.import_arrows,
        [file("saltus.objectives.lagrangian", "from saltus.objectives.diagonal import Diagonal")],
    ),
    "a part below that training must not know": (
        ratchets.import_arrows,
        [file("saltus.training.loop", "from saltus.objectives import Sum")],
    ),
    "a network in a method": (
        ratchets.import_arrows,
        [file("saltus.methods.lsd", "from saltus.nn import MLP")],
    ),
    "a method in a method": (
        ratchets.import_arrows,
        [file("saltus.methods.scd", "from saltus.methods.scm import weight")],
    ),
    "a method from the package in a method": (
        ratchets.import_arrows,
        [file("saltus.methods.scd", "from saltus.methods import scm")],
    ),
    "a recipe in a plot": (ratchets.import_arrows, [file("saltus.plots", "from saltus.recipes import run")]),
    "a part without a place": (ratchets.import_arrows, [file("saltus.extras", "")]),
    "the whole package": (ratchets.import_arrows, [file("saltus.maps", "import saltus")]),
    "the package knows a part": (ratchets.import_arrows, [file("saltus", "from saltus.maps import A", True)]),
    "the package knows a recipe at once": (
        ratchets.import_arrows,
        [file("saltus", "from saltus.recipes import opened", True)],
    ),
    "the package knows another part in a function": (
        ratchets.import_arrows,
        [file("saltus", "def load() -> None:\n    from saltus.training import fit", True)],
    ),
    "a cycle of two": (
        ratchets.import_cycles,
        [file("saltus.maps", "from saltus.legs import a"), file("saltus.legs", "from saltus.maps import b")],
    ),
    "a cycle over a package": (
        ratchets.import_cycles,
        [
            file("saltus.nn", "from saltus.nn.mlp import a", True),
            file("saltus.nn.mlp", "from saltus.nn import b"),
        ],
    ),
    "torch.func imported": (ratchets.forward_mode, [file("saltus.maps", "from torch.func import jvp")]),
    "torch.func written out": (
        ratchets.forward_mode,
        [file("saltus.maps", "import torch\ntorch.func.jvp(f)")],
    ),
    "forward AD": (
        ratchets.forward_mode,
        [file("saltus.maps", "import torch.autograd.forward_ad as fwAD")],
    ),
    "processes": (ratchets.distributed, [file("saltus.maps", "import torch.distributed as dist")]),
    "processes written out": (ratchets.distributed, [file("saltus.nn.mlp", "torch.distributed.barrier()")]),
    "optional at the top": (ratchets.third_parties, [file("saltus.plots", "import matplotlib.pyplot")]),
    "optional in two files": (
        ratchets.third_parties,
        [
            file("saltus.plots", "def f() -> None:\n    import scipy"),
            file("saltus.report", "def f() -> None:\n    import scipy"),
        ],
    ),
    "undeclared": (ratchets.third_parties, [file("saltus.nn.mlp", "import einops")]),
    "long file": (ratchets.lengths, [file("saltus.maps", "a = 1\n" * 401)]),
    "long function": (ratchets.lengths, [file("saltus.maps", LONG)]),
    "getattr": (ratchets.dynamic_attributes, [file("saltus.maps", "getattr(a, 'b')")]),
    "getattr passed on": (ratchets.dynamic_attributes, [file("saltus.maps", "map(getattr, a)")]),
    "pickle": (ratchets.untrusted_code, [file("saltus.training.state", "import pickle")]),
    "torch.load": (ratchets.untrusted_code, [file("saltus.training.state", "torch.load(path)")]),
    "torch.load by name": (
        ratchets.untrusted_code,
        [file("saltus.training.state", "from torch import load")],
    ),
    "torch.load by an alias": (
        ratchets.untrusted_code,
        [file("saltus.training.state", "import torch as t\nt.load(path)")],
    ),
    "pickle by an alias": (ratchets.untrusted_code, [file("saltus.cli", "import pickle as p\np.loads(b)")]),
    "the reader of torch that unpickles": (
        ratchets.untrusted_code,
        [file("saltus.training", "from torch.distributed import checkpoint as d\nd.FileSystemReader(p)")],
    ),
    "eval": (ratchets.untrusted_code, [file("saltus.cli", "eval(text)")]),
    "eval passed on": (ratchets.untrusted_code, [file("saltus.cli", "map(eval, texts)")]),
    "eval written out": (ratchets.untrusted_code, [file("saltus.cli", "import builtins as b\nb.eval(x)")]),
    "exec": (ratchets.untrusted_code, [file("saltus.cli", "exec(text)")]),
    "yaml": (ratchets.untrusted_code, [file("saltus.cli", "yaml.load(text)")]),
    "yaml by name": (ratchets.untrusted_code, [file("saltus.cli", "from yaml import load as read")]),
    "pickled arrays": (ratchets.untrusted_code, [file("saltus.data", "np.load(p, allow_pickle=True)")]),
    "pickled arrays by a variable": (
        ratchets.untrusted_code,
        [file("saltus.data", "np.load(p, allow_pickle=trust)")],
    ),
    "not weights only": (ratchets.untrusted_code, [file("saltus.cli", "read(p, weights_only=False)")]),
    "dead field of an objective": (
        ratchets.dead_options,
        [file("saltus.objectives.a", OPTION), file("saltus.maps", "a.size")],
    ),
    "dead option": (ratchets.dead_options, [file("saltus.recipes.a", OPTION)]),
    "option only written": (ratchets.dead_options, [file("saltus.recipes.a", OPTION + "a.size = 1")]),
    "dead parameter": (ratchets.dead_options, [file("saltus.recipes.a", "def run(lr: float) -> None: ...")]),
    "no argument type": (ratchets.typed, [file("saltus.maps", "def f(x) -> None: ...")]),
    "no result type": (ratchets.typed, [file("saltus.maps", "def f(x: int): ...")]),
    "a string compared": (ratchets.text_comparisons, [file("saltus.maps", "a == 'x'\nb in ('x', 'y')")]),
    "a string matched": (
        ratchets.text_comparisons,
        [file("saltus.maps", "match a:\n    case 'x':\n        pass\n    case 'y':\n        pass")],
    ),
    "a word before the name": (ratchets.text_comparisons, [file("saltus.maps", "'x' == a\n'y' != b")]),
    "a vague class": (ratchets.vague_names, [file("saltus.maps", "class BaseMap: ...")]),
    "a vague file": (ratchets.vague_names, [file("saltus.nn.utils", "")]),
}


@pytest.mark.parametrize("case", BREAKS)
def test_rule_bites(case: str) -> None:
    rule, files = BREAKS[case]
    assert list(rule(files)), "the rule is blind to this"


@pytest.mark.parametrize("rule", ratchets.PACKAGE_RULES + ratchets.PROJECT_RULES, ids=lambda r: r.__name__)
def test_rule_spares(rule: Rule) -> None:
    """What is allowed passes: imports downwards, model.eval(), a field that is read, one string."""
    text = (
        '"""A file in order."""\n'
        "import torch\nfrom saltus.maps import AverageVelocity\n"
        "def late(model: torch.nn.Module) -> int:\n    import scipy\n    return model.eval().size\n"
        "a = device.type == 'cuda' and 'key' in b and '.' not in c\nif __name__ == '__main__':\n    late(a)\n"
    )
    fine = [
        file("saltus.objectives.a", OPTION + text + "\nb = a.size\n"),
        file("saltus.objectives.sum", "from saltus.objectives.a import A\n"),
        file("saltus.methods.a", "from saltus.methods import Card\n"),
        file("saltus.methods", "", True),
        file(
            "saltus.cli",
            "from saltus.recipes import run\nfrom saltus import __version__\nx = getattr(run, 'a')\n",
        ),
        file(
            "saltus.recipes.run", "from saltus.nn import MLP\ndef run(lr: float) -> float:\n    return lr\n"
        ),
        file("saltus.training.loop", "import torch.distributed\nfrom saltus.games import Game\n"),
        file("saltus.autodiff", "from torch.func import jvp\n"),
    ]
    assert list(rule(fine)) == []


def test_every_rule_is_tried() -> None:
    rules = ratchets.PACKAGE_RULES + ratchets.OUTSIDE_RULES + ratchets.PROJECT_RULES
    assert {r for r, _ in BREAKS.values()} == set(rules)


def test_snapshot_sees_names() -> None:
    text = "__all__ = ['A']\nA = 1\ndef f() -> None: ...\ndef _g() -> None: ...\nclass C: ...\n"
    expected = ["saltus.maps.A", "saltus.maps.C", "saltus.maps.f"]
    assert sources.public_names([file("saltus.maps", text), file("saltus.methods.lsd", text)]) == expected
