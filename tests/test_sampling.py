import json

import pytest

from legodiff import SkipPlan
from legodiff.noise import ddpm_strided_sigmas, karras_sigmas
from legodiff.sampling import Method, Sampling

PLAN = SkipPlan(((0.0, (0, 1)), (0.5, (0,))))


def test_every_sampler_has_its_grid():
    sampling = Sampling(0.01, 40.0, 5.0)
    assert sampling.sigmas(7).equal(karras_sigmas(7, 0.01, 40.0, 5.0))
    assert sampling.sigmas(7, "ddim").equal(ddpm_strided_sigmas(7, 40.0))


def test_grids_of_unknown_samplers_and_steps_are_one_line():
    with pytest.raises(ValueError, match="unknown sampler 'foo'; choose from heun"):
        Sampling().sigmas(4, "foo")
    with pytest.raises(ValueError, match="steps is '4'; it must be a whole number from 1 on"):
        Sampling().sigmas("4")


@pytest.mark.parametrize(
    "words",
    [{"sigma_min": 0.0}, {"sigma_min": 9.0, "sigma_max": 1.0}, {"rho": "7"}, {"sigma_max": True}],
)
def test_ranges_that_are_none_are_refused(words):
    with pytest.raises(ValueError, match=r"sigma|rho"):
        Sampling(**words)


def test_levels_are_those_at_which_the_denoiser_is_called():
    sampling, grid = Sampling(), Sampling().sigmas(3).tolist()
    twice = [grid[0], grid[1], grid[1], grid[2], grid[2]]
    assert Method(PLAN, 3).levels(sampling) == pytest.approx(twice, rel=1e-6)
    assert Method(PLAN, 3, "euler").levels(sampling) == pytest.approx(grid[:-1], rel=1e-6)


def test_guidance_takes_two_evaluations_inside_its_interval():
    method = Method(PLAN, 3, guidance=1.5, interval=(0.5, 2.0))
    assert [method.evaluations(at) for at in (0.49, 0.5, 1.0, 2.0, 2.01)] == [1, 2, 2, 2, 1]
    assert Method(PLAN, 3, interval=(0.5, 2.0), self_guidance=3.0).evaluations(1.0) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sampler": "ddpn"}, "unknown sampler 'ddpn'; choose from heun"),
        ({"options": {"eta": 1.0}}, "heun has no option 'eta'; it takes churn, s_min"),
        (
            {"sampler": "euler", "options": {"churn": 1.0}},
            "euler has no option 'churn'; it",
        ),
        ({"options": {"churn": -1.0}}, "churn is -1.0; it must be a number from 0 on"),
        ({"options": {"churn": "1"}}, "churn is '1'"),
        ({"sampler": "ddim", "options": {"eta": 1.5}}, "eta is 1.5; it must be from 0 to 1"),
        ({"guidance": float("inf")}, "guidance is inf; it must be a number"),
        ({"self_guidance": "2"}, "self_guidance is 2; it must be a number"),
        ({"interval": (2.0, 1.0)}, "guidance interval 2 to 1: give two noise levels"),
        ({"interval": (-1.0, 1.0)}, "guidance interval -1 to 1"),
        ({"interval": (1.0, float("nan"))}, "guidance interval 1 to nan"),
        ({"interval": 5}, "guidance interval 5: give two noise levels"),
        ({"interval": (1.0, 2.0, 3.0)}, r"guidance interval \(1.0, 2.0, 3.0\): give"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 on"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": "2"}, "steps is '2'; it must be a whole number"),
        ({"sampler": ["heun"]}, r"unknown sampler \['heun'\]"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Method(PLAN, **words)


@pytest.mark.parametrize(
    "method",
    [
        Method(PLAN),
        Method(PLAN, 50, "ddim", {"eta": 0.5}, 2.0, (0.2, 5.0), 1.3),
        Method(PLAN, guidance=2.0, interval=(0.2, float("inf"))),
        Method(PLAN, options={"churn": 10.0, "s_max": float("inf")}),
    ],
)
def test_methods_go_through_json(method):
    text = json.dumps(method.to_dict(), allow_nan=False)
    assert Method.from_dict(json.loads(text)) == method
    assert "self_guidance" in method.to_dict() or method.self_guidance == 1
    with pytest.raises(ValueError, match="speed"):
        Method.from_dict({**method.to_dict(), "speed": 2})
