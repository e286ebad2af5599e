"""Checkpoints of others: what their own code gave is what the imported stacks give."""

import io
import json
import pickle
import re
import struct
import sys
import types
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_data_cifar import hostile

from legodiff import LegoPipeline
from legodiff.codec import LatentCodec, PixelCodec
from legodiff.diffusion.guidance import guided
from legodiff.interop.files import read_weights
from legodiff.interop.importing import import_model
from legodiff.interop.lego import DEPTHS, official_spec
from legodiff.model.cost import brick_parameters
from legodiff.model.precondition import ddpm, to_raw
from legodiff.vae import VaeSpec

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """(their weights, what their code was given and gave)"""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    given = {k.removeprefix("golden/"): tensors.pop(k) for k in list(tensors) if "golden/" in k}
    return tensors, given


def module(name, tensors, **attributes):
    """A tree of objects that pickles as the modules of these tensors would."""
    classes = {"": name}
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **attributes}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        if rest:
            state["_modules"].setdefault(first, {})[rest] = tensor
        else:
            state["_parameters"][first] = torch.nn.Parameter(tensor, requires_grad=False)
    inner = {k: module("torch.nn.modules.linear.Linear", v) for k, v in state["_modules"].items()}
    thing = types.SimpleNamespace()
    thing.__dict__.update(state | {"_modules": inner})
    thing.class_name = classes[""]
    return thing


class Pickler(pickle.Pickler):
    """Writes EDM's format: classes by name, the outermost with its source code."""

    def reducer_override(self, thing):
        if not isinstance(thing, types.SimpleNamespace):
            return NotImplemented
        state = {k: v for k, v in vars(thing).items() if k != "class_name"}
        if thing.class_name == "EDMPrecondLEGO":
            source = "raise SystemExit('this must not run')"
            meta = {"type": "class", "version": 6, "module_src": source}
            meta |= {"class_name": thing.class_name, "state": state}
            return Named("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,)
        return Named(*thing.class_name.rsplit(".", 1)), (), state


class Named:
    """A function of another package."""

    def __init__(self, package, name):
        self.__module__, self.__qualname__ = package, name
        home = sys.modules.setdefault(package, types.ModuleType(package))
        if not hasattr(home, name):
            setattr(home, name, self)

    def __new__(cls, package, name):
        known = getattr(sys.modules.get(package), name, None)
        return known if known is not None else super().__new__(cls)

    def __call__(self, *_):
        raise AssertionError("called")

    def __reduce__(self):
        return self.__qualname__


def edm_pickle(path, name, **attributes):
    """A checkpoint as the authors release it."""
    tensors, given = golden(name)
    inner = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    lego = module("training.lego_models.LEGO", inner, num_heads=2, dropout_prob=0.2)
    net = module("EDMPrecondLEGO", {}, **{"sigma_data": 0.5, **attributes})
    net._modules["model"] = lego
    with path.open("wb") as file:
        content = {"ema": net, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"a": 1}}
        Pickler(file, 4).dump(content)
    return given


@pytest.fixture(params=["lego_pg", "lego_pr"])
def official(request, tmp_path, monkeypatch):
    for package in ("torch_utils", "torch_utils.persistence", "training", "training.lego_models"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    path = tmp_path / "network-snapshot-000100.pkl"
    return path, edm_pickle(path, request.param)


def estimates(pipe, given):
    labels = torch.tensor([0, 3, 9, 10]) if pipe.stack.spec.classes else None
    with torch.no_grad():
        return pipe.stack.estimates(given["noisy"], given["sigma"], labels)


def test_every_bricks_estimate_is_theirs(official, tmp_path):
    path, given = official
    pipe, what = import_model(path)
    assert what == "LEGO stack from a pickle"
    for number, estimate in enumerate(estimates(pipe, given)):
        assert torch.allclose(estimate, given[str(number)], atol=2e-6)
    pipe.save_pretrained(tmp_path / "model")
    again = LegoPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(estimates(again, given)[-1], estimates(pipe, given)[-1])


@pytest.mark.parametrize("value", ["0.5", [0.5], None, {"a": 1}])
def test_attributes_that_are_no_numbers_are_passed_over(value, official):
    """What stands where a number should is not believed; the usual one is taken."""
    path, _ = official
    edm_pickle(path, "lego_pg")
    plain = import_model(path).pipe.stack.spec
    edm_pickle(path, "lego_pg", sigma_data=value)
    assert import_model(path).pipe.stack.spec == plain
    edm_pickle(path, "lego_pg", sigma_data=0.25)
    assert import_model(path).pipe.stack.spec.sigma_data == 0.25


def test_guidance_is_theirs(tmp_path):
    path = GOLDEN / "lego_pg.safetensors"
    tensors, given = golden("lego_pg")
    save_file(tensors, tmp_path / "a.safetensors")
    pipe, _ = import_model(tmp_path / "a.safetensors", heads=2)
    denoise = guided(pipe.stack, 1.7, no_class=10)
    with torch.no_grad():
        found = denoise(given["noisy"], given["sigma"], torch.tensor([0, 3, 9, 10]))
    assert torch.allclose(found, given["guided"], atol=2e-6)
    assert path.exists()


def test_pixels_and_latents(tmp_path):
    for name, kind in (("lego_pg", PixelCodec), ("lego_pr", LatentCodec)):
        save_file(golden(name)[0], tmp_path / "a.safetensors")
        pipe, _ = import_model(tmp_path / "a.safetensors", heads=2)
        assert isinstance(pipe.codec, kind)
        spec = pipe.stack.spec
        assert (spec.refine, spec.hand_over) == (False, "raw")
        assert pipe.label_dropout == (0.1 if spec.classes else 0)
    latents = torch.full((1, 4, 2, 2), 0.5)
    assert torch.allclose(pipe.codec.latents(latents), latents / 0.18215)


def test_attributes_of_a_pickled_network_are_read(tmp_path, monkeypatch):
    for package in ("torch_utils", "torch_utils.persistence", "training", "training.lego_models"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    edm_pickle(tmp_path / "a.pkl", "lego_pg")
    pipe, _ = import_model(tmp_path / "a.pkl")
    assert (pipe.stack.spec.heads, pipe.label_dropout) == (2, 0.2)


def test_dit_is_a_stack_of_one_brick_exactly(tmp_path):
    tensors, given = golden("dit")
    checkpoint = {"model": {}, "ema": tensors, "opt": {}, "args": Namespace(lr=1)}
    torch.save(checkpoint, tmp_path / "dit.pt")
    pipe, what = import_model(tmp_path / "dit.pt", heads=2)
    assert what == "DiT from a PyTorch archive"
    assert pipe.stack.spec.classes == 5
    with torch.no_grad():
        clean = pipe.stack(given["noisy"], given["sigma"], given["labels"])
    noise = to_raw(clean, given["noisy"], ddpm(given["sigma"], 0.5))
    assert torch.allclose(noise, given["eps"], atol=1e-4)
    assert torch.allclose(clean, given["0"], rtol=1e-5, atol=1e-4)
    assert pipe.sampling.sigma_max == pytest.approx(157.4, abs=0.1)


def test_every_kind_of_file_gives_the_same_weights(tmp_path):
    tensors, _ = golden("lego_pg")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "c.pt")
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for protocol in (2, 4, 5):
        with (tmp_path / f"{protocol}.pkl").open("wb") as file:
            pickle.dump(tensors, file, protocol)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) == 9
    for path in files:
        found = read_weights(path).tensors
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_types_of_numbers_and_views(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "half": whole.half(),
        "bf16": whole.bfloat16(),
        "double": whole.double(),
        "long": whole.long(),
        "bool": whole > 3,
        "part": whole[1:3],
        "turned": whole.T,
        "one": torch.tensor(3.0),
        "none": torch.empty(0, 3),
        "same": whole,
    }
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with (tmp_path / "c.pkl").open("wb") as file:
        pickle.dump(tensors, file)
    for path in tmp_path.iterdir():
        found = read_weights(path).tensors
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_tensors_of_before_pytorch_0_4(tmp_path):
    """They are pickled with a function of fewer arguments; torchvision's VGG of 2017 still is."""
    whole = torch.arange(24.0).reshape(4, 6)
    storage = torch.storage.TypedStorage(
        wrap_storage=whole.untyped_storage(), dtype=torch.float32, _internal=True
    )

    class Old:
        def __reduce__(self):
            return torch._utils._rebuild_tensor, (storage, 6, (2, 3), (6, 1))

    torch.save({"a": Old()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth").tensors["a"], whole[1:3, :3])


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [  # counted in their code; with classes ours has one more, for none
        ("lego_S_PG_64", 0, 33.35),
        ("lego_S_U_64", 0, 60.83),
        ("lego_L_PG_32", 1000, 463.01),
        ("lego_L_PG_64", 1000, 500.57),
        ("lego_L_PR_64_old", 1000, 462.79),
        ("lego_XL_PG_32", 1000, 729.05),
        ("lego_XL_U_32", 1000, 1261.37),
        ("lego_XL_U_64", 1000, 1356.51),
    ],
)
def test_the_authors_models_are_as_large_as_theirs(name, classes, millions):
    spec = official_spec(name, channels=4 if "32" in name else 3, classes=classes)
    assert sum(brick_parameters(spec)) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", DEPTHS)
def test_the_authors_names(name):
    spec = official_spec(name, channels=3)
    side, order = int(name.split("_")[3]), name.split("_")[2]
    whole, middle, small = ("image", 2), (16, 8), (4, 2)
    stacks = {"PG": (small, middle, whole), "PR": (whole, middle, small)}
    stacks["U"] = (whole, middle, small, middle, whole)
    assert spec.image_size == (side, side)
    assert tuple((brick.size, brick.local) for brick in spec.bricks) == stacks[order]
    assert tuple(brick.depth for brick in spec.bricks) == DEPTHS[name]
    assert spec.width == {"S": 384, "L": 1024, "X": 1152}[name.split("_")[1][0]]
    assert (spec.refine, spec.hand_over) == (False, "raw")


def test_a_name_is_checked(tmp_path):
    save_file(golden("lego_pg")[0], tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"this is not lego_S_PG_64: its image_size is \(16, 16\)"):
        import_model(tmp_path / "a.safetensors", "lego_S_PG_64", heads=2)
    with pytest.raises(ValueError, match="unknown model 'lego_M'; choose from lego_S_PG_64"):
        import_model(tmp_path / "a.safetensors", "lego_M", heads=2)
    with pytest.raises(ValueError, match="width 16 is none of S, L and XL; give --heads"):
        import_model(tmp_path / "a.safetensors")


def changed(**changes):
    tensors, _ = golden("lego_pg")
    for name, change in changes.items():
        key = {"positions": "model.model.0.pos_embed", "bias": "model.t_embedder.mlp.0.bias"}[name]
        tensors[key] = change(tensors[key])
    return tensors


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lambda: changed(positions=lambda t: t + 0.01), "not the fixed sines and cosines"),
        (lambda: changed(positions=lambda t: t[:, :3].contiguous()), "no square"),
        (lambda: changed(bias=lambda t: t * torch.nan), "what is no number"),
        (lambda: changed(bias=lambda t: t.long()), "torch.int64"),
        (lambda: changed(bias=lambda t: t[:5].clone()), "of another shape, first noise_embedding"),
        (lambda: {**changed(), "model.more": torch.ones(1)}, "have no place here, first more"),
        (lambda: {"weight": torch.ones(2)}, "no weights of LEGO or DiT"),
        (
            lambda: {k: v for k, v in changed().items() if "qkv.bias" not in k},
            "there is no model.0.blocks.0.attn.qkv.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tensors, reason, tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"^[^\n]*a\.safetensors: [^\n]*{reason}[^\n]*$"):
        import_model(tmp_path / "a.safetensors", heads=2)


def theirs_with(name, change):
    """The official weights with one tensor changed."""
    tensors = golden("lego_pg")[0]
    key = next(key for key in tensors if key.endswith(name))
    return {**tensors, key: change(tensors[key]).contiguous()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("y_embedder.embedding_table.bias", lambda t: t[:5]),
        ("final_layer.linear.weight", lambda t: t[:7]),
        ("pos_embed", lambda t: t.flatten()),
        ("x_embedder.proj.weight", lambda t: t[..., 0]),
        ("attn.qkv.weight", lambda t: t[:, :3]),
    ],
)
def test_weights_of_another_shape_are_one_line(name, change, tmp_path):
    save_file(theirs_with(name, change), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^[^\n]*a\.safetensors: [^\n]*$"):
        import_model(tmp_path / "a.safetensors", heads=2)


def rebuilt(size, stride, offset=0, count=4, said=None):
    """A pickle of a tensor of ``count`` numbers, with this size and stride."""
    storage = torch.arange(float(count)).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, {})

    data = pickle.dumps({"a": Tensor()}, 4)
    return data if said is None else data.replace(struct.pack("<q", count), said)


def archive_with(change):
    """An archive of ``torch.save`` whose members went through ``change(name, data)``."""
    out, made = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            for member, data, kind in change(name, old.read(name)):
                new.writestr(member, data, kind)
    return made.getvalue()


def only(where, then):
    def change(name, data):
        same = [(name, data, zipfile.ZIP_STORED)]
        return then(name, data) if name.endswith(where) else same

    return change


def npz(name="a.npy", header=None, data=b"\0" * 16, kind=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as members:
        text = header or "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"
        text = text.ljust(117) + "\n"
        members.writestr(
            name, b"\x93NUMPY\1\0" + struct.pack("<H", 118) + text.encode() + data, kind
        )
    return out.getvalue()


def header(shape="(4,)", descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def doubled_modules(depth=40):
    """A module with one module twice inside, which has one twice inside, and so on."""
    data = b"\x80\x02ctorch.nn\nLinear\n)Rq\0"
    for level in range(1, depth):
        inside = bytes([level - 1])
        data += b"0ctorch.nn\nLinear\n)Rq" + bytes([level]) + b"}X\x08\0\0\0_modules}"
        data += b"(X\1\0\0\0ah" + inside + b"X\1\0\0\0bh" + inside + b"usb"
    return data + b"."


def nested(depth):
    """A tuple in a tuple in a tuple, which to hash or to print takes a stack as deep."""
    return b")" + b"\x85" * depth


def twice(depth):
    """A tuple that holds another twice, which holds another twice: to print it takes for ever."""
    return b")" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(depth))


def named(name):
    """A pickle that asks for something by this name."""
    return b"\x80\x04X\5\0\0\0torch" + name + b"\x93."


def called(function, argument):
    """A pickle that calls a function of the known ones."""
    return b"\x80\x04" + function + argument + b"\x85R."


def legacy_file():
    out = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


LEGACY_FILE = legacy_file()
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
WHOLE = rebuilt((4,), (1,))
HOSTILE = {
    "an empty file": (b"", "neither safetensors, NPZ, a PyTorch file nor a pickle"),
    "text": (b"hello", "neither safetensors, NPZ, a PyTorch file nor a pickle"),
    "cut off": (WHOLE[:-40], "damaged"),
    "numbers cut off": (LEGACY_FILE[:-8], "numbers behind it are cut off"),
    "a size beyond the storage": (rebuilt((5,), (1,)), "a storage of 4 numbers"),
    "a size of terabytes": (rebuilt((2**40,), (1,)), "a storage of 4 numbers"),
    "an offset beyond the storage": (rebuilt((4,), (1,), offset=1), "a storage of 4 numbers"),
    "a negative size": (rebuilt((-4,), (1,)), "size .-4,. and stride"),
    "a negative offset": (rebuilt((4,), (1,), offset=-4), "size .4,. and stride"),
    "numbers shown often": (rebuilt((1000, 1000, 1000), (0, 0, 0)), "shows numbers twice"),
    "numbers shown twice": (rebuilt((3, 2), (1, 1)), "shows numbers twice"),
    "a size that is no number": (rebuilt((2.0,), (1,)), "not whole numbers"),
    "a size without end": (rebuilt((2**60, 0), (1, 1)), "size .1152921504606846976, 0. and"),
    "a name of tuples in tuples": (named(nested(3000)), "by what is no name"),
    "a name of very many tuples": (named(nested(300_000)), "by what is no name"),
    "a name that doubles": (named(twice(60)), "by what is no name"),
    "a long name": (named(b"X\xd0\x07\0\0" + b"a" * 2000), "by what is no name"),
    "a set of tuples in tuples": (
        called(b"cbuiltins\nset\n", b"](" + nested(300_000) + b"e"),
        "a set of something else than texts",
    ),
    "a class whose name doubles": (
        called(
            b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
            b"}(X\4\0\0\0typeX\5\0\0\0classX\n\0\0\0class_name" + twice(60) + b"u",
        ),
        "whose class has no name",
    ),
    "keys of tuples in tuples": (
        called(b"ccollections\nOrderedDict\n", b"](" + nested(300_000) + b"N\x86e"),
        "keys must be text",
    ),
    "more sizes than strides": (rebuilt((2, 2), (1,)), "something else than numbers"),
    "a storage of more than there is": (
        rebuilt((4,), (1,), said=struct.pack("<q", 2**50)),
        "numbers behind it are cut off",
    ),
    "a storage of terabytes": (
        LEGACY_FILE.replace(b"K\x04N", b"\x8a\x06" + (2**46).to_bytes(6, "little") + b"N"),
        "more than the file is long",
    ),
    "a storage whose key is no text": (
        re.sub(rb"X.\0\0\0[0-9]+q\x05", b"K\x07q\x05", LEGACY_FILE, count=1, flags=re.DOTALL),
        "numbers of the kind FloatStorage",
    ),
    "big-endian numbers": (
        LEGACY + pickle.dumps({"little_endian": False}, 2),
        "not little-endian",
    ),
    "another magic number": (pickle.dumps(7, 2) + LEGACY, "not one that torch.save makes"),
    "a frame of terabytes": (
        b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
        "holds no weights",
    ),
    "bytes of terabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"N.", "damaged"),
    "a number of gigabytes": (b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"N.", "damaged"),
    "an archive in which a file is missing": (
        archive_with(only("data/0", lambda n, d: [])),
        "no item named",
    ),
    "an archive that is compressed": (
        archive_with(only("data/0", lambda n, d: [(n, d, zipfile.ZIP_DEFLATED)])),
        "compressed; torch.save does not",
    ),
    "a bomb in an archive": (
        archive_with(only("data/0", lambda n, d: [(n, b"\0" * 10**7, zipfile.ZIP_DEFLATED)])),
        "compressed; torch.save does not",
    ),
    "an archive with more numbers": (
        archive_with(only("data/0", lambda n, d: [(n, d * 2, zipfile.ZIP_STORED)])),
        "4 numbers are said to be in 32 bytes",
    ),
    "an archive with two pickles": (
        archive_with(only("data.pkl", lambda n, d: [(n, d, 0), (f"b/{n}", d, 0)])),
        "not one that torch.save makes",
    ),
    "an archive that leaves its folder": (
        archive_with(only("data/0", lambda n, d: [("../../0", d, zipfile.ZIP_STORED)])),
        "no item named",
    ),
    "a damaged archive": (archive_with(lambda n, d: [(n, d, 0)])[:200], "damaged archive"),
    "a bomb of arrays": (
        npz(header=header("(100000000,)"), data=b"\0" * 10**7, kind=8),
        "more than 64 times its size",
    ),
    "an array of terabytes": (npz(header=header("(1000000000000,)")), "is not the"),
    "an array of objects": (npz(header=header(descr="'|O'")), "no array of plain numbers"),
    "an array with negative sides": (npz(header=header("(-4, -1)")), "no array of plain numbers"),
    "an array whose header is code": (
        npz(header="__import__('os').system('touch run')"),
        "no array of plain numbers",
    ),
    "an array whose header is deep": (npz(header="(" * 100), "no array of plain numbers"),
    "safetensors of terabytes": (struct.pack("<Q", 2**50) + b"{}", "not a whole safetensors"),
    "safetensors whose JSON is damaged": (
        struct.pack("<Q", 8) + b'{"a": 1',
        "not a whole safetensors",
    ),
    "safetensors of huge JSON": (
        struct.pack("<Q", 2**27) + b"{" + b" " * 2**20,
        "not a whole safetensors",
    ),
    "safetensors beyond its end": (
        struct.pack("<Q", 60)
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60)
        + b"\0\0",
        "not a whole safetensors",
    ),
    "a module inside itself": (
        b"\x80\x02ctorch.nn\nLinear\n)Rq\0}X\x08\0\0\0_modules}X\1\0\0\0mh\0ssb.",
        "modules within modules without end",
    ),
    "modules whose number doubles": (doubled_modules(), "modules within modules without end"),
    "modules without names": (
        b"\x80\x02ctorch.nn\nLinear\n)R}X\x08\0\0\0_modulesK\5sb.",
        "_modules have no names",
    ),
    "tensors with numbers for names": (WHOLE.replace(b"\x8c\x01a", b"K\x01"), "numbers for names"),
    "other things than weights": (pickle.dumps({"a": 1, "b": [2]}), "more than weights"),
    "a list": (pickle.dumps([1, 2]), "holds no weights"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_damaged_and_hostile_files_are_one_line(what, tmp_path):
    path = tmp_path / "a.pkl"
    data, reason = HOSTILE[what]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^[^\n]*a\.pkl[^\n]*{reason}[^\n]*$"):
        import_model(path, heads=2)


def test_code_in_pickles_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "run"
    for number, content in enumerate(hostile(marker)):
        archive = archive_with(only("data.pkl", lambda n, d, c=content: [(n, c, 0)]))
        legacy = LEGACY + pickle.dumps({"little_endian": True}, 2) + content
        for data in (content, b"\x80\x04" + content, archive, legacy):
            path = tmp_path / f"{number}.pkl"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"^[^\n]*\.pkl[^\n]*$"):
                import_model(path, heads=2)
            assert not marker.exists()


def test_source_code_beside_weights_is_text(official, monkeypatch):
    """EDM's format carries a module's source: it is read like any other text."""
    path, _ = official
    assert b"this must not run" in path.read_bytes()
    for name in [name for name in sys.modules if name.split(".")[0] == "training"]:
        monkeypatch.delitem(sys.modules, name)  # the stand-in's own
    import_model(path)
    assert not [name for name in sys.modules if name.split(".")[0] == "training"]


def test_the_command_makes_a_model_folder_that_draws(call, tmp_path):
    save_file(golden("lego_pg")[0], tmp_path / "theirs.safetensors")
    words = ("import", tmp_path / "theirs.safetensors", tmp_path / "model", "--heads", 2)
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert "LEGO stack from a safetensors: 3 bricks, 16x16x3, 10 classes" in out
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        *("config.json", "model.safetensors"),
    ]
    assert call(*words)[0] == 2
    assert "holds a model already" in call(*words)[2]
    assert call(*words, "--overwrite")[0] == 0
    draw = ("sample", tmp_path / "model", "--labels", "3", "--steps", 2, "--out", tmp_path / "out")
    assert call(*draw)[0] == 0
    code, out, err = call("import", tmp_path / "none.pkl", tmp_path / "no")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'none.pkl'} is not a file\n"
    assert not (tmp_path / "no").exists()


def save_diffusers(folder, model="UNet2DModel", config=None, schedule="DDPMScheduler", **more):
    """A pipeline folder as diffusers writes it, of random weights; returns the network."""
    diffusers = pytest.importorskip("diffusers")
    from test_foreign import NETWORKS

    config = config or next(spec.config for spec, _ in NETWORKS.values() if spec.network == model)
    torch.manual_seed(0)
    network = getattr(diffusers, model)(**config).eval()
    part = "unet" if model.startswith("UNet") else "transformer"
    network.save_pretrained(folder / part)
    getattr(diffusers, schedule)(**more).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return network


def test_a_pipeline_of_diffusers_is_a_stack(call, tmp_path):
    network = save_diffusers(tmp_path / "theirs", prediction_type="v_prediction")
    code, out, err = call("import", tmp_path / "theirs", tmp_path / "ours")
    assert (code, err) == (0, "")
    assert "UNet2DModel of diffusers: 1 bricks, 16x16x3" in out
    pipe = LegoPipeline.from_pretrained(tmp_path / "ours")
    assert isinstance(pipe.codec, PixelCodec)
    assert pipe.stack.spec.step == 2
    noisy, sigma = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 1.0])
    with torch.no_grad():
        raw = network(noisy / 2**0.5, pipe.stack.bricks[0].border(sigma).noise).sample
        assert torch.allclose(pipe.stack(noisy, sigma), noisy / 2 - raw / 2**0.5, atol=1e-5)
    draw = ("sample", tmp_path / "ours", "--seeds", "0", "--steps", 2, "--out", tmp_path / "out")
    assert call(*draw)[0] == 0
    assert "UNet2DModel" in call("info", tmp_path / "ours")[1]


def test_latents_and_conditions_of_diffusers(call, tmp_path):
    words = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    save_diffusers(tmp_path / "theirs", "UNet2DConditionModel", **words)
    code, _, err = call("import", tmp_path / "theirs", tmp_path / "ours")
    assert code == 2
    assert "conditioned on encoder_hidden_states; give that in a file of tensors" in err
    condition = torch.randn(1, 3, 12)
    save_file({"encoder_hidden_states": condition}, tmp_path / "condition.safetensors")
    more = ("--condition", tmp_path / "condition.safetensors")
    assert call("import", tmp_path / "theirs", tmp_path / "ours", *more)[0] == 0
    pipe = LegoPipeline.from_pretrained(tmp_path / "ours")
    assert isinstance(pipe.codec, LatentCodec)
    assert torch.equal(pipe.stack.bricks[0].encoder_hidden_states, condition)
    assert pipe.sampling.sigma_max == pytest.approx(14.6, abs=0.1)
    assert pipe.sampling.sigma_min == pytest.approx(0.0292, abs=1e-4)


@pytest.mark.parametrize(
    ("schedule", "prediction", "sigma_max"),
    [
        ("FlowMatchEulerDiscreteScheduler", "flow", 160),
        ("EDMEulerScheduler", "edm", 80),
        ("EulerDiscreteScheduler", "epsilon", 157.4),
    ],
)
def test_schedules_of_diffusers(schedule, prediction, sigma_max, tmp_path):
    save_diffusers(tmp_path, "DiTTransformer2DModel", schedule=schedule)
    pipe, what = import_model(tmp_path)
    brick = pipe.stack.spec.bricks[0]
    assert what == "DiTTransformer2DModel of diffusers"
    assert (brick.prediction, brick.classes, brick.no_class) == (prediction, 5, True)
    assert pipe.sampling.sigma_max == pytest.approx(sigma_max, abs=0.1)
    assert pipe.label_dropout > 0


def test_a_network_without_its_scheduler_and_unknown_ones(tmp_path):
    from test_foreign import SD3

    fixed = {"encoder_hidden_states": (1, 3, 12), "pooled_projections": (1, 10)}
    tensors = {name: torch.randn(shape) for name, shape in fixed.items()}
    save_file(tensors, tmp_path / "c.safetensors")
    for model, config, condition, prediction in (
        ("SD3Transformer2DModel", SD3, tmp_path / "c.safetensors", "flow"),
        ("UNet2DModel", None, None, "epsilon"),
    ):
        folder = tmp_path / model
        save_diffusers(folder, model, config)
        (folder / "scheduler" / "scheduler_config.json").unlink()
        pipe = import_model(folder, condition=condition).pipe
        assert pipe.stack.spec.bricks[0].prediction == prediction
    save_diffusers(tmp_path / "sd", "UNet2DConditionModel")
    (tmp_path / "sd" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"^[^\n]*/sd: nothing says with which noise levels[^\n]*$"
    ):
        import_model(tmp_path / "sd", condition=tmp_path / "c.safetensors")
    save_diffusers(tmp_path / "ve", schedule="ScoreSdeVeScheduler")
    with pytest.raises(ValueError, match=r"^[^\n]*ScoreSdeVeScheduler is not known here[^\n]*$"):
        import_model(tmp_path / "ve")


@pytest.mark.parametrize("named", ["in its index", "by its folder"])
def test_latents_of_another_decoder_are_not_taken_for_pixels(named, tmp_path):
    save_diffusers(tmp_path)
    assert isinstance(import_model(tmp_path).pipe.codec, PixelCodec)
    if named == "in its index":
        parts = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(parts))
    else:
        (tmp_path / "vqvae").mkdir()
        (tmp_path / "vqvae" / "config.json").write_text('{"_class_name": "VQModel"}')
    message = r"^[^\n]*whose decoder vqvae \(VQModel\) is not read here; known is[^\n]*$"
    with pytest.raises(ValueError, match=message):
        import_model(tmp_path)
    vae = VaeSpec(channels=3, downsampling=4)
    assert isinstance(import_model(tmp_path, vae=vae).pipe.codec, LatentCodec)


@pytest.mark.parametrize(("given", "taken"), [(3, True), (6, True), (4, False)])
def test_a_network_gives_what_it_takes_or_a_variance_more(given, taken, tmp_path):
    from test_foreign import UNET

    save_diffusers(tmp_path, config=UNET | {"out_channels": given})
    if taken:
        assert import_model(tmp_path).pipe(seeds=0, steps=1).images
        return
    with pytest.raises(ValueError, match=r"^[^\n]*takes 3 channels and gives 4; known are[^\n]*$"):
        import_model(tmp_path)
    save_diffusers(tmp_path / "wide", config=UNET | {"in_channels": 6})
    with pytest.raises(ValueError, match="takes 6 channels and gives 3"):
        import_model(tmp_path / "wide")


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": None},
        {"sample_size": 1.5},
        {"block_out_channels": 5},
        {"patch_size": "two"},
        {"block_out_channels": [8, "x"]},
    ],
)
def test_a_configuration_of_diffusers_that_cannot_be_is_one_line(changes, tmp_path):
    save_diffusers(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"^[^\n]*{tmp_path.name}[^\n]*$"):
        import_model(tmp_path)


def test_json_of_diffusers_is_bounded(tmp_path, monkeypatch):
    save_diffusers(tmp_path)
    monkeypatch.setattr("legodiff.hub.LARGEST_JSON", 100)
    with pytest.raises(ValueError, match=r"config\.json is too large to be meant"):
        import_model(tmp_path)


def test_old_names_and_parts_of_weights(tmp_path):
    from legodiff.interop.diffusers_models import OLD_NAMES

    network = save_diffusers(tmp_path / "a")
    tensors = network.state_dict()
    old = {}
    for name, tensor in tensors.items():
        for before, after in OLD_NAMES.items():
            name = name.replace(after, before)
        old[name] = tensor
    assert old.keys() != tensors.keys()
    folder = tmp_path / "a" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(old, folder / "diffusion_pytorch_model.bin")
    first = import_model(tmp_path / "a").pipe.stack.state_dict()
    (folder / "diffusion_pytorch_model.bin").unlink()
    half = list(tensors)[: len(tensors) // 2]
    parts = {"1.safetensors": half, "2.safetensors": tensors.keys() - set(half)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    where = {name: file for file, names in parts.items() for name in names}
    index.write_text(json.dumps({"weight_map": where}))
    second = import_model(tmp_path / "a").pipe.stack.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    index.write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))
    with pytest.raises(ValueError, match="names files outside of its folder"):
        import_model(tmp_path / "a")


def test_folders_of_diffusers_that_cannot_be_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="is no folder of diffusers"):
        import_model(tmp_path)
    save_diffusers(tmp_path)
    config = tmp_path / "unet" / "config.json"
    good = config.read_text()
    for text, reason in (
        ("{", "is not JSON"),
        ("[]", "does not hold named values"),
        (good.replace("UNet2DModel", "FluxTransformer2DModel"), "known are UNet2DModel, "),
        (good.replace('_channels": 3', '_channels": 4'), "of another shape"),
        (good.replace('"in_channels": 3', '"in_channels": 6'), "takes 6 channels and gives 3"),
        (good.replace('"AttnDownBlock2D"', '"Nothing"'), "cannot be built as configured"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$"):
            import_model(tmp_path)
    config.write_text(good)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        import_model(tmp_path)
