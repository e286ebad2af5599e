"""A script that draws with exported graphs and needs nothing of ours: for the README beside them.

It is put together from the parts that a method needs, so that it stays short enough to be read.
"""

from math import inf

from legodiff.sampling import Method

LARGE = 1e9  # stands for infinity, which has no name in a script
HEAD = """\
import json

import numpy as np
IMPORTS

about = json.load(open("sampling.json"))
sigmas, rng = about["sigmas"], np.random.default_rng(0)
networks = {name: OPENED for name in about["graphs"]}
"""
OPENED = {
    "onnx": ("onnxruntime", "onnxruntime.InferenceSession(name)"),
    "torch-export": ("torch", "torch.export.load(name).module()"),
}
EVALUATE = {
    "onnx": """
def NAME(call, noisy, labels):
    inputs = {"noisy": noisy, "sigma": np.full(len(noisy), call["sigma"]), "labels": labels}
    graph = networks[call["file"]]
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    given = {i.name: np.asarray(inputs[i.name], types[i.type]) for i in graph.get_inputs()}
    found = [array.astype(np.float64) for array in graph.run(None, given)]
    return FOUND
""",
    "torch-export": """
@torch.no_grad()
def NAME(call, noisy, labels):
    inputs = [torch.tensor(noisy).float(), torch.full((len(noisy),), call["sigma"])]
    inputs += [torch.tensor(labels)] if about["classes"] else []
    found = [tensor.double().numpy() for tensor in networks[call["file"]](*inputs)]
    return FOUND
""",
}
LOWEST = 'found[0] + (call["self_guidance"] - 1) * (found[0] - found[-1])'
GUIDED = """
def estimate(call, noisy, labels):
    clean = evaluate(call, noisy, labels)
    if call["guidance"] == 1:
        return clean
    without = evaluate(call, noisy, [about["no_class"]] * len(noisy))
    return without + call["guidance"] * (clean - without)
"""
DRAW = '''
def draw(noise, labels):
    """Images in the model's space from unit noise (B, C, H, W) and a class for each."""
    calls, x = iter(about["calls"]), sigmas[0] * noise
    for sigma, following in zip(sigmas, sigmas[1:]):
STEP
    return x
'''
EULER = """\
        clean = estimate(next(calls), x, labels)
        x = clean + following / sigma * (x - clean)
"""
ANCESTRAL = """\
        clean = estimate(next(calls), x, labels)
        fresh = ETA * following * (1 - (following / sigma) ** 2) ** 0.5
        x = clean + (following**2 - fresh**2) ** 0.5 / sigma * (x - clean)
        x = x + fresh * rng.standard_normal(x.shape)
"""
CHURN = """\
        if S_MIN <= sigma <= S_MAX:
            raised = sigma * (1 + min(CHURN / (len(sigmas) - 1), 2**0.5 - 1))
            fresh = (raised**2 - sigma**2) ** 0.5 * S_NOISE
            x, sigma = x + fresh * rng.standard_normal(x.shape), raised
"""
HEUN = """\
        slope = (x - estimate(next(calls), x, labels)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            there = (ahead - estimate(next(calls), ahead, labels)) / following
            ahead = x + (following - sigma) * (slope + there) / 2
        x = ahead
"""
DPMPP_2M = """\
        clean = ahead = estimate(next(calls), x, labels)
        if sigma < sigmas[0] and following > 0:
            ahead = clean + np.log(sigma / following) / np.log(above / sigma) / 2 * (clean - before)
        above, before = sigma, clean
        x = ahead + following / sigma * (x - ahead)
"""
PIXELS = '''
def decode(x):
    """The model's space to pixels, uint8 (B, C, H, W)."""
    codec = about["codec"]
    pixels = (x / codec["scale"] + np.reshape(codec["mean"], (-1, 1, 1)) + 1) * 127.5
    return np.rint(pixels).clip(0, 255).astype(np.uint8)
'''
LATENTS = '''
def decode(x):
    """The model's space to latents of the VAE that sampling.json names, (B, C, h, w)."""
    codec, vae = about["codec"], about["codec"]["vae"]
    normal = x / codec["scale"] + np.reshape(codec["mean"], (-1, 1, 1))
    return normal / vae["scale"] + vae["shift"]
'''
MAIN = """
if __name__ == "__main__":
    shape = [about["image"][side] for side in ("channels", "height", "width")]
    drawn = decode(draw(rng.standard_normal((1, *shape)), labels=[0]))[0]
"""
SAVE_PIXELS = """\
    drawn = drawn[0] if len(drawn) == 1 else np.moveaxis(drawn, 0, -1)
    Image.fromarray(drawn).save("image.png")
"""
SAVE_LATENTS = """\
    np.save("latents.npy", drawn)
"""


def script(kind: str, method: Method, latents: bool) -> str:
    """Python for numpy and onnxruntime or torch that draws one image by a method.

    ``kind`` is that of the graphs, "onnx" or "torch-export"; ``latents``: what the model makes.
    """
    package, opened = OPENED[kind]
    imports = f"import {package}" + ("" if latents else "\nfrom PIL import Image")
    guided = method.guidance != 1
    evaluate = EVALUATE[kind].replace("NAME", "evaluate" if guided else "estimate")
    parts = [
        HEAD.replace("IMPORTS", imports).replace("OPENED", opened),
        evaluate.replace("FOUND", "found[0]" if method.self_guidance == 1 else LOWEST),
        *([GUIDED] if guided else []),
        DRAW.replace("STEP\n", _step(method)),
        LATENTS if latents else PIXELS,
        MAIN + (SAVE_LATENTS if latents else SAVE_PIXELS),
    ]
    return "\n".join(parts)


def _step(method: Method) -> str:
    """What happens between two noise levels, with the sampler's options filled in."""
    options = {"churn": 0.0, "s_min": 0.0, "s_max": inf, "s_noise": 1.0, "eta": 0.0}
    options |= {"eta": 1.0} if method.sampler == "ddpm" else method.options
    step = {"heun": HEUN, "dpmpp_2m": DPMPP_2M}.get(method.sampler, EULER)
    if options["eta"]:
        step = ANCESTRAL
    if options["churn"]:
        step = CHURN + step
    for name in ("CHURN", "S_MIN", "S_MAX", "S_NOISE", "ETA"):
        value = min(float(options[name.lower()]), LARGE)
        step = step.replace(name, repr(value))
    return step
