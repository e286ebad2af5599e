"""``legodiff push``"""

from pathlib import Path
from typing import Annotated

import typer

from legodiff.cli.common import choose_device, open_pipeline, progress, say
from legodiff.cli.options import DeviceOption, GuidanceOption, StepsOption, VaeOption


def push(
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    hub_id: Annotated[str, typer.Argument(help="Where to: owner/name; made if there is none.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a repository that is made.")
    ] = True,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if there is none; else the main one.")
    ] = None,
    message: Annotated[
        str | None, typer.Option(help="What the commit says; by default the Hub's words.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="As the Hub names it: apache-2.0, cc-by-4.0 ...")
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(help="Write what would be uploaded into a folder, and upload nothing."),
    ] = None,
    steps: StepsOption = 18,
    guidance: GuidanceOption = 1.0,
    vae: VaeOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Upload a model with a model card to the Hugging Face Hub, or write what would be.

    Weights, configuration, plans, the card and its pictures go, as one commit; logs, checkpoints
    and the names of folders stay. The card says what is recorded: data, training, plans, metrics.
    """
    from legodiff import hub
    from legodiff.publishing import check, examples, write_folder

    repo, _ = hub.branch(hub_id, revision)
    check(dry_run, license)  # all rather now than after drawing
    if dry_run is None:
        hub.check_login()
    pipe = open_pipeline(run, choose_device(device), vae)
    pipe.check_guidance(guidance)
    with progress() as show:
        samples = examples(pipe, steps, guidance, lambda done: show("drawing", done, 16))
    if samples is None:
        say("the VAE of this model is not here, so the card shows no images; name it with --vae")
    if dry_run is not None:
        write_folder(pipe, dry_run, repo, license, samples)
        for path in sorted(dry_run.iterdir()):
            say(f"{path}: {path.stat().st_size:,} bytes")
        say("This would be uploaded; nothing was.")
        return
    pushed = pipe.push_to_hub(
        hub_id,
        private=private,
        commit_message=message,
        revision=revision,
        license=license,
        samples=samples,
    )
    say(pushed.url)
    say(f"Draw with it:  legodiff sample {repo}@{pushed.commit} --out samples")
