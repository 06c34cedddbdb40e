"""The rules of the house, read off the syntax trees of the package; ``tests/test_ratchets.py`` applies them.

A rule takes the sources and yields one line for each violation, so each rule is itself tested on
a snippet that breaks it. CONTRIBUTING.md gives the reasons.

``python tests/ratchets.py`` prints every violation; ``python tests/ratchets.py --write-names``
rewrites the snapshot ``tests/public_names.txt`` after a deliberate change of the public names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence

from sources import ROOT, Source, imports, outside, package, public_names

NAMES = ROOT / "tests" / "public_names.txt"

MOST_LINES = 400
MOST_FUNCTION_LINES = 70

LEVEL = {
    **dict.fromkeys(("typing", "tensors", "streams", "primitives", "autodiff"), 0),
    **dict.fromkeys(("interpolants", "couplings", "times", "curricula", "weights", "tangents", "radial"), 1),
    **dict.fromkeys(("predictions", "maps", "identities", "legs", "sde", "states", "guidance"), 2),
    **dict.fromkeys(("pyramid", "slots", "trajectories", "policies", "samples", "adversaries"), 2),
    **dict.fromkeys(("objectives", "samplers", "exact", "metrics"), 3),
    "games": 4,
    "lessons": 4.5,
    **dict.fromkeys(("methods", "training"), 5),
    **dict.fromkeys(("report", "plots", "page", "export"), 6),
    "recipes": 7,
    "cli": 8,
    "__main__": 9,
}
"""The height of each part; design level 4 is 4 and 5 here, level 5 is 6 to 9."""

SIDE = {"nn": 0, "kernels": 0, "data": 1, "teachers": 2}
"""Parts beside the tower and the highest level that they may know; only heights from 6 know them."""

OUTER = 6
BLIND = {"training": frozenset({"objectives", "samplers", "exact", "metrics", "predictions", "maps"})}
"""What a part must not know although it lies below."""

CORE = frozenset({"torch", "numpy", "safetensors", "tyro", "PIL", "rich"})
OPTIONAL = frozenset(
    {"accelerate", "datasets", "diffusers", "gradio", "matplotlib", "onnx", "onnxruntime", "peft", "pyarrow"}
    | {"scipy", "sklearn", "tensorboard", "timm", "transformers", "triton", "wandb"}
)


Rule = Callable[[Sequence[Source]], Iterator[str]]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def _arrow_broken(a: str, b: str) -> bool:
    """Whether part a must not import part b (both differ)."""
    if b in SIDE:
        return LEVEL.get(a, -1) < OUTER
    if a in SIDE:
        return LEVEL[b] > SIDE[a]
    if b in BLIND.get(a, ()) or LEVEL[b] > LEVEL[a]:
        return True
    return LEVEL[a] == LEVEL[b] and LEVEL[a] >= 3


def _is_method(names: Sequence[str]) -> bool:
    """Whether a dotted target lies in a method's own file: what the package itself defines is in capitals."""
    return len(names) > 2 and names[2].islower()


def import_arrows(sources: Sequence[Source]) -> Iterator[str]:
    """Imports go downwards; equal height is allowed up to level 2; objectives meet in sum.py alone, methods
    nowhere."""
    for source in sources:
        a = source.part
        if a and a not in LEVEL and a not in SIDE:
            yield f"{source.module}: part {a!r} has no place; give it one in LEVEL or SIDE"
            continue
        for i in imports(source):
            names = i.target.split(".")
            if names[0] != "saltus" or i.target == "saltus.__version__":
                continue
            b = names[1] if len(names) > 1 else ""
            where = f"{source.module}:{i.line} imports {i.target}"
            if b not in LEVEL and b not in SIDE:
                yield f"{where}: import a part of saltus, not the package itself"
            elif not a and b == "recipes" and (i.in_function or i.for_types):
                continue  # saltus.load opens a run; ``import saltus`` stays light
            elif not a or (a != b and _arrow_broken(a, b)):
                yield f"{where}: {a or 'saltus'} must not know {b}"
            elif a == b == "objectives" and not source.package and source.module != "saltus.objectives.sum":
                yield f"{where}: objectives know each other only in sum.py"
            elif a == b == "methods" and not source.package and _is_method(names):
                yield f"{where}: a method's file knows no other; what they share lives below"


def import_cycles(sources: Sequence[Source]) -> Iterator[str]:
    """No module reaches itself over imports (those for type checkers alone are left out)."""
    modules = {s.module for s in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        targets = {i.target for i in imports(source) if not i.for_types}
        edges = {t if t in modules else t.rpartition(".")[0] for t in targets}
        graph[source.module] = (edges & modules) - {source.module}
    for start in sorted(graph):
        seen: set[str] = set()
        front = list(graph[start])
        while front:
            here = front.pop()
            if here not in seen:
                seen.add(here)
                front.extend(graph[here])
        if start in seen:
            yield f"{start}: imports itself by way of {', '.join(sorted(seen & graph[start]))}"


def _uses(source: Source, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Lines that import one of the dotted names, or write it out as attributes, by an alias too."""

    def hit(dotted: str) -> bool:
        return any(dotted == n or dotted.startswith(n + ".") for n in names)

    yield from ((i.line, i.target) for i in imports(source) if hit(i.target))
    aliases = _aliases(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            dotted = f"{aliases.get(head, head)}.{rest}"
            if dotted in names:
                yield node.lineno, dotted


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as another name for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def forward_mode(sources: Sequence[Source]) -> Iterator[str]:
    """torch.func and forward-mode AD live in autodiff/ and kernels/."""
    names = ("torch.func", "torch.autograd.forward_ad", "torch.autograd.functional", "functorch")
    for source in sources:
        if source.part not in ("autodiff", "kernels"):
            for line, name in _uses(source, names):
                yield f"{source.module}:{line} uses {name}: call saltus.autodiff"


def distributed(sources: Sequence[Source]) -> Iterator[str]:
    """torch.distributed lives in training/."""
    for source in sources:
        if source.part != "training":
            for line, name in _uses(source, ("torch.distributed",)):
                yield f"{source.module}:{line} uses {name}: only training/ knows other processes"


def _room(source: Source) -> str:
    """The file, or the folder within a part that holds several: saltus.teachers.diffusers, say."""
    return ".".join(source.module.split(".")[:3])


def third_parties(sources: Sequence[Source]) -> Iterator[str]:
    """Only declared packages; optional ones inside functions, and each in a single file."""
    home: dict[str, str] = {}
    for source in sources:
        for i in imports(source):
            top = i.target.split(".")[0]
            if top in sys.stdlib_module_names or top in CORE or top == "saltus":
                continue
            where = f"{source.module}:{i.line} imports {top}"
            if top not in OPTIONAL:
                yield f"{where}: not a dependency of saltus"
            elif not (i.in_function or i.for_types):
                yield f"{where}: optional, so import it inside the function that needs it"
            elif home.setdefault(top, _room(source)) != _room(source):
                yield f"{where}: {home[top]} is its one place"


def lengths(sources: Sequence[Source]) -> Iterator[str]:
    """Files and functions that can be read in one sitting (docstrings of functions are not counted)."""
    for source in sources:
        count = len(source.text.splitlines())
        if count > MOST_LINES:
            yield f"{source.module}: {count} lines, at most {MOST_LINES}"
        for f in _functions(source.tree):
            first = f.body[0]
            doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            inner = (first.end_lineno or 0) - first.lineno + 1 if doc else 0
            count = (f.end_lineno or 0) - f.lineno + 1 - inner
            if count > MOST_FUNCTION_LINES:
                yield f"{source.module}:{f.lineno} {f.name}: {count} lines, at most {MOST_FUNCTION_LINES}"


def dynamic_attributes(sources: Sequence[Source]) -> Iterator[str]:
    """No attribute by a computed name where types can do the work."""
    for source in sources:
        if source.part in ("cli", "teachers", "export"):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and node.id in ("hasattr", "getattr", "setattr", "delattr"):
                yield f"{source.module}:{node.lineno} uses {node.id}: give the object a type"


UNTRUSTED = (
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("torch.load", "torch.save", "torch.serialization", "torch.jit.load", "torch.package", "torch.hub"),
    *("torch.distributed.checkpoint.FileSystemReader", "torch.distributed.checkpoint.filesystem"),
    *("torch.distributed.checkpoint.format_utils", "torch.distributed.checkpoint.DefaultLoadPlanner"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("builtins.eval", "builtins.exec", "numpy.lib.format.read_array"),
)
"""What runs or unpickles what it reads; the default reader and planner of sharded checkpoints unpickle."""


RESTRICTED = frozenset({("saltus.metrics.features.stored", "torch.load")})
"""Where PyTorch's restricted unpickler may be called, for weights that are published in no other form."""


def untrusted_code(sources: Sequence[Source]) -> Iterator[str]:
    """Nothing that is read can run: no pickle in any guise, no eval, no exec, no unsafe YAML."""
    safe = {"allow_pickle": "False", "weights_only": "True"}
    for source in sources:
        for line, name in _uses(source, UNTRUSTED):
            if (source.module, name) in RESTRICTED and "weights_only=True" in source.text:
                continue
            yield f"{source.module}:{line} uses {name}: weights are safetensors, options are JSON"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
                yield f"{source.module}:{node.lineno} uses {node.id}"
        for k in (n for n in ast.walk(source.tree) if isinstance(n, ast.keyword)):
            if k.arg in safe and ast.unparse(k.value) != safe[k.arg]:
                yield f"{source.module}:{k.value.lineno} passes {ast.unparse(k)}"


def _fields(tree: ast.AST) -> Iterator[tuple[ast.ClassDef, ast.AnnAssign, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield node, item, item.target.id


def _reads(tree: ast.AST) -> set[str]:
    loads = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))
    return {n.attr for n in loads}


def dead_options(sources: Sequence[Source]) -> Iterator[str]:
    """Every dataclass field of the package is read.

    An objective's in its own file, a recipe's within the package, any other's somewhere in the
    project. Every parameter of a public function in recipes/ is read in its body: it may be an option
    of the command.
    """
    inner = [s for s in sources if s.module.startswith("saltus")]
    within = {name for s in inner for name in _reads(s.tree)}
    anywhere = {name for s in sources for name in _reads(s.tree)}
    for source in inner:
        scope = {"objectives": _reads(source.tree), "recipes": within}.get(source.part, anywhere)
        for node, item, name in _fields(source.tree):
            if name not in scope:
                yield f"{source.module}:{item.lineno} {node.name}.{name} is never read"
        for f in source.tree.body if source.part == "recipes" else ():
            if not isinstance(f, ast.FunctionDef) or f.name.startswith("_"):
                continue
            used = {n.id for s in f.body for n in ast.walk(s) if isinstance(n, ast.Name)}
            for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs):
                if a.arg not in used | {"self", "cls", "_"}:
                    yield f"{source.module}:{f.lineno} {f.name}({a.arg}) is never read"


def typed(sources: Sequence[Source]) -> Iterator[str]:
    """Every argument and every result of every function has a type."""
    for source in sources:
        for f in _functions(source.tree):
            a = f.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
            bare = [x.arg for x in given if x.annotation is None and x.arg not in ("self", "cls")]
            if bare or f.returns is None:
                what = ", ".join(bare) or "the result"
                yield f"{source.module}:{f.lineno} {f.name}: no type for {what}"


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_is_text(e) for e in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _compares_text(node: ast.AST) -> bool:
    """``a == "word"``, ``a in ("one", "two")``, ``case "word"``; not ``"key" in mapping``."""
    if isinstance(node, ast.MatchValue):
        return _is_text(node.value)
    if not isinstance(node, ast.Compare) or "__name__" in ast.unparse(node):
        return False
    equal = any(isinstance(o, ast.Eq | ast.NotEq) for o in node.ops)
    member = any(isinstance(o, ast.In | ast.NotIn) for o in node.ops)
    return (equal or member) and any(map(_is_text, node.comparators)) or equal and _is_text(node.left)


def text_comparisons(sources: Sequence[Source]) -> Iterator[str]:
    """At most one comparison with a string literal in 1,000 lines: pass objects, not words."""
    hits = [
        f"{source.module}:{line} compares with a string: {ast.unparse(node)}"
        for source in sources
        for node in ast.walk(source.tree)
        if _compares_text(node)
        for line in [next(n.lineno for n in ast.walk(node) if isinstance(n, ast.expr))]
    ]
    lines = sum(len(s.text.splitlines()) for s in sources)
    if 1000 * len(hits) > lines + 999:
        yield f"{len(hits)} comparisons with a string in {lines:,} lines"
        yield from hits


def vague_names(sources: Sequence[Source]) -> Iterator[str]:
    """Classes are nouns of the subject."""
    vague = ("Base", "Manager", "Handler", "Helper", "Utils", "Util")
    for source in sources:
        if source.module.rpartition(".")[2] in ("utils", "util", "helpers", "common", "misc", "base"):
            yield f"{source.module}: name the file after its subject"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and (node.name.startswith(vague) or node.name.endswith(vague)):
                yield f"{source.module}:{node.lineno} class {node.name}: name the thing"


PACKAGE_RULES: tuple[Rule, ...] = (
    import_arrows,
    import_cycles,
    forward_mode,
    distributed,
    third_parties,
    lengths,
    dynamic_attributes,
    untrusted_code,
    typed,
    text_comparisons,
    vague_names,
)
"""Rules for src/saltus."""

OUTSIDE_RULES: tuple[Rule, ...] = (lengths, typed)
"""Rules for tests, benchmarks and docs."""

PROJECT_RULES: tuple[Rule, ...] = (dead_options,)
"""Rules for the package that must see who uses it."""


if __name__ == "__main__":
    if "--write-names" in sys.argv[1:]:
        NAMES.write_text("\n".join(public_names(package())) + "\n")
    checks = (
        (PACKAGE_RULES, package()),
        (OUTSIDE_RULES, outside()),
        (PROJECT_RULES, package() + outside()),
    )
    broken = [line for rules, files in checks for rule in rules for line in rule(files)]
    print("\n".join(broken) or "all ratchets hold")
    sys.exit(bool(broken))
