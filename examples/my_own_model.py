"""A model of one's own: a pendulum seen through noise, fitted with three guides by name.

    python examples/my_own_model.py --preset default --out runs/my_own_model

The class `Pendulum` is all that is written for the model: one step in time, with ordinary
`pyro.sample` statements. The physics is known, friction and noises are not. Every guide works on
it with no further code: `filter` (a network of frame and state), `avf` (a network that improves
the prior by gradients) and `vfem` (gradient descent, no network).

Printed, and written to OUT: the parameters that were learnt beside the true ones, free energies
per step, particle filters' bounds whose proposals are the guides, and how many true states the
filtered bands cover (`metrics.json`), the ArviZ comparison of the bounds (`comparison.csv`), and
filtered states with their bands against the truth, where a part of the frames is missing
(`filtered_states.png`). Beside the guides stand `truth`, the true pendulum with its own prior as
the proposal and ten times the particles, and `independent`, a normal without time.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _interface import overridden, parser, pick_device, save_figure
from _training import Pair, Schedule, draw, exact, finish, prepare, report, train
from torch import Size, Tensor, nn

from pyro_seq.data import Batch, SequenceDataset, batches
from pyro_seq.evaluation import FreeEnergy, fivo, free_energy, posterior_draws
from pyro_seq.models import StepModel
from pyro_seq.plugins import get

STEP, GRAVITY, RELEASED = 0.1, 9.81, 1.5  # seconds, 1 / s^2 for a length of 1 m, radians
TRUE = {"friction": 0.5, "shake": 0.1, "gusts": 0.3, "blur": 0.1}
COORDINATES = ("angle", "speed")


class Pendulum(StepModel):
    r"""A pendulum in gusts of wind on a shaking hook, watched by a camera and a gyroscope.

    .. math::
        \omega_t = \omega_{t-1} - \Delta (g \sin \theta_{t-1} + \kappa\, \omega_{t-1})
        + \sigma_\omega \epsilon, \quad
        \theta_t = \theta_{t-1} + \Delta\, \bar\omega_t + \sigma_\theta \epsilon', \quad
        x_t = (\sin \theta_t, -\cos \theta_t, \omega_t) + \sigma_x \epsilon''
    """

    class State(NamedTuple):
        """Angle and speed, `(*batch, 2)`."""

        z: Tensor

    def __init__(self, friction: float, shake: float, gusts: float, blur: float) -> None:
        super().__init__()
        self.log_friction = nn.Parameter(torch.tensor([friction]).log())
        self.log_noise = nn.Parameter(torch.tensor([shake, gusts]).log())
        self.log_blur = nn.Parameter(torch.tensor([blur]).log())

    def initial_state(self, batch_shape: Size) -> State:
        """Released at rest."""
        return self.State(self.log_noise.new_tensor([RELEASED, 0.0]).expand(*batch_shape, 2))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        """The next tenth of a second."""
        angle, speed = state.z.unbind(-1)
        speed = speed - STEP * (GRAVITY * angle.sin() + self.log_friction.exp() * speed)
        expected = torch.stack([angle + STEP * speed, speed], -1)
        z = pyro.sample("z", dist.Normal(expected, self.log_noise.exp()).to_event(1))
        angle, speed = z.unbind(-1)
        seen = torch.stack([angle.sin(), -angle.cos(), speed], -1)
        pyro.sample("x", dist.Normal(seen, self.log_blur.exp()).to_event(1), obs=x_t)
        return self.State(z)


class Preset(NamedTuple):
    """One setting of the experiment: data, guides by name with their options, training."""

    sequences: int
    time: int
    guides: dict[str, dict[str, Any]]
    epochs: dict[str, int]
    learning_rate: float = 0.01
    model_rate: float = 0.04
    clip_norm: float = 10.0
    batch: int = 64
    particles: int = 100


DEFAULT = Preset(
    sequences=512,
    time=25,
    guides={
        "filter": {"hidden": [64, 64], "residual": True},
        "avf": {
            "iterations": 2,
            "hidden": [64, 64],
            "normalise": "log",
            "encodes": ["parameters", "gradients", "observation", "state"],
            "stop_gradients": False,
        },
        "vfem": {"iterations": 20, "rate": 0.2, "samples": 2},
    },
    epochs={"filter": 120, "avf": 120, "vfem": 12},
)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(
        sequences=32,
        time=8,
        guides={**DEFAULT.guides, "vfem": {"iterations": 4, "rate": 0.3}},
        epochs=dict.fromkeys(DEFAULT.epochs, 2),
        batch=32,
        particles=10,
    ),
    "paper": DEFAULT._replace(
        sequences=5000, time=100, epochs={"filter": 100, "avf": 100, "vfem": 20}
    ),
}


class Data(NamedTuple):
    """Simulated frames, and the states behind those of the test, `(sequences, time, 2)`."""

    train: SequenceDataset
    validation: SequenceDataset
    test: Tensor
    states: Tensor


def main() -> None:
    """Simulate, train with each guide, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    device = pick_device(args.device)
    data = simulated(preset, args.seed)
    pairs, seconds = {}, {}
    for name, options in preset.guides.items():
        torch.manual_seed(args.seed)
        model = Pendulum(friction=1.0, shake=0.3, gusts=0.3, blur=0.3)
        pairs[name] = Pair(model.to(device), get("guides", name)(model, **options).to(device))
        seconds[name] = train(
            name,
            pairs[name],
            batches(data.train.to(device), preset.batch, seed=args.seed, drop_last=True),
            batches(data.validation.to(device), 256, shuffle=False),
            Schedule(
                preset.epochs[name],
                preset.learning_rate,
                model_rate=preset.model_rate,
                clip_norm=preset.clip_norm,
            ),
            args,
            preset._asdict(),
        )
    metrics = evaluate(pairs, data, preset, args)
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/my_own_model")
    args = options.parse_args()
    return args, overridden(options, PRESETS[args.preset], args.set)


def simulated(preset: Preset, seed: int) -> Data:
    """Sequences of the true pendulum; a model generates as it is written."""
    world, sizes = Pendulum(**TRUE), (preset.sequences, 64, 128)
    pyro.set_rng_seed(1000 + seed)
    with torch.no_grad():
        traces = [
            pyro.poutine.trace(world).get_trace(batch=size, time=preset.time) for size in sizes
        ]
    frames, states = (
        [
            torch.stack([t.nodes[f"{site}_{n + 1}"]["value"] for n in range(preset.time)], 1)
            for t in traces
        ]
        for site in ("x", "z")
    )
    return Data(SequenceDataset(frames[0]), SequenceDataset(frames[1]), frames[2], states[2])


def evaluate(
    pairs: dict[str, Pair], data: Data, preset: Preset, args: argparse.Namespace
) -> dict[str, float]:
    """Bounds on the test sequences, parameters, how many states the bands cover, the figure."""
    world = Pendulum(**TRUE)
    known = {**pairs, "truth": Pair(world, get("guides", "bootstrap")(world))}
    energies = {
        name: free_energy(*pair, data.test, samples=5, seed=0, chunk=1000)
        for name, pair in known.items()
    }
    energies["independent"] = independent(data)
    metrics, _ = report(energies, None, args)
    count, titles = preset.particles, [*TRUE, "FIVO", *(f"covered {c}" for c in COORDINATES)]
    print(f"\n{'':12s}" + "".join(f"{title:>15s}" for title in titles))
    for name, pair in known.items():
        particles = count if name in pairs else 10 * count
        bound = fivo(*pair, data.test, particles=particles, seed=0, chunk=20_000)
        metrics |= {f"{name}_{key}": value for key, value in bound.summary().items()}
        learnt, shares = unknowns(pair.model), {}
        if name in pairs:
            shares = covered(pair, data)
            metrics |= {f"{name}_{key}": value for key, value in {**learnt, **shares}.items()}
        values = [*learnt.values(), bound.per_step, *shares.values()]
        print(f"{name:12s}" + "".join(f"{value:15.3f}" for value in values))
    draw(lambda: draw_states(pairs, data, args))
    return metrics


def unknowns(model: Pendulum) -> dict[str, float]:
    """What there is to be learnt, by name."""
    values = torch.cat([model.log_friction, model.log_noise, model.log_blur]).exp()
    return dict(zip(TRUE, values.tolist(), strict=True))


def independent(data: Data) -> FreeEnergy:
    """A model without time: every coordinate of a frame normal, as in the training frames."""
    frames = data.train.data.x.flatten(0, 1)
    each = dist.Normal(frames.mean(0), frames.std(0))
    return exact(each.log_prob(data.test).sum(-1), None)


def covered(pair: Pair, data: Data) -> dict[str, float]:
    """How many of the true states lie in the filtered bands of 90 %."""
    draws = posterior_draws(*pair, data.test, samples=100, seed=0, chunk=4000)
    _, lower, upper = draws.band("z")
    inside = ((lower <= data.states) & (data.states <= upper)).double().mean((0, 1))
    return dict(zip((f"covered_{c}" for c in COORDINATES), inside.tolist(), strict=True))


def draw_states(pairs: dict[str, Pair], data: Data, args: argparse.Namespace) -> None:
    """Filtered angle and speed of one sequence, a third of whose frames are hidden in one gap."""
    import matplotlib.pyplot as plt

    from pyro_seq.evaluation.step_plots import plot_filtered_states

    time = data.test.shape[1]
    mask = torch.ones(1, time, dtype=torch.bool)
    mask[:, time // 2 : time // 2 + time // 3] = False
    bands = {
        name: posterior_draws(
            *pair, Batch(data.test[:1], mask), samples=200, seed=0, chunk=200
        ).band("z")
        for name, pair in pairs.items()
    }
    rows = plt.figure(figsize=(8, 5), layout="constrained").subplots(2, 1, sharex=True)
    for component, label in enumerate(("angle (rad)", "speed (rad/s)")):
        axes = rows[component]
        plot_filtered_states(
            bands, data.states[:1], mask, component=component, name=label, axes=axes
        )
        axes.label_outer()
    rows[1].get_legend().remove()
    save_figure(rows, args.out / "filtered_states.png")


if __name__ == "__main__":
    main()
