"""Encoders and decoders: shapes, and starts that know where the ball is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_seq.data import simulate
from pyro_seq.nn import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder


@pytest.mark.parametrize("frame_shape", [(1, 32, 32), (3, 7, 10), (2, 9, 5)])
@pytest.mark.parametrize(
    ("encoder", "decoder"), [(ConvEncoder, ConvDecoder), (MLPEncoder, MLPDecoder)]
)
def test_any_frame_size(frame_shape: tuple[int, ...], encoder: type, decoder: type) -> None:
    x = torch.rand(2, 4, *frame_shape)
    loc, scale = encoder(frame_shape, 3)(x)
    assert loc.shape == scale.shape == (2, 4, 3)
    assert (scale > 0).all()
    assert (scale**2 <= 0.03).all()
    assert decoder(3, frame_shape)(loc).shape == x.shape


def test_paper_networks_have_the_papers_size() -> None:
    """About 144k parameters, the linear path (2 per pixel, 2) and the base frame apart."""
    encoder, decoder = ConvEncoder((1, 32, 32), 2), ConvDecoder(2, (1, 32, 32))
    count = sum(p.numel() for p in [*encoder.parameters(), *decoder.parameters()])
    extra = 2 * 1024 + 2 + 1024
    conv = (9 + 1) * 32 + 2 * (9 * 32 + 1) * 32 + 2 * (512 + 1) * 2
    up = (2 + 1) * 512 + 3 * (9 * 32 + 1) * 128 + 33
    assert count - extra == conv + up


@pytest.mark.parametrize("environment", ["box", "gravity", "polygon", "pong"])
def test_moments_start_unfolds_the_plane(environment: str) -> None:
    """Before any training the code is an affine map of the ball's position."""
    simulation = simulate(environment, 40, seed=3)
    x = torch.from_numpy(simulation.frames).float()
    for encoder in (MLPEncoder((1, 32, 32), 2), ConvEncoder((1, 32, 32), 2)):
        encoder.start_from(x.flatten(0, 1), "moments", spread=5.0)
        with torch.no_grad():
            codes = encoder(x)[0].flatten(0, 1).numpy().astype(float)
        position = simulation.state[..., :2].reshape(-1, 2)
        inside = (np.abs(position - 16) < 13).all(-1)
        design = np.column_stack([position[inside], np.ones(inside.sum())])
        fit = design @ np.linalg.lstsq(design, codes[inside], rcond=None)[0]
        unexplained = ((codes[inside] - fit) ** 2).mean(0) / codes[inside].var(0)
        assert (unexplained < 0.15).all(), unexplained
        assert codes.var(0).mean() == pytest.approx(25.0, rel=2e-3)


def test_principal_start_reads_principal_components() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 2)).Q
    x = (torch.randn(500, 2) * torch.tensor([5.0, 2.0])) @ basis.mT + 3.0
    encoder = MLPEncoder((12,), 2)
    encoder.start_from(x, "principal", spread=2.0)
    with torch.no_grad():
        codes = encoder(x)[0]
    assert codes.mean(0).abs().max() < 1e-4
    correlation = torch.corrcoef(torch.cat([codes, x @ basis], 1).mT)[:2, 2:].abs()
    assert correlation.diagonal().min() > 0.99


def test_decoder_starts_from_the_mean_frame() -> None:
    x = (torch.rand(300, 1, 6, 6) < 0.3).float()
    x[:, 0, 0] = 1.0
    decoder = MLPDecoder(2, (1, 6, 6))
    decoder.start_from(x)
    assert decoder.base.sigmoid()[0, 0].min() > 0.98
    assert (decoder.base.sigmoid()[0, 1:] - x.mean(0)[0, 1:]).abs().max() < 0.01


def test_bad_arguments_are_named() -> None:
    encoder = MLPEncoder((5,), 2)
    with pytest.raises(
        ValueError, match="start must be one of random, moments, principal; got 'moment'"
    ):
        encoder.start_from(torch.rand(4, 5), "moment")
    with pytest.raises(ValueError, match="Use start='principal'"):
        encoder.start_from(torch.rand(4, 5), "moments")
    for network in (lambda: ConvEncoder((5,), 2), lambda: ConvDecoder(2, (5,))):
        with pytest.raises(
            ValueError, match="frame_shape \\(channels, height, width\\); got \\(5,\\)"
        ):
            network()


@pytest.mark.parametrize("start", ["random", "moments", "principal"])
def test_frames_to_start_from_are_looked_at(start: str) -> None:
    encoder = MLPEncoder((1, 4, 5), 2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 1, 4, 5\).*x.flatten\(0, 1\)"):
        encoder.start_from(torch.rand(2, 3, 1, 4, 5), start)
    frames = torch.rand(6, 1, 4, 5)
    frames[2] = float("nan")
    with pytest.raises(ValueError, match=r"frames must be finite.*x\[mask\]"):
        encoder.start_from(frames, start)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
