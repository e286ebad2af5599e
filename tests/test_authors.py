"""The authors' code is not ours to keep: a model by their names, written anew, stands for it."""

import json
from textwrap import dedent

import pytest
import torch
from typer.testing import CliRunner

from legodiff import BrickSpec, LegoStack, StackSpec
from legodiff.cli import app
from legodiff.diffusion.loss import brick_losses
from legodiff.evaluate import authors
from legodiff.evaluate.authors import Theirs, beside_authors, load
from legodiff.evaluate.bench import measure
from legodiff.evaluate.contenders import Setting, candidates, of_stack

CPU = torch.device("cpu")
BRICKS = (BrickSpec(4, 2, 1), BrickSpec("image", 4, 2))
CODE = '''
    import math

    import torch
    from timm.models.vision_transformer import Attention, Mlp, PatchEmbed
    from torch import nn


    def table(width, side):
        """Sine and cosine of the column, then of the row."""
        steps = torch.arange(side, dtype=torch.float32)
        speed = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
        waves = torch.cat([(steps[:, None] * speed).sin(), (steps[:, None] * speed).cos()], 1)
        across = waves[None].expand(side, side, -1)
        return torch.cat([across, across.transpose(0, 1)], dim=-1).view(1, side * side, width)


    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.attn = Attention(width, num_heads=heads, qkv_bias=True)
            self.mlp = Mlp(width, 4 * width, lambda: nn.GELU(approximate="tanh"), 0)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x, c):
            a, b, g, d, e, h = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
            norm = lambda x: nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
            x = x + g * self.attn(norm(x) * (1 + b) + a)
            return x + h * self.mlp(norm(x) * (1 + e) + d)


    class Final(nn.Module):
        def __init__(self, width, out):
            super().__init__()
            self.linear = nn.Linear(width, out)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

        def forward(self, x, c):
            a, b = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
            return self.linear(nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + b) + a)


    class Brick(nn.Module):
        def __init__(self, side, local, depth, channels, out, width, heads):
            super().__init__()
            self.side, self.local, self.out = side, local, out
            self.x_embedder = PatchEmbed(side, local, channels + 2, width, bias=True)
            positions = table(width, side // local)
            self.pos_embed = nn.Parameter(positions, requires_grad=False)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.final_layer = Final(width, local * local * out)

        def forward(self, x, c):
            grid = x.shape[-1] // self.side
            cut = x.unflatten(2, (grid, self.side)).unflatten(4, (grid, self.side))
            patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            c = c.repeat_interleave(grid * grid, dim=0)
            tokens = self.x_embedder(patches) + self.pos_embed
            for block in self.blocks:
                tokens = block(tokens, c)
            n, l = self.side // self.local, self.local
            out = self.final_layer(tokens, c).view(-1, grid, grid, n, n, l, l, self.out)
            return out.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


    class Waves(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

        def forward(self, t):
            angles = t[:, None] * 10_000.0 ** -(torch.arange(128) / 128)
            return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


    class Labels(nn.Module):
        def __init__(self, count, width):
            super().__init__()
            self.embedding_table = nn.Linear(count, width)


    class LEGO(nn.Module):
        def __init__(self, in_channels, label_dim, class_dropout_prob, train_intermediate_stages):
            super().__init__()
            c, width, heads = in_channels, 32, 2
            self.model = nn.ModuleList([
                Brick(4, 2, 1, c, c, width, heads), Brick(16, 4, 2, 2 * c, c, width, heads)
            ])
            self.t_embedder = Waves(width)
            self.y_embedder = Labels(label_dim, width) if label_dim else None
            self.every = train_intermediate_stages

        def forward(self, x, t, class_labels=None):
            c = self.t_embedder(t)
            if class_labels is not None:
                c = c + self.y_embedder.embedding_table(class_labels)
            side = torch.linspace(-1, 1, x.shape[-1])
            places = torch.stack(torch.meshgrid(side, side, indexing="ij"))
            x = torch.cat([x, places.expand(len(x), -1, -1, -1)], dim=1)
            found = []
            for brick in self.model:
                found.append(brick(torch.cat([*found[-1:], x], dim=1), c))
            return found if self.every and self.training else found[-1]


    lego_models = {"lego_T_PG_16": LEGO}
'''


def spec(classes):
    return StackSpec((16, 16), 3, 32, 2, BRICKS, classes, refine=False, hand_over="raw")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(authors, "DEPTHS", {"lego_T_PG_16": (1, 2)})
    monkeypatch.setattr(authors, "official_spec", lambda name, channels, classes: spec(classes))
    layers = authors.lego_pipeline
    monkeypatch.setattr(authors, "lego_pipeline", lambda tensors: layers(tensors, heads=2))
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "lego_models.py").write_text(dedent(CODE))
    return tmp_path


@pytest.mark.parametrize("classes", [0, 3])
def test_theirs_and_ours_have_the_same_weights_and_estimates(classes, place):
    refining = StackSpec((16, 16), 3, 32, 2, BRICKS, classes)
    own, theirs = beside_authors(of_stack("mine", refining), place)
    assert (own.name, theirs.name) == ("mine", "authors' lego_T_PG_16")
    assert own.spec == spec(classes)
    assert own.parts == ((0,), (1,))
    assert isinstance(own.network, LegoStack)
    assert isinstance(theirs.network, Theirs)
    noisy, sigma = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 1.0, 20.0])
    labels = torch.arange(3) if classes else None
    with torch.no_grad():
        expected = theirs.network(noisy, sigma, labels)
        assert expected.std() > 0.05
        assert torch.allclose(own.network(noisy, sigma, labels), expected, atol=1e-5)
    clean, noise = torch.randn(2, 3, 3, 16, 16)
    losses = [brick_losses(one.network, clean, noise, sigma, labels) for one in (own, theirs)]
    assert losses[1].shape == (2, 3)
    assert torch.allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_both_are_measured(train, place):
    own, theirs = beside_authors(of_stack("mine", spec(3)), place)
    setting = Setting((16, 16), 2, CPU, train=train)
    entries = [candidates(one, setting)[0] for one in (own, theirs)]
    mine, other = measure(entries, 1, CPU)
    assert mine.flops < other.flops < 2 * mine.flops  # modulation of every patch
    assert other.memory > 0


def test_what_cannot_be_is_told(place, tmp_path):
    with pytest.raises(ValueError, match=r"there is no training/lego_models\.py"):
        load(tmp_path / "nowhere")
    other = StackSpec((16, 16), 3, 32, 2, (BrickSpec(8, 4, 1), BrickSpec("image", 4, 2)))
    with pytest.raises(ValueError, match="no model of these bricks; try lego-s-pg-64"):
        beside_authors(of_stack("mine", other), place)
    (place / "training" / "lego_models.py").write_text("import nothing_such")
    with pytest.raises(ValueError, match=r"lego_models\.py does not run .*nothing_such"):
        load(place)
    code = dedent(CODE).replace('indexing="ij"', 'indexing="xy"')
    (place / "training" / "lego_models.py").write_text(code)
    with pytest.raises(ValueError, match="other estimates than ours"):
        beside_authors(of_stack("mine", spec(0)), place)


def test_nothing_of_theirs_stays_imported(place):
    import sys

    load(place)
    assert "authors_lego_models" not in sys.modules
    assert ("timm" in sys.modules) == authors._has_timm()


def test_on_the_command_line(place, tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("legodiff.model.presets", fromlist=["PRESETS"]).PRESETS, "mine", spec(0)
    )
    out = tmp_path / "bench.json"
    words = ["bench", "mine", "--authors", str(place), "--against", "none", "--rounds", "1"]
    result = CliRunner().invoke(app, [*words, "--batch", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in json.loads(out.read_text())["evaluations"]]
    assert names == ["mine", "mine: brick 0", "mine: brick 1", "authors' lego_T_PG_16"]
