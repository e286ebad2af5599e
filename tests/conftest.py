import functools
import os
import sys
import tempfile

KEPT = tempfile.TemporaryDirectory(prefix="legodiff-tests-")  # what libraries keep, a worker
os.environ |= {
    name: f"{KEPT.name}/{name.lower()}"
    for name in ("LEGODIFF_CACHE", "HF_MODULES_CACHE", "TORCHINDUCTOR_CACHE_DIR")
}
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # tests run in parallel

import hypothesis
import pytest
import torch

from legodiff import LegoPipeline, LegoStack, cli, preset
from legodiff.codec import PixelCodec
from legodiff.evaluate.digits import DigitJudges
from legodiff.model.patches import PatchSample
from legodiff.sampling import Sampling

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

judges = functools.cache(DigitJudges)  # they learn for seconds, and always the same


def awaken(stack, seed=0):
    """Fills the zero-initialised layers, so that every brick does something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in stack.parameters():
        if not parameter.detach().any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return stack


@pytest.fixture(params=["pr", "pg"])
def stack(request):
    """A small three-brick stack whose every brick changes the estimate, 10 classes, grey."""
    torch.manual_seed(0)
    return awaken(LegoStack(preset(f"tiny-{request.param}-16", channels=1, classes=10))).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=10))).eval()
    names = ("zero", *map(str, range(1, 10)))
    LegoPipeline(stack, PixelCodec((0.0,)), names, Sampling(), 0.1).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bases(tmp_path, monkeypatch):
    """A folder in which the bases lie that recipes put bricks on."""
    stack = LegoStack(preset("tiny-pr-16", image_size=[32, 32]))
    LegoPipeline(stack).save_pretrained(tmp_path / "models" / "cifar10" / "ddpm")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command line in this process; gives (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["legodiff", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def samples_of(spec, ratio=0.5, batch=3, size=(16, 16), seed=0, device="cpu"):
    """Patches to train on, a fresh draw for each patch-brick; None where all of them run."""
    generator = torch.Generator(device).manual_seed(seed) if device != "meta" else None
    return [
        PatchSample.choose(
            torch.rand(batch, count, generator=generator, device=device),
            share,
            brick.patch(size),
            size,
        )
        if share < 1
        else None
        for brick, count, share in zip(
            spec.bricks, spec.patch_counts(size), spec.patch_ratios(ratio), strict=True
        )
    ]


def noisy_batch(batch=3, channels=1, size=(16, 16), seed=0):
    """Noisy images, noise levels and labels."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.logspace(-1, 1, batch)
    clean = 0.5 * torch.randn(batch, channels, *size, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise
    return noisy, sigma, torch.arange(batch) % 10
