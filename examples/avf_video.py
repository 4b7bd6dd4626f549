"""Train filters of a stochastic video model on 64 by 64 pixel video, and compare free energies.

    python examples/avf_video.py --preset default --out runs/video

A frame is 64 by 64 grey values; each is normal, integrated over one step of 8 bit. One generative
model is trained with each of several filters:

- `baseline`: the filter of the SVG's paper, an LSTM over the features of the frames;
- `residual`: a network of the features and all of the model's state, locations are added to the
  prior's;
- `avf_k1`, `avf_k2`: amortized variational filtering with K iterations.

The model is SVG with its learned prior (`--model svg`, that of the paper preset), or the same with
a decoder that moves and changes the last frame in place of drawing a new one (`--model moving`).

Beside them stand models without latents: `white_noise`, independent normal pixels; `copy_last`,
normal around the last frame; and `copy_adaptive`, the same with a deviation for each pixel from
how much its surroundings changed one frame before.

Written to OUT: nats per step of the test clips in both units, as window probability
(`<filter>_free_energy_per_step`) and as log density (`<filter>_log_density_per_step`), for frames
2 to T over T - 1, mean over clips, and as `..._all`, all frames, mean over steps, with bits per
pixel beside them, and the free energy of each model when q is its prior
(`<filter>_prior_free_energy_per_step`), all in `metrics.json`; the ArviZ comparison
(`comparison.csv`); free energy over iterations (`iterations.png`), and predictions and
reconstructions (`frames_<filter>.png`).

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper` has the sizes and the
schedule of Marino et al. (2018), needs a GPU and their data, `--kth FOLDER`, though it runs
without either.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _interface import overridden, parser, pick_device, save_figure
from _training import (
    Pair,
    Schedule,
    Units,
    draw,
    exact,
    finish,
    first,
    make_filter,
    over_iterations,
    prepare,
    report,
    train,
)
from torch import Size, Tensor, nn

from pyro_seq.data import (
    Batch,
    SequenceDataset,
    batches,
    fixed_crops,
    load_kth,
    load_video,
    random_crops,
)
from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.evaluation import FreeEnergy, free_energy
from pyro_seq.models import SVG
from pyro_seq.nn.pyramid import PyramidDecoder, PyramidEncoder
from pyro_seq.nn.recurrent import OverTime
from pyro_seq.plugins import get

FILTERS = ("baseline", "residual", "avf_k1", "avf_k2")
FRAME = (1, 64, 64)
WIDTH = 1 / 255
LEAST = WIDTH / 4
ALL_FRAMES = 10**9
BINS = 64


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        model: `"svg"` or `"moving"`.
        sizes: Arguments of the model, or the name of the SVG's preset.
        network: Units of each layer of a filter's network.
        recurrent: Units of the LSTM of the baseline filter.
        avf: Further options of the AVF guide; `stop_gradients` chooses between EM and gradients
            through time.
        crop: Frames of a training crop.
        crops: Of each clip in an epoch.
        augment: Whether training crops are mirrored, and played backwards, at random.
        clips: Of each split, None for all.
        frames: First frames of each clip, None for all.
    """

    model: str
    sizes: dict[str, Any] | str
    network: list[int]
    recurrent: int
    avf: dict[str, Any]
    epochs: int
    learning_rate: float
    final_rate: float = 0.05
    clip_norm: float = 1000.0
    batch: int = 4
    crop: int = 8
    crops: int = 32
    augment: bool = True
    clips: int | None = None
    frames: int | None = None


DEFAULT = Preset(
    model="moving",
    sizes={
        "latent": 32,
        "features": 128,
        "hidden": 128,
        "layers": 1,
        "channels": [16, 32, 64],
        "convolutions": [1, 1, 1],
    },
    network=[256, 256],
    recurrent=128,
    avf={"encodes": ["parameters", "gradients", "observation"], "stop_gradients": False},
    epochs=15,
    learning_rate=2e-3,
)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(
        sizes={"latent": 4, "features": 16, "hidden": 16, "layers": 1, "channels": [4, 8]},
        network=[16],
        recurrent=16,
        epochs=1,
        batch=2,
        crop=4,
        crops=1,
        clips=2,
        frames=8,
    ),
    "paper": DEFAULT._replace(
        model="svg",
        sizes="kth",
        network=[1024, 1024],
        recurrent=256,
        avf={
            "encodes": ["parameters", "gradients"],
            "normalise": "layer",
            "units": "own",
            "stop_gradients": True,
        },
        epochs=100,
        learning_rate=1e-4,
        final_rate=1.0,
        batch=20,
        crop=21,
        crops=1,
        augment=False,
    ),
}


class Data(NamedTuple):
    """The three splits."""

    train: SequenceDataset
    validation: SequenceDataset
    test: SequenceDataset


class FrameAndMaps(PyramidEncoder):
    """The encoder, of blocks of 2 by 2 pixels of a frame, of its change, and of how much it was.

    First of its maps are the frame itself and a 1. Before the first frame all maps are 0, and so
    is the 1.
    """

    def __init__(self, frame: Sequence[int], *args: Any) -> None:  # noqa: ANN401
        super().__init__(_blocks((3 * frame[0], *frame[1:])), *args)
        self.map_shapes = [Size(frame), Size((1, 1, 1)), *self.map_shapes]

    def pyramid(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Vectors, the frames, ones, and the maps of each stage."""
        frame, change = x.chunk(2, 1)
        amount = change.abs().div(WIDTH).log1p() / 3
        inputs = torch.cat([frame, change, amount], 1)
        vectors, maps = super().pyramid(nn.functional.pixel_unshuffle(inputs, 2))
        return vectors, (frame, frame.new_ones(len(frame), 1, 1, 1), *maps)


class Mover(nn.Module):
    """Moves each pixel of the last frame by up to `reach` pixels, and changes its value.

    Where there is no last frame pixels are about grey, with a deviation of 0.3.
    """

    def __init__(self, features: int, frame: Sequence[int], reach: float, *args: Any) -> None:  # noqa: ANN401
        super().__init__()
        blocks = _blocks(frame)
        self.maps = PyramidDecoder(features, blocks, 2 + 2 * blocks[0], *args, skips=True)
        with torch.no_grad():
            self.maps.last.weight.mul_(0.1)
            self.maps.last.bias.zero_()
        height, width = frame[1:]
        y, x = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1))
        self.register_buffer("reach", 2 * reach / torch.tensor([width, height]))

    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Means and logarithms of deviations, `(count, 2 * channels, height, width)`."""
        last, there, *maps = skips
        made = self.maps(code, maps)
        way = nn.functional.interpolate(made[:, :2], scale_factor=2, mode="bilinear")
        path = self.grid + self.reach * way.tanh().movedim(1, -1)
        moved = nn.functional.grid_sample(last, path, padding_mode="border", align_corners=False)
        change, log_scale = nn.functional.pixel_shuffle(made[:, 2:], 2).chunk(2, 1)
        loc = torch.where(there > 0, moved, 0.5) + change
        return torch.cat([loc, 3 * log_scale - torch.where(there > 0, 3.0, 1.2)], 1)


class Window(nn.Module):
    """Pixels from the means and deviations of a `Mover`."""

    def forward(self, maps: Tensor) -> Any:  # noqa: ANN401
        """The distribution of the frame."""
        loc, log_scale = maps.chunk(2, -3)
        scale = LEAST + log_scale.clamp(max=0.5).exp()
        return DiscretizedNormal(loc, scale, WIDTH).to_event(3)


class MovingSVG(SVG):
    """SVG whose decoder reads the last two frames, and says how the last moves and changes."""

    def __init__(
        self, *, features: int, channels: Sequence[int], convolutions: Sequence[int] | None = None,
        reach: float = 8.0, **sizes: Any,  # noqa: ANN401
    ) -> None:  # fmt: skip
        stages = (channels, convolutions or [1] * len(channels))
        super().__init__(
            FRAME,
            features=features,
            encoder=FrameAndMaps(FRAME, features, *stages),
            decoder=Mover(features, FRAME, reach, *stages),
            emission=Window(),
            **sizes,
        )
        self.skip_frames = ALL_FRAMES  # the base class refuses skips with parts of the caller

    def embed(self, x: Tensor, memory: SVG.Memory) -> tuple[SVG.Embedding, SVG.Memory]:
        """What the frames, and their changes, leave for the next step."""
        last, there = (part.unsqueeze(1) for part in memory.maps[:2])
        before = torch.cat([torch.where(there > 0, last, x[:, :1]), x[:, :-1]], 1)
        return super().embed(torch.cat([x, x - before], 2), memory)


def main() -> None:
    """Train every filter, evaluate on the test clips, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = load(args, preset)
    crops = fixed_crops(data.validation, preset.crop, seed=0, crops_per_sequence=4, short="pad")
    schedule = Schedule(
        preset.epochs, preset.learning_rate, preset.final_rate, clip_norm=preset.clip_norm
    )
    pairs, seconds = {}, {}
    for name in args.filters:
        pairs[name] = build(name, args, preset)
        loader = random_crops(
            data.train,
            preset.crop,
            preset.batch,
            crops_per_sequence=preset.crops,
            short="pad",
            augment=turned if preset.augment else None,
            seed=args.seed,
        )
        validation = batches(crops, 20, shuffle=False)
        config = preset._asdict()
        seconds[name] = train(name, pairs[name], loader, validation, schedule, args, config)
    metrics = evaluate(pairs, data, args)
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/avf_video")
    options.add_argument(
        "--kth", type=Path, default=None, help="folder of your KTH, in place of the open videos"
    )
    options.add_argument("--model", choices=("svg", "moving"), default=None)
    options.add_argument(
        "--filters", nargs="+", choices=FILTERS, default=None, help="which to train"
    )
    args = options.parse_args()
    if args.filters is None:
        args.filters = ["baseline", "avf_k1"] if args.preset == "smoke" else list(FILTERS)
    preset = overridden(options, PRESETS[args.preset], args.set)
    args.model = args.model or preset.model
    return args, preset._replace(model=args.model)


def load(args: argparse.Namespace, preset: Preset) -> Data:
    """The three splits, whole clips."""
    splits = []
    for split in ("train", "validation", "test"):
        if args.kth is None:
            part = load_video(split, args.data_dir)
        else:
            part = load_kth(args.kth, split)
        splits.append(first(part, preset.clips, preset.frames))
    return Data(*splits)


def turned(batch: Batch, generator: torch.Generator) -> Batch:
    """Crops mirrored, and whole ones played backwards, each with probability 1/2."""
    count = len(batch.x)
    mirror, back = torch.rand(2, count, generator=generator).lt(0.5).to(batch.x.device)
    whole = torch.ones_like(back) if batch.mask is None else batch.mask.all(1)
    x = torch.where(mirror.view(-1, 1, 1, 1, 1), batch.x.flip(-1), batch.x)
    x = torch.where((back & whole).view(-1, 1, 1, 1, 1), x.flip(1), x)
    return batch._replace(x=x)


def build(name: str, args: argparse.Namespace, preset: Preset) -> Pair:
    """The model and the filter of that name."""
    torch.manual_seed(args.seed)
    model = build_model(preset)
    reading = {"encoder": frame_encoder(model, preset), "features": model.features}
    options = {
        "filter": {"hidden": preset.network, **reading},
        "baseline": {"hidden": [], "reads": [], "recurrent": preset.recurrent},
        "avf": {"hidden": preset.network, **preset.avf, **reading},
    }
    pair = Pair(model, make_filter(name, model, options))
    for part in pair:
        part.to(pick_device(args.device))
    return pair


def frame_encoder(model: SVG, preset: Preset) -> nn.Module:
    """What a filter sees of a frame: the model's features, or features of its own."""
    if not isinstance(model, MovingSVG):
        return model.encoder
    assert not isinstance(preset.sizes, str)
    channels = preset.sizes["channels"]
    own = PyramidEncoder(_blocks(FRAME), model.features, channels, [1] * len(channels))
    return OverTime(nn.Sequential(nn.PixelUnshuffle(2), own))


def build_model(preset: Preset) -> SVG:
    """SVG as published, or with a decoder that moves the last frame."""
    if preset.model == "moving":
        if isinstance(preset.sizes, str):
            raise SystemExit("--model moving: expected sizes by name, --set 'sizes={...}'")
        return MovingSVG(**preset.sizes)
    if isinstance(preset.sizes, str):
        return SVG.preset(preset.sizes, emission_options={"width": WIDTH})
    sizes = {"convolutions": [1] * len(preset.sizes["channels"]), **preset.sizes}
    return SVG(FRAME, emission="window", emission_options={"width": WIDTH}, **sizes)


def evaluate(pairs: dict[str, Pair], data: Data, args: argparse.Namespace) -> dict[str, float]:
    """Free energies of the test clips in both units, the comparison and the figures."""
    train, test = (part[list(range(len(part)))] for part in (data.train, data.test))
    energies = {name: free_energy(*pair, test, seed=0, chunk=8) for name, pair in pairs.items()}
    energies |= without_latents(train, test)
    pixels = math.prod(FRAME)
    metrics, comparison = report(energies, Units(WIDTH, pixels), args)
    metrics |= {"width": WIDTH, "pixels": pixels}
    print(f"\n{'bits per pixel':14s}{'2..T':>12s}{'all frames':>12s}")
    for name in energies:
        bits = [
            metrics[f"{name}_free_energy_{key}"] / pixels / math.log(2)
            for key in ("per_step", "per_step_all")
        ]
        metrics |= {f"{name}_bits_per_pixel": bits[0], f"{name}_bits_per_pixel_all": bits[1]}
        print(f"{name:14s}{bits[0]:12.3f}{bits[1]:12.3f}")
    for name, (model, _) in pairs.items():
        prior = free_energy(model, get("guides", "bootstrap")(model), test, seed=0, chunk=8)
        metrics[f"{name}_prior_free_energy_per_step"] = prior.per_step(skip=1).mean
    over_iterations(pairs, test, metrics, args, 8)
    draw(lambda: draw_frames(pairs, comparison, test, args))
    return metrics


def draw_frames(
    pairs: dict[str, Pair],
    comparison: Any,  # noqa: ANN401
    test: Batch,
    args: argparse.Namespace,
) -> None:
    """Frames with what each filter makes of them, and the comparison."""
    from pyro_seq.evaluation import plot_compare
    from pyro_seq.evaluation.step_plots import plot_inference

    for name, pair in pairs.items():
        counts = (1, 2, 3) if name.startswith("avf") else None
        axes = plot_inference(pair.guide, test.x[:, :10], iterations=counts)
        save_figure(axes, args.out / f"frames_{name}.png")
    save_figure(plot_compare(comparison), args.out / "comparison.png")


def without_latents(train: Batch, test: Batch) -> dict[str, FreeEnergy]:
    """What simple models of the pixels give the test clips; they are exact."""
    seen = present(train)
    mean = train.x[seen].mean()
    white = scores(test.x, mean, rms(train.x[seen] - mean))
    change, changed = train.x.diff(dim=1), seen[:, 1:]
    scale = rms(change[changed])
    copy = scores(test.x[:, 1:], test.x[:, :-1], scale)
    scales = adaptive(change, changed, test.x.diff(dim=1)[:, :-1])
    late = scores(test.x[:, 2:], test.x[:, 1:-1], scales)
    return {
        "white_noise": exact(white, test.mask),
        "copy_last": exact(torch.cat([white[:, :1], copy], 1), test.mask),
        "copy_adaptive": exact(torch.cat([white[:, :1], copy[:, :1], late], 1), test.mask),
    }


def adaptive(change: Tensor, seen: Tensor, before: Tensor) -> Tensor:
    """Deviations of the pixels' next changes, from the changes around them one frame before.

    The deviation is a step function of the mean square in a window of 5 by 5 pixels, fitted to the
    training clips by maximum likelihood.
    """
    both = seen[:, :-1] & seen[:, 1:]
    known, after = surroundings(change[:, :-1])[both].flatten(), change[:, 1:][both].flatten()
    edges = known[:: max(1, known.numel() // 200_000)].quantile(torch.linspace(0, 1, BINS)[1:-1])
    edges = edges.unique()
    bins = torch.bucketize(known, edges)
    squares = torch.zeros(len(edges) + 1).index_add(0, bins, after.square())
    means = squares / torch.bincount(bins, minlength=len(edges) + 1).clamp(min=1)
    return (means + WIDTH**2 / 12).sqrt()[torch.bucketize(surroundings(before), edges)]


def surroundings(change: Tensor) -> Tensor:
    """Mean square in 5 by 5 pixels, `(clips, time, channels, height, width)`."""
    squares = change.flatten(0, 1).square()
    mean = nn.functional.avg_pool2d(squares, 5, 1, 2, count_include_pad=False)
    return mean.view(change.shape)


def present(batch: Batch) -> Tensor:
    """Where there is a frame, `(clips, time)`."""
    if batch.mask is None:
        return torch.ones(batch.x.shape[:2], dtype=torch.bool)
    return batch.mask


def rms(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.double().square().mean().sqrt()


def scores(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log probability of each frame, `(clips, time)`."""
    return DiscretizedNormal(loc.double(), scale, WIDTH).log_prob(x.double()).sum((-3, -2, -1))


def _blocks(frame: Sequence[int]) -> tuple[int, int, int]:
    """Shape of a frame whose blocks of 2 by 2 pixels are channels."""
    channels, height, width = frame
    return 4 * channels, height // 2, width // 2


def _centres(count: int) -> Tensor:
    """Where the centres of pixels lie when the edges of a picture are at -1 and 1."""
    return (2 * torch.arange(count) + 1) / count - 1


if __name__ == "__main__":
    main()
