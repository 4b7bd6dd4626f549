"""Filtering, smoothing and online use of the Kalman guide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.guides import KalmanGuide, OnlineFilter
from pyro_seq.models import KVAE
from pyro_seq.ops.trees import leaves

FRAME = (1, 5, 6)


def pair(weights: str = "lstm") -> tuple[KVAE, KalmanGuide]:
    model = KVAE(FRAME, decoder="mlp", weights=weights, controls=1).double()
    return model, KalmanGuide(model, "mlp").double()


def data(batch: int = 3, time: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.rand(batch, time, *FRAME) < 0.4).double()
    mask = torch.rand(batch, time) > 0.3
    return x, mask, torch.randn(batch, time, 1).double()


def test_smoothing_ends_where_filtering_ends() -> None:
    _, guide = pair()
    x, mask, controls = data()
    smoothed, filtered = guide.smooth(x, mask, controls), guide.filter(x, mask, controls)
    torch.testing.assert_close(smoothed.loc[:, -1], filtered.loc[:, -1])
    torch.testing.assert_close(smoothed.cov[:, -1], filtered.cov[:, -1])
    gain = filtered.cov - smoothed.cov
    assert torch.linalg.eigvalsh(gain).min() > -1e-9
    assert gain[:, 0].diagonal(dim1=-2, dim2=-1).min() > 0


@pytest.mark.parametrize("weights", ["lstm", "mlp", "static"])
def test_filtering_reads_the_past_only(weights: str) -> None:
    _, guide = pair(weights)
    x, mask, controls = data()
    changed = x.clone()
    changed[:, 4:] = 1 - changed[:, 4:]
    before, after = guide.filter(x, mask, controls), guide.filter(changed, mask, controls)
    assert torch.equal(before.loc[:, :4], after.loc[:, :4])
    assert not torch.equal(
        guide.smooth(x, mask, controls).loc[:, :4],
        guide.smooth(changed, mask, controls).loc[:, :4],
    )


def test_smoothing_a_full_sequence_equals_a_full_mask() -> None:
    _, guide = pair()
    x, mask, controls = data()
    for one, two in zip(
        guide.smooth(x, None, controls),
        guide.smooth(x, torch.ones_like(mask), controls),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_smoothed_moments_are_the_posteriors() -> None:
    model, guide = pair()
    x, _, controls = data()
    with torch.no_grad():
        a = guide.encoder(x)[0]
        posterior = LinearGaussianSSM.from_model(
            model.dynamics.condition(a, None, controls).model, time=6
        ).posterior(a)
    smoothed = guide.smooth(x, None, controls)
    torch.testing.assert_close(smoothed.loc, posterior.mean)
    torch.testing.assert_close(smoothed.cov, posterior.covariance)
    assert torch.equal(smoothed.encoded, a)


@pytest.mark.parametrize("weights", ["lstm", "mlp", "static"])
def test_online_equals_offline(weights: str) -> None:
    model, guide = pair(weights)
    x, mask, controls = data()
    x[~mask] = float("nan")
    offline = guide.filter(x, mask, controls)
    online = guide.online(3)
    for t in range(6):
        update = online.update(x[:, t], mask[:, t], controls[:, t])
        torch.testing.assert_close(update.loc, offline.loc[:, t])
        torch.testing.assert_close(update.cov, offline.cov[:, t])
        torch.testing.assert_close(update.a, offline.a[:, t])


def test_online_prediction_is_the_next_frames() -> None:
    model, guide = pair()
    x, mask, controls = data()
    online = guide.online(3)
    for t in range(5):
        update = online.update(x[:, t], None, controls[:, t], next_control=controls[:, t + 1])
        hidden = torch.zeros(3, t + 2, dtype=torch.bool)
        hidden[:, :-1] = True
        ahead = guide.filter(x[:, : t + 2], hidden, controls[:, : t + 2])
        torch.testing.assert_close(update.next_a, ahead.a[:, -1])
        torch.testing.assert_close(update.next_frame, model.decode(ahead.a[:, -1]).detach())


def test_online_evidence_adds_up() -> None:
    model, guide = pair()
    x, mask, controls = data()
    online = guide.online(3)
    total = sum(
        online.update(x[:, t], mask[:, t], controls[:, t]).log_likelihood for t in range(6)
    )
    with torch.no_grad():
        a = guide.encoder(torch.where(mask.view(3, 6, 1, 1, 1), x, 0.0))[0]
        torch.testing.assert_close(total, model.prior(3, 6, mask, controls).log_prob(a))


def test_online_state_can_be_saved_and_does_not_grow(tmp_path: Path) -> None:
    model, guide = pair()
    x, mask, controls = data()
    online = guide.online(3)
    size = sum(part.numel() for part in leaves(online.state))
    for t in range(3):
        online.update(x[:, t], mask[:, t], controls[:, t])
    torch.save(online.state_dict(), tmp_path / "state.pt")
    saved = online.state
    rest = [online.update(x[:, t], mask[:, t], controls[:, t]).loc for t in range(3, 6)]
    for state in (saved, None):
        resumed = OnlineFilter(model, guide, 3)
        if state is None:
            resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        else:
            resumed.state = state
        again = [resumed.update(x[:, t], mask[:, t], controls[:, t]).loc for t in range(3, 6)]
        for one, two in zip(rest, again, strict=True):
            assert torch.equal(one, two)
    assert sum(part.numel() for part in leaves(online.state)) == size


def test_online_forecast_is_the_mean_path() -> None:
    model, guide = pair()
    x, mask, controls = data()
    online = guide.online(3)
    for t in range(4):
        update = online.update(x[:, t], mask[:, t], controls[:, t], controls[:, t + 1])
    before = online.state
    frames = online.forecast(2, controls[:, 4:])
    torch.testing.assert_close(frames[:, 0], update.next_frame)
    hidden = mask.clone()
    hidden[:, 4:] = False
    a = guide.filter(x, hidden, controls).a[:, 4:]
    torch.testing.assert_close(frames, model.decode(a).detach())
    assert online.state is before
    with pytest.raises(ValueError, match=r"controls must be .* = \(3, 1, \d\); got None"):
        online.forecast(1)
    model = KVAE((1, 8, 8), decoder="mlp")
    with pytest.raises(ValueError, match="controls must be None, since the model was built with"):
        KalmanGuide(model, "mlp").online(3).forecast(1, torch.zeros(3, 1, 2))
    model, guide = pair()
    with pytest.raises(ValueError, match="particles and predict are for step models; KalmanGuide"):
        OnlineFilter(model, guide, particles=4)


@pytest.mark.parametrize("method", ["smooth", "filter"])
@pytest.mark.parametrize("masked", [False, True])
def test_codes_may_be_encoded_beforehand(method: str, masked: bool) -> None:
    _, guide = pair()
    x, mask, controls = data()
    seen = mask if masked else None
    encoded = guide.encode(x)  # of the hidden frames too
    run = getattr(guide, method)
    expected = run(x, seen, controls)
    if masked:
        encoded[~mask] = float("nan")
    for one, two in zip(expected, run(x, seen, controls, encoded), strict=True):
        assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))
    moved = run(x, seen, controls, encoded + 0.1)
    assert not torch.allclose(moved.loc, expected.loc)
    blank = run(torch.zeros_like(x), seen, controls, encoded)  # the frames are not encoded again
    assert torch.equal(blank.loc, expected.loc)
    with pytest.raises(ValueError, match=r"encoded must be .* = \(3, 6, 2\), .*\(3, 5, 2\)"):
        run(x, seen, controls, encoded[:, 1:])


def test_the_model_is_not_a_part_of_the_guide() -> None:
    model, guide = pair()
    own = {id(p) for p in guide.parameters()}
    assert own.isdisjoint({id(p) for p in model.parameters()})
    sites = guide.median(*data())
    assert sites["a"].shape == (3, 6, 2)
    assert sites["z"].shape == (3, 6, 4)


def test_starts_from_frames_with_a_decoder_of_ones_own() -> None:
    decoder = nn.Sequential(nn.Linear(2, 30), nn.Unflatten(-1, FRAME))
    guide = KalmanGuide(KVAE(FRAME, decoder=decoder), "mlp")
    x = (torch.rand(20, *FRAME) < 0.4).float()
    guide.start_from(x, spread=3.0)
    assert float(guide.encode(x.unsqueeze(0)).var(1).mean().sqrt()) == pytest.approx(3.0, rel=1e-3)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="model must be a KVAE; got Linear"):
        KalmanGuide(nn.Linear(2, 2))  # type: ignore[arg-type]
    model, guide = pair()
    with pytest.raises(ValueError, match="encoder must be one of conv, mlp; got 'resnet'"):
        KalmanGuide(model, "resnet")
    with pytest.raises(ValueError, match="encoder_options must be None when encoder is a module"):
        KalmanGuide(model, guide.encoder, {"hidden": (5,)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x must be \(batch, \*frame\) = \(2, 1, 5, 6\), one step"),
        ({"x": torch.zeros(3, *FRAME)}, r"the 2 streams; got shape \(3, 1, 5, 6\)"),
        ({"mask": torch.ones(2, 4).bool()}, r"mask must be \(batch\) = \(2,\), .*\(2, 4\)"),
        ({"control": torch.zeros(2, 3)}, r"^control must be \(batch, controls\) = \(2, 1\)"),
        ({"next_control": torch.zeros(2, 3)}, r"next_control must be .* got shape \(2, 3\)"),
    ],
)
def test_bad_online_input_is_named(change: dict[str, Tensor], message: str) -> None:
    _, guide = pair()
    step = {"x": torch.zeros(2, *FRAME), "control": torch.zeros(2, 1)} | change
    step = {name: value if name == "mask" else value.double() for name, value in step.items()}
    with pytest.raises(ValueError, match=message):
        guide.online(2).update(**step)
