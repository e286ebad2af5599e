import pytest

from legodiff import LegoPipeline, LegoStack, preset
from legodiff.labels import labels_of
from legodiff.studio.elsewhere import Opened, listed


@pytest.fixture(scope="module")
def stack():
    return LegoStack(preset("tiny-pr-16", channels=1, classes=2))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("sea", "land"), "sea,land,none"),
        ((), "0,1,none"),
        (("a, b", "c"), "0,1,none"),
        (("deep sea", "land"), "deep sea,land,none"),
        ((" sea", "land"), "0,1,none"),
        (("1", "7"), "1,7,none"),
        (("1", "sea"), "0,1,none"),
        (("none", "land"), "none,land,2"),  # 2 is the number of no class
        (("a,b", "none"), "0,1,2"),
    ],
)
def test_what_is_listed_is_read_back(stack, names, text):
    pipe = LegoPipeline(stack, class_names=names)
    assert listed(pipe, [0, 1, None]) == text
    assert labels_of("classes", text, 2, names) == [0, 1, None]


def test_how_the_model_was_opened_is_told_where_it_is_not_the_default():
    assert Opened("runs/demo").words() == []
    plain = Opened("runs/demo").script(["from legodiff import LegoPipeline"], ["pipe()"])
    assert plain == (
        "from legodiff import LegoPipeline\n\n"
        "pipe = LegoPipeline.from_pretrained('runs/demo')\npipe()\n"
    )
    opened = Opened("o'neil/demo", "raw", "my vae", "bf16")
    assert opened.words() == ["--weights", "raw", "--vae", "my vae", "--precision", "bf16"]
    lines = opened.script(["import torch", "from legodiff import LegoPipeline"], []).splitlines()
    assert lines.count("import torch") == 1
    assert lines[-2:] == [
        """pipe = LegoPipeline.from_pretrained("o'neil/demo", weights='raw', vae='my vae')""",
        "pipe.to(dtype=torch.bfloat16)",
    ]
