import pytest
import torch
from vaes import make_vae

from legodiff import vae as vaes
from legodiff.vae import open_vae
from legodiff.vae_tiles import decode_in_tiles


@pytest.fixture(scope="module", params=[(8, 8, 8), (8, 16, 16, 32)])
def vae(request, tmp_path_factory):
    count = len(request.param)
    kinds = {
        "block_out_channels": request.param,
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "layers_per_block": 2,
    }
    return open_vae(make_vae(tmp_path_factory.mktemp("vae"), **kinds))


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 33)])
@pytest.mark.parametrize("tile", [5, 16, 1000])
def test_tiles_decode_as_the_whole_does(vae, size, tile):
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.network.decode(latents).sample
        assert torch.allclose(decode_in_tiles(vae.network, latents, tile), whole, atol=1e-4)


def test_large_pictures_are_decoded_in_tiles_to_the_same_pixels(vae, monkeypatch):
    latents = torch.randn(3, 4, 6, 9, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(latents).int()
    tiled = []
    monkeypatch.setattr(vaes, "LARGE", 100)
    monkeypatch.setattr(
        vaes,
        "decode_in_tiles",
        lambda network, one: tiled.append(len(one)) or decode_in_tiles(network, one, 16),
    )
    assert (vae.decode(latents).int() - whole).abs().max() <= 2
    assert tiled == [1, 1, 1]


def test_no_convolution_sees_more_than_a_tile_and_its_border(vae):
    sides = []
    decoder = vae.network.decoder
    conv = torch.nn.functional.conv2d

    def watched(inputs, *rest, **more):
        sides.append(max(inputs.shape[-2:]))
        return conv(inputs, *rest, **more)

    torch.nn.functional.conv2d = watched
    try:
        with torch.no_grad():
            decode_in_tiles(vae.network, torch.randn(1, 4, 4, 40), 8)
    finally:
        torch.nn.functional.conv2d = conv
    tiled = sides[1 + 1 + 2 * len(decoder.mid_block.resnets) :]
    assert max(tiled) <= 8 + 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D")},
            None,
        ),
        ({"act_fn": "gelu"}, "the activation gelu"),
    ],
)
def test_decoders_of_other_layers_are_refused_where_tiles_are_needed(
    change, named, tmp_path, monkeypatch
):
    odd = open_vae(make_vae(tmp_path, **change))
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    assert odd.decode(latents).shape == (1, 3, 16, 16)
    monkeypatch.setattr(vaes, "LARGE", 255)
    monkeypatch.setattr(odd.network.decoder.conv_in, "forward", None)  # nothing is begun
    named = named or "AttnUpDecoderBlock2D"
    line = (
        rf"^VAE: a decoder with {named} cannot be run in tiles, [^\n]*; draw a smaller one[^\n]*$"
    )
    with pytest.raises(ValueError, match=line):
        odd.decode(latents)


def test_unknown_layers_are_refused(vae):
    class Other(torch.nn.Module):
        pass

    resnets = vae.network.decoder.up_blocks[0].resnets
    resnets.append(Other())
    try:
        with pytest.raises(ValueError, match="a decoder with Other cannot be run in tiles"):
            decode_in_tiles(vae.network, torch.zeros(1, 4, 2, 2))
    finally:
        del resnets[-1]
