"""``legodiff studio``"""

from typing import Annotated

import typer

from legodiff.cli.common import choose_device, open_pipeline, prepare, say
from legodiff.cli.options import (
    CompileOption,
    DeviceOption,
    PrecisionOption,
    VaeOption,
    WeightsOption,
)


def studio(
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    port: Annotated[int, typer.Option(help="Of this machine; 0 for any free one.")] = 7860,
    images: Annotated[int, typer.Option(help="Images in a request, at most.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Steps of a request, at most.", min=1)] = 100,
    megapixels: Annotated[
        float, typer.Option(help="Pixels of a request in millions, at most.", min=0.001)
    ] = 4.2,
    waiting: Annotated[int, typer.Option(help="Requests in the queue, at most.", min=0)] = 8,
    weights: WeightsOption = "ema",
    vae: VaeOption = None,
    precision: PrecisionOption = "fp32",
    compiled: CompileOption = False,
    device: DeviceOption = "auto",
) -> None:
    """A page in the browser to draw with a model: budgets, canvases, bricks, training.

    It answers on this machine only (127.0.0.1), needs no network, and takes no path from the page.
    The same server has a JSON API: POST /generate and /canvas, described at /docs. From another
    machine: ssh -L 7860:127.0.0.1:7860 HOST.
    """
    try:
        from legodiff.studio import server
    except ImportError as error:
        raise ValueError(
            f"the studio needs {error.name}, which is not installed; "
            "run: pip install 'legodiff[studio]'"
        ) from error
    from legodiff.studio.drawing import Studio
    from legodiff.studio.requests import Limits

    at = server.bound(port)
    pipe = open_pipeline(run, choose_device(device), vae, weights)
    prepare(pipe, precision, compiled)
    pipe.codec.prepare()
    limits = Limits(images, steps, int(megapixels * 1e6), waiting)
    say(f"http://{server.HOST}:{at.getsockname()[1]}  (API: /docs; Ctrl-C stops it)")
    server.serve(Studio(pipe, run, limits, weights, vae, precision), at)
