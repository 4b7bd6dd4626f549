from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_seq.data import (
    Pictures,
    equalise,
    load_textures,
    procedural_textures,
    read_textures,
    textured_digits,
)
from pyro_seq.data.textured import _look, _Views

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
DIGITS = Pictures(torch.rand(6, 1, 8, 8).square(), torch.arange(6))


@pytest.fixture(scope="module")
def bank() -> Pictures:
    return procedural_textures(size=192)


def patches(bank: Pictures, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches cut out anywhere, (count, 1, size, size), and their textures."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(len(bank.frames), (count,), generator=generator)
    corner = torch.randint(bank.frames.shape[-1] - size, (2, count), generator=generator)
    inner = torch.arange(size)
    rows, columns = corner[0, :, None] + inner, corner[1, :, None] + inner
    frames = bank.frames[label[:, None, None], 0, rows[:, :, None], columns[:, None]]
    return frames[:, None].float() / 255, label


def trained(network: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def test_textures_have_one_histogram(bank: Pictures) -> None:
    x = bank.frames.double() / 255
    assert bank.frames.shape == (20, 1, 192, 192)
    assert (x.mean((1, 2, 3)) - 0.5).abs().max() < 1e-3
    assert (x.std((1, 2, 3)) - 0.25).abs().max() < 1e-3
    first = x[0].flatten().sort()[0]
    assert all(torch.equal(each.flatten().sort()[0], first) for each in x)
    assert torch.equal(procedural_textures(size=192).frames, bank.frames)
    assert not torch.equal(procedural_textures(1, size=192).frames, bank.frames)


def test_the_histogram_is_the_one_that_is_stated() -> None:
    values = equalise(np.random.default_rng(0).normal(size=(300, 300)))
    beta = torch.distributions.Beta(torch.tensor(1.5), torch.tensor(1.5))
    draws = beta.sample((200_000,)).sort()[0].numpy()
    levels = np.linspace(0.02, 0.98, 30)
    assert np.abs(np.quantile(values, levels) - np.quantile(draws, levels)).max() < 0.01
    order = np.random.default_rng(1).normal(size=(20, 20))
    assert (np.argsort(equalise(order), axis=None) == np.argsort(order, axis=None)).all()


def test_grey_values_of_a_patch_do_not_tell_its_texture(bank: Pictures) -> None:
    x, y = patches(bank, 6000, 32, seed=0)
    moments = torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)
    moments = (moments - moments.mean(0)) / moments.std(0)
    network = trained(nn.Linear(2, 20), moments[:4000], y[:4000], 600, 0.05)
    right = (network(moments[4000:]).argmax(1) == y[4000:]).float().mean().item()
    assert right <= 0.1  # chance is 0.05


@pytest.mark.slow
def test_a_small_network_tells_textures_apart(bank: Pictures) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 24, 7, 2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 5, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 20),
    )
    trained(network, *patches(bank, 16_000, 32, seed=0), 400, 5e-3).eval()
    x, y = patches(bank, 1000, 32, seed=1)
    assert (network(x).argmax(1) == y).float().mean().item() > 0.9


def test_views_are_turned_scaled_and_blended() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = Pictures((0.01 * x + 0.003 * y)[None, None], torch.zeros(1).long())
    turn, scale, place = torch.tensor([[0.7]]), torch.tensor([[1.3]]), torch.tensor([[30.2, 33.1]])
    views = _Views(torch.zeros(1, 1).long(), turn.double(), scale.double(), place[None].double())
    came = _look(ramp, views, 9)[0, 0]
    inner = torch.arange(9.0) - 4
    cos, sin = turn.cos().item() / 1.3, turn.sin().item() / 1.3
    rows = 30.2 + cos * inner[:, None] - sin * inner
    columns = 33.1 + sin * inner[:, None] + cos * inner
    torch.testing.assert_close(came, 0.01 * columns + 0.003 * rows)


def test_views_go_on_by_reflection() -> None:
    frame = torch.rand(1, 1, 6, 6)
    one = torch.ones(1, 1).double()
    views = _Views(torch.zeros(1, 1).long(), 0 * one, one, torch.zeros(1, 1, 2).double())
    came = _look(Pictures(frame), views, 13)[0, 0]
    reflected = nn.functional.pad(frame[0], (5, 0, 5, 0), mode="reflect")[0]
    torch.testing.assert_close(came[1:12, 1:12], reflected)
    torch.testing.assert_close(came[:, 12], came[:, 10])  # 6 is 4 again


def test_digits_and_backgrounds_have_textures_of_their_own(bank: Pictures) -> None:
    scenes = textured_digits(DIGITS, bank, 50, seed=0)
    assert scenes.frames.shape == (50, 1, 1, 28, 28)
    assert scenes.segments.unique().tolist() == [1, 2]
    one, two = scenes.info["textures"].unbind(1)
    assert (one != two).all() and len(one.unique()) > 10
    assert scenes.frames.min() >= 0 and scenes.frames.max() <= 1
    flat = Pictures(torch.eye(2)[0].view(2, 1, 1, 1).expand(2, 1, 40, 40), torch.arange(2))
    still = textured_digits(DIGITS, flat, 50, seed=0)
    digit = torch.where(still.info["textures"][:, 0] == 0, 1.0, 0.0).view(50, 1, 1, 1)
    wanted = torch.where(still.segments == 1, digit, 1 - digit)
    assert torch.equal(still.frames[:, :, 0], wanted)
    assert torch.equal(still.segments, scenes.segments)


def test_masks_are_magnified_and_thickened(bank: Pictures) -> None:
    dot = torch.zeros(1, 1, 8, 8)
    dot[0, 0, 3, 4] = 1
    dots = Pictures(dot, torch.zeros(1).long())
    thin, thick = (textured_digits(dots, bank, 5, thicken=n, seed=0).segments for n in (0, 2))
    for sequence in range(5):
        places = (thin[sequence, 0] == 1).nonzero().double()
        everywhere = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double()
        near = torch.cdist(everywhere, places).amin(1).view(28, 28) <= 2
        assert torch.equal(thick[sequence, 0] == 1, near)
    assert 1 <= (thin == 1).sum() / 5 <= 9


def test_the_texture_of_a_digit_moves_with_it(bank: Pictures) -> None:
    scenes = textured_digits(DIGITS, bank, 20, time=6, seed=0)
    for sequence in range(20):
        first, last = scenes.positions[sequence, [0, 5], 0]
        shift = tuple((last - first).tolist())
        moved = scenes.frames[sequence, 0, 0].roll(shift, (0, 1))
        inside = scenes.segments[sequence, 5] == 1
        came = scenes.segments[sequence, 0].roll(shift, (0, 1)) == 1
        both = inside & came
        assert both.any() and torch.equal(moved[both], scenes.frames[sequence, 5, 0][both])
        ground = (scenes.segments[sequence, [0, 5]] == 2).all(0)
        frames = scenes.frames[sequence, [0, 5], 0]
        assert torch.equal(frames[0][ground], frames[1][ground])
    assert (scenes.positions[:, 0] != scenes.positions[:, 5]).any(-1).float().mean() > 0.5


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    grey = np.random.default_rng(0).integers(256, size=(2, 12, 10), dtype=np.uint8)
    image.fromarray(grey[0]).save(tmp_path / "D2.gif")
    image.fromarray(np.pad(grey[1], ((2, 2), (0, 4)))).convert("RGB").save(tmp_path / "D1.png")
    (tmp_path / "notes.txt").write_text("none")
    bank = read_textures(tmp_path, equal=False)
    assert bank.frames.shape == (2, 1, 12, 10) and bank.labels.tolist() == [0, 1]
    assert torch.equal(bank.frames[1, 0], torch.from_numpy(grey[0]))
    assert torch.equal(bank.frames[0, 0, :, :8], torch.from_numpy(grey[1, :, 2:]))
    assert abs(read_textures(tmp_path).frames.double().mean() / 255 - 0.5) < 0.01
    with pytest.raises(FileNotFoundError, match=r"folder: expected pictures.*found none"):
        read_textures(tmp_path / "empty")


@pytest.mark.data
def test_open_textures_are_those_of_the_files() -> None:
    if not (ROOT / "textures" / "ambientcg_grey128.npz").is_file():
        pytest.skip("data: no textures in $PYRO_SEQ_DATA/textures")
    bank = load_textures("ambientcg", ROOT, equal=False)
    assert bank.frames.shape == (297, 1, 128, 128) and len(bank.labels.unique()) == 37
    with np.load(ROOT / "textures" / "ambientcg_grey128.npz") as archive:
        assert torch.equal(bank.frames[:, 0], torch.from_numpy(archive["images"]))
    three = load_textures("skimage", ROOT)
    assert three.frames.shape == (3, 1, 512, 512)
    scenes = textured_digits(DIGITS, bank, 10, seed=0)
    assert (scenes.info["textures"][:, 0] != scenes.info["textures"][:, 1]).all()


def test_bad_input(bank: Pictures) -> None:
    with pytest.raises(ValueError, match="name: expected one of ambientcg, skimage, got"):
        load_textures("brodatz")
    with pytest.raises(ValueError, match="size: expected at least 32 pixels, got 16"):
        procedural_textures(size=16)
    with pytest.raises(ValueError, match="size: expected at least the 24 pixels of a digit"):
        textured_digits(DIGITS, bank, 1, size=9, seed=0)
    with pytest.raises(ValueError, match="thicken: expected at least 0, got -1"):
        textured_digits(DIGITS, bank, 1, thicken=-1, seed=0)
    with pytest.raises(ValueError, match="textures: expected labels of two kinds or more"):
        textured_digits(DIGITS, bank.select(slice(1)), 1, seed=0)
    with pytest.raises(ValueError, match=r"scales: expected two positive numbers in order"):
        textured_digits(DIGITS, bank, 1, scales=(2.0, 1.0), seed=0)
    with pytest.raises(ValueError, match=r"bank: expected square pictures.*\(8,\)"):
        textured_digits(Pictures(torch.zeros(2, 8)), bank, 1, seed=0)
