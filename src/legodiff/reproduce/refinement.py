"""What each brick makes of the estimate below it: the paper's figures 5 and 6."""

from legodiff.demo import refinement
from legodiff.pictures import save_png
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Scale
from legodiff.reproduce.pages import write_page
from legodiff.reproduce.runs import Setting, trained
from legodiff.train.inputs import open_inputs


def run(experiment: Experiment, setting: Setting) -> str:
    """A picture for each model; returns the page."""
    parts = [experiment.note]
    for model in setting.scale.models:
        made = trained(model, setting.seeds[0], setting)
        data, codec = open_inputs(made.config, made.run, setting.world)
        name = f"{model.name}.png"
        save_png(setting.out / name, refinement(made.pipe.stack, codec, data))
        parts.append(f"![{model.name}]({name})")
    return write_page(setting.out, experiment.title, parts)


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """None: single estimates are shown."""
    return []
