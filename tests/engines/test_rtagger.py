"""Recurrent taggers: their inputs, their mixture, their symmetry, and their passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Size, Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional

from pyro_seq.engines import (
    ConvLSTMRow,
    LinearRow,
    LSTMRow,
    RTagger,
    RTaggerState,
    SoftMaxRow,
    classification_cost,
    tagger,
)
from pyro_seq.ops.trees import map_tensors

ROWS = [LinearRow(12), LSTMRow(6, normalised=True), SoftMaxRow(4)]
FRAME = (1, 4, 5)


def drawn(pixels: str = "gaussian", groups: int = 3, **options: Any) -> RTagger:  # noqa: ANN401
    """A tagger in float64 with no parameter at a special value, in evaluation mode."""
    options = {"frame_shape": FRAME, "rows": ROWS, "norm": "layer", **options}
    made = RTagger(groups=groups, pixels=pixels, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def pictures(*batch: int, frame: tuple[int, ...] = FRAME) -> Tensor:
    return (torch.rand(*(batch or (2,)), *frame) > 0.5).double()


def regrouped(tree: Any, order: list[int], dim: int = 1) -> Any:  # noqa: ANN401
    return map_tensors(lambda part: part.index_select(dim, torch.tensor(order)), tree)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_gaussian_cost_is_that_of_a_mixture(channels: int) -> None:
    made, x = drawn(frame_shape=(channels, 4, 5)), torch.rand(2, channels, 4, 5).double()
    found = made.denoise(x, 2)
    for i in range(2):
        m, z = found.output.m[:, i, :, 0], found.output.z[:, i]
        pixel = Normal(z.permute(0, 3, 4, 1, 2), made.pixel_variance().sqrt())
        mixture = MixtureSameFamily(Categorical(m.movedim(1, -1)), Independent(pixel, 1))
        log_prob = mixture.log_prob(x.movedim(1, -1))
        torch.testing.assert_close(found.cost[:, i], -log_prob.mean((-2, -1)))


def test_the_cost_of_one_group_is_a_gaussian_likelihood() -> None:
    made, x = drawn(groups=1), torch.rand(2, *FRAME).double()
    found = made.denoise(x, 1)
    z = found.output.z[:, 0, 0]
    v = made.pixel_variance().expand_as(z)
    expected = functional.gaussian_nll_loss(z, x, v, full=True, reduction="none")
    torch.testing.assert_close(found.cost[:, 0], expected.mean((1, 2, 3)))


def test_the_binary_cost_is_that_of_a_mixture_and_of_its_mean() -> None:
    made, x = drawn("bernoulli"), pictures()
    output, _ = made.iterate(x, 1)
    output = map_tensors(lambda part: part[:, 0], output)
    weights = Categorical(output.m[:, :, 0].movedim(1, -1))
    mixture = MixtureSameFamily(weights, Bernoulli(output.z[:, :, 0].movedim(1, -1)))
    cost = made.cost(output, x)
    torch.testing.assert_close(cost, -mixture.log_prob(x[:, 0]).mean((-2, -1)))
    entropy = functional.binary_cross_entropy(output.prediction, x, reduction="none")
    torch.testing.assert_close(cost, entropy.mean((1, 2, 3)))


def test_variance_begins_as_the_authors() -> None:
    made = RTagger(FRAME, ROWS, 2)
    assert made.pixel_variance().tolist() == pytest.approx([2.4142135])
    made = RTagger(FRAME, ROWS, 2, variance=0.03)
    assert made.pixel_variance().tolist() == pytest.approx([0.03])
    with pytest.raises(ValueError, match="binary pixels have no variance"):
        drawn("bernoulli").pixel_variance()


def read(made: RTagger, state: RTaggerState, x: Tensor) -> tuple[Tensor, ...]:
    """What the ladders are given, by channel: z, its error, m, L(m)."""
    output, _ = made.step(state, x)
    return output.ladder.e[0].unbind(-3)


def random_state(made: RTagger) -> RTaggerState:
    state = made.initial_state(Size([2]))
    raw = torch.randn_like(state.z)
    return state._replace(z=raw.sigmoid(), shown=raw)


def test_gaussian_inputs() -> None:
    made, x = drawn(), torch.rand(2, *FRAME).double()
    state = random_state(made)
    shown, error, m, likely = (part.unsqueeze(2) for part in read(made, state, x))
    torch.testing.assert_close(shown, state.shown)
    torch.testing.assert_close(m, state.log_m.exp())
    torch.testing.assert_close(error, m * (x.unsqueeze(1) - state.z))
    scale = (made.pixel_variance() + 0.2**2).sqrt()
    log_p = Normal(state.z, scale).log_prob(x.unsqueeze(1).expand_as(state.z))
    torch.testing.assert_close(likely, log_p.softmax(1))


@pytest.mark.parametrize("grey", [False, True])
def test_binary_errors_are_gradients_of_the_log_likelihood(grey: bool) -> None:
    made, x = drawn("bernoulli", noise=0.15), pictures()
    x = torch.rand_like(x) if grey else x
    state = random_state(made)
    _, error, m, likely = (part.unsqueeze(2) for part in read(made, state, x))
    z = state.z.clone().requires_grad_()
    seen = 0.7 * z + 0.15  # the probability of 1 after a flip
    log_p = Bernoulli((m * seen).sum(1), validate_args=False).log_prob(x).sum()
    torch.testing.assert_close(error, torch.autograd.grad(log_p, z)[0])
    each = Bernoulli(seen, validate_args=False).log_prob(x.unsqueeze(1).expand_as(z))
    torch.testing.assert_close(likely, each.softmax(1))


@pytest.mark.parametrize("pixels", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_groups_can_change_places(pixels: str, norm: str) -> None:
    made, x, order = drawn(pixels, norm=norm), pictures(3), [2, 0, 1]
    state = made.initial_state(Size([3]))
    for mode in (made.eval, made.train):
        mode()
        torch.manual_seed(0)
        found = made.denoise(x, 3, state)
        torch.manual_seed(0)
        other = made.denoise(x, 3, regrouped(state, order))
        torch.testing.assert_close(other.cost, found.cost)
        for name in ("m", "z"):
            part = getattr(found.output, name)
            torch.testing.assert_close(getattr(other.output, name), regrouped(part, order, 2))
        torch.testing.assert_close(other.output.class_log_probs, found.output.class_log_probs)
        torch.testing.assert_close(other.state, regrouped(found.state, order))


def test_groups_are_a_batch_of_the_ladder() -> None:
    made, x = drawn(), pictures()
    state = made.initial_state(Size([2]))
    output, after = made.step(state, x)
    for k in range(made.groups):
        alone, ladder = made.ladder.step(
            regrouped(state.ladder, [k]), output.ladder.e[0][:, k : k + 1]
        )
        torch.testing.assert_close(alone, regrouped(output.ladder, [k]))
        torch.testing.assert_close(ladder, regrouped(after.ladder, [k]))


def test_shares_and_means() -> None:
    made, x = drawn("bernoulli"), pictures()
    output, state = made.step(made.initial_state(Size([2])), x)
    torch.testing.assert_close(output.m.sum(1), torch.ones(2, *FRAME).double())
    torch.testing.assert_close(output.z, output.raw_z.sigmoid())
    torch.testing.assert_close(output.prediction, (output.m * output.z).sum(1))
    assert (state.shown == output.raw_z).all() and (state.z == output.z).all()
    assert output.m.std(1).min() > 0  # random shares made the groups differ


@pytest.mark.parametrize("pixels", ["gaussian", "bernoulli"])
def test_readouts_begin_at_the_mean_of_the_data(pixels: str) -> None:
    made = RTagger(FRAME, ROWS, 2, pixels=pixels, mean=0.2)
    start = math.log(0.2 / 0.8) if pixels == "bernoulli" else 0.2
    assert made.bias_z.tolist() == pytest.approx([start])
    assert (made.initial_state(Size([1])).z == 0.2).all()


def test_classes_and_no_object() -> None:
    made, x = drawn(), pictures()
    output, _ = made.step(made.initial_state(Size([2])), x)
    p = output.ladder.logits.softmax(-1)[..., :3]
    expected = (p / p.sum((1, 2), keepdim=True)).sum(1)
    torch.testing.assert_close(output.class_log_probs.exp(), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2).double())
    labels = torch.tensor([2, -1])
    cost = classification_cost(output.class_log_probs, labels)
    torch.testing.assert_close(
        cost, torch.stack([-expected[0, 2].log(), torch.zeros(()).double()])
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "labels must be from 0 to 2, or -1 for none; got from 0 to 3"),
        (torch.tensor([-2, 0]), "labels must be from 0 to 2, or -1 for none; got from -2 to 0"),
        (torch.tensor([0]), r"labels must be of shape \(2,\); got \(1,\)"),
        (
            torch.tensor([0.0, 1.0]),
            r"labels must be int64; got torch.float32. Use labels.long\(\)",
        ),
    ],
)
def test_wrong_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_cost(torch.zeros(2, 3), labels)


def test_pictures_are_corrupted_in_training_alone() -> None:
    made, x = drawn("bernoulli", noise=0.1), torch.ones(300, *FRAME).double()
    flipped = (made.corrupt(x) == 0).double().mean()
    assert 0.08 < float(flipped) < 0.12
    noise = drawn(noise=0.3).corrupt(x) - 1
    assert 0.28 < float(noise.std()) < 0.32
    state = made.initial_state(Size([300]))
    plain = [made.denoise(x, 2, state).cost for _ in range(2)]
    assert (plain[0] == plain[1]).all()
    made.train()
    assert (made.denoise(x, 2, state).cost != plain[0]).any()


def test_prediction_is_of_the_next_frame_and_of_no_missing_one() -> None:
    made, x = drawn("bernoulli"), pictures(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = False
    state = made.initial_state(Size([2]))
    x[~mask] = torch.nan
    x.requires_grad_()
    found = made.predict(x, mask, state)
    assert found.cost.shape == (2, 4) and found.output.m.shape[:3] == (2, 5, 3)
    assert (found.cost == 0).tolist() == [[False, True, False, False], [False] * 3 + [True]]
    (gradient,) = torch.autograd.grad(found.cost.sum(), x)
    assert gradient.isfinite().all()
    outputs, _ = made(x.nan_to_num(), mask, state)
    for t in (0, 2):
        at_t = map_tensors(lambda part, t=t: part[:, t], outputs)
        expected = made.cost(at_t, x[:, t + 1].nan_to_num())
        torch.testing.assert_close(found.cost[:, t], expected)
    with pytest.raises(ValueError, match="x must have two frames or more"):
        made.predict(x[:, :1].nan_to_num())


def test_imagination_reads_its_own_predictions() -> None:
    made, x = drawn("bernoulli"), pictures(2)
    output, state = made.step(made.initial_state(Size([2])), x)
    found, end = made.imagine(output, state, 3)
    for t in range(3):
        output, state = made.step(state, output.prediction)
        torch.testing.assert_close(found.m[:, t], output.m)
    torch.testing.assert_close(end, state)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        made.imagine(output, state, 0)
    with pytest.raises(ValueError, match=r"output must be of one step, .*; got \(2, 3, "):
        made.imagine(found, end, 1)


def test_a_frame_that_was_foretold_is_no_error() -> None:
    made = drawn("bernoulli", noise=0.15)
    state = random_state(made)
    seen = (state.log_m.exp() * (0.7 * state.z + 0.15)).sum(1)
    _, error, _, _ = read(made, state, seen)
    torch.testing.assert_close(error, torch.zeros_like(error))


def test_the_parent_has_no_recurrence() -> None:
    made = tagger(FRAME, [ConvLSTMRow(3, cell="conv_g1"), LSTMRow(4)], 2, norm="layer", d2e="all")
    state = made.initial_state(Size([2]))
    assert state.ladder.cells == () and state.ladder.d == ()
    x = pictures().float()
    output, _ = made.step(state, x)
    later = state._replace(ladder=state.ladder._replace(iteration=state.ladder.iteration + 5))
    torch.testing.assert_close(made.step(later, x)[0].m, output.m)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be at least 1; got 0"),
        ({"pixels": "poisson"}, "pixels must be one of gaussian, bernoulli; got 'poisson'"),
        ({"pixels": "bernoulli", "noise": 0.5}, "noise must be .* below 0.5 .*; got 0.5"),
        ({"pixels": "bernoulli", "noise": 0.0}, "noise must be positive.*; got 0.0"),
        ({"noise": -0.1}, "noise must be positive.*; got -0.1"),
        ({"variance": 0.0}, "variance must be positive and finite; got 0.0"),
        ({"pixels": "bernoulli", "mean": 1.0}, "mean of binary pixels .*; got 1.0"),
        ({"mean": math.nan}, "mean must be finite; got nan"),
        ({"frame_shape": 5}, "frame_shape must be .* all positive; got 5"),
        ({"frame_shape": (5,)}, r"frame_shape must be .* one axis or two; got \(5,\)"),
        ({"rows": [SoftMaxRow(3)]}, "rows must have one row or more below the head"),
        ({"d2e": "few"}, "d2e must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTagger(**{"frame_shape": FRAME, "rows": ROWS, "groups": 2, **options})


def test_sizes_and_means_of_another_type() -> None:
    with pytest.raises(TypeError, match="groups must be an int; got 1.5"):
        RTagger(FRAME, ROWS, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mean must be one number for all pixels; got Tensor"):
        RTagger(FRAME, ROWS, 2, mean=torch.zeros(5))  # type: ignore[arg-type]
    for pixels in ("gaussian", "bernoulli"):  # a mean that was computed
        made = RTagger(FRAME, ROWS, 2, pixels=pixels, mean=torch.tensor(0.25))  # type: ignore[arg-type]
        assert made.mean == 0.25


def test_pixels_without_a_density_are_refused() -> None:
    x = torch.rand(2, 3, *FRAME)
    binary, real = (RTagger(FRAME, ROWS, 2, pixels=p) for p in ("bernoulli", "gaussian"))
    for read, frames in ((RTagger.denoise, x[:, 0]), (RTagger.predict, x)):
        with pytest.raises(ValueError, match="x must lie between 0 and 1 .* got values between"):
            read(binary, 255 * frames)
        with pytest.raises(ValueError, match="x must be torch.float32, .*; got torch.float64"):
            read(real, frames.double())
        for made in (binary, real):
            with pytest.raises(ValueError, match="x must be finite where it is observed"):
                read(made, torch.where(frames > 0.5, math.nan, frames))
    with pytest.raises(TypeError, match="x must be a tensor of frames; got ndarray"):
        real.denoise(x[:, 0].numpy())  # type: ignore[arg-type]
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x[0, 2] = math.nan
    assert real.predict(x, mask).cost.isfinite().all()
