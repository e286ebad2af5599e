"""Who may import whom, as a table: the cut of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import legodiff

SOURCE = Path(legodiff.__file__).parent
# room: the rooms it may import, besides itself
ALLOWED = {
    "once": set(),
    "noise": {"once"},
    "hub": set(),
    "store": {"hub"},
    "model": {"once", "noise", "store"},
    "diffusion": {"noise"},
    "pickles": set(),
    "arrays": set(),
    "vae": {"store", "vae_tiles"},
    "vae_tiles": set(),
    "data": {"store", "pickles", "vae"},
    "codec": {"store", "vae"},
    "pictures": {"store"},
    "config": {"store", "model"},
    "sampling": {"noise", "store", "model", "diffusion", "labels"},
    "plans": {"store", "sampling"},
    "budgets": {"model", "diffusion", "sampling", "plans"},
    "labels": set(),
    "drawing": {"model", "diffusion", "codec", "sampling", "plans"},
    "folders": {"hub", "store", "model", "codec", "sampling", "plans"},
    "pipeline": {
        *("hub", "model", "diffusion", "codec", "sampling", "plans", "budgets", "labels"),
        *("drawing", "folders"),
        "publishing",  # for push_to_hub, when it is called
    },
    "card": {"hub", "model", "plans", "drawing"},
    "publishing": {
        *("hub", "store", "folders", "plans", "drawing", "pictures", "pipeline", "card"),
    },
    "planning": {"model", "diffusion", "sampling", "plans", "budgets", "drawing", "pipeline"},
    "train": {
        *("noise", "store", "model", "diffusion", "data", "vae", "codec", "pictures"),
        *("config", "sampling", "pipeline"),
    },
    "output": {"store", "codec", "drawing", "pictures", "pipeline", "sampling", "train"},
    "interop": {
        *("noise", "store", "model", "diffusion", "pickles", "arrays", "codec", "vae"),
        *("drawing", "sampling", "plans", "pipeline"),
    },
    "evaluate": {
        *("store", "model", "diffusion", "data", "arrays", "codec", "pictures", "sampling"),
        *("plans", "budgets", "pipeline", "interop", "train", "hub"),
    },
    "demo": {
        *("store", "model", "diffusion", "data", "codec", "pictures"),
        *("config", "sampling", "pipeline", "train", "evaluate"),
    },
    "reproduce": {
        *("store", "model", "diffusion", "data", "codec", "pictures", "config", "sampling"),
        *("pipeline", "train", "evaluate", "demo"),
    },
    "studio": {
        *("model", "diffusion", "codec", "pictures", "sampling", "plans", "budgets", "labels"),
        *("drawing", "pipeline", "output", "train"),
    },
    "cli": None,  # anything
    "__main__": {"cli"},
    "__init__": {"model", "diffusion", "pipeline"},
}
# Only inside functions ...
HEAVY = {
    *("datasets", "sklearn", "matplotlib", "huggingface_hub", "diffusers", "scipy"),
    *("onnx", "onnxscript", "onnxruntime", "transformers", "torchmetrics"),
    *("gradio", "fastapi", "fastapi_offline", "starlette", "uvicorn"),
}
# ... but for files that are nothing without them, which only such files import outside functions.
OPTIONAL = {
    "interop.diffusers_pipeline",
    *("studio.api", "studio.server", "studio.page", "studio.parts", "studio.painting"),
    *("studio.generate", "studio.wide", "studio.inside", "studio.training", "studio.gallery"),
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_only_what_they_may():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert room in ALLOWED, f"{room} has no row in the table"
        for name in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == "legodiff" and ALLOWED[room] is not None:
                other = parts[1]
                if other not in ALLOWED[room] | {room, "__version__"}:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_heavy_packages_are_imported_where_they_are_used():
    for path in SOURCE.rglob("*.py"):
        if ".".join(path.relative_to(SOURCE).with_suffix("").parts) in OPTIONAL:
            continue
        top = [n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.If)]
        plain = [n for n in top if isinstance(n, ast.Import | ast.ImportFrom)]
        names = set(imports(ast.Module(plain, [])))
        assert not {name.split(".")[0] for name in names} & HEAVY, path
        assert not {n for n in names for o in OPTIONAL if f"{n}.".startswith(f"legodiff.{o}.")}, (
            path
        )


def test_help_needs_no_torch():
    code = "import sys, legodiff.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names():
    for name in legodiff.__all__:
        assert getattr(legodiff, name).__doc__
