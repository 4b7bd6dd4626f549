"""The hierarchical temporal model against the linear-Gaussian state space model and the DMM."""

from __future__ import annotations

import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.models import DMM, HierarchicalTemporalModel

BATCH, TIME, FRAME = 3, 4, 5


def linear(
    latents: tuple[int, ...] = (3, 2, 1), **options: int | tuple[int, ...]
) -> HierarchicalTemporalModel:
    torch.manual_seed(0)
    model = HierarchicalTemporalModel(
        FRAME, latents=latents, transition="linear", decoder=(), emission="normal", **options
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        head = model.emit[-1].parameters_of
        head.weight[FRAME:] = 0.0  # noise that does not depend on the latents
    return model


def evidence(
    model: HierarchicalTemporalModel, mask: Tensor | None = None, u: Tensor | None = None
) -> LinearGaussianSSM:
    """All levels as one state, (z^1, ..., z^L), from the matrices of the levels."""
    sizes = [len(z) for z in model.z_0]
    link = torch.zeros(sum(sizes), sum(sizes)).double()
    offset = torch.cat([level.past.bias for level in model.levels]).expand(TIME, -1)
    gain = []
    for number, level in enumerate(model.levels):
        above = sizes[number + 1] if number + 1 < len(sizes) else 0
        rows = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
        columns = slice(rows.stop, rows.stop + above)
        others = level.others.weight if level.others else torch.zeros(sizes[number], 0).double()
        link[rows, columns] = others[:, :above]
        gain.append(others[:, above:])
    mix = torch.linalg.inv(torch.eye(sum(sizes)).double() - link)
    if u is not None:
        offset = offset + u @ torch.cat(gain).mT
    offset = offset @ mix.mT
    move = mix @ torch.block_diag(*(level.past.weight for level in model.levels))
    noise = torch.cat([level.log_scale for level in model.levels]).mul(2).exp()
    cov = mix @ torch.diag(noise) @ mix.mT
    head = model.emit[-1].parameters_of
    emission = torch.zeros(FRAME, sum(sizes)).double()
    emission[:, : sizes[0]] = head.weight[:FRAME]
    first = move @ torch.cat(list(model.z_0)) + offset[..., 0, :]
    spread = torch.diag(head.bias[FRAME:].mul(2).exp())
    return LinearGaussianSSM(
        first,
        cov,
        move[None],
        cov[None],
        emission[None],
        spread[None],
        offset,
        time=TIME,
        mask=mask,
    )


def joint(
    model: HierarchicalTemporalModel | DMM,
    x: Tensor,
    z: dict[str, Tensor],
    mask: Tensor | None = None,
    u: Tensor | None = None,
) -> Tensor:
    """log p(x, z) of each sequence."""
    trace = poutine.trace(poutine.condition(model, z)).get_trace(x, mask, u)
    trace.compute_log_prob()
    return sum(s["log_prob"] for n, s in trace.nodes.items() if n[0] in "xz")


def draws(sizes: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Values of all sites, and the same side by side, (batch, time, sum of sizes)."""
    values = {
        f"z{level}_{t}": torch.randn(BATCH, size).double()
        for level, size in enumerate(sizes, 1)
        for t in range(1, TIME + 1)
    }
    steps = [
        torch.cat([values[f"z{level}_{t}"] for level in range(1, len(sizes) + 1)], -1)
        for t in range(1, TIME + 1)
    ]
    return values, torch.stack(steps, 1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(3,), (2, 2), (3, 2, 1)])
def test_a_linear_hierarchy_is_a_linear_gaussian_model(
    sizes: tuple[int, ...], masked: bool
) -> None:
    """log p(x, z) = log p(x) + log p(z | x), the two from the Kalman algebra."""
    model = linear(sizes)
    head = model.emit[-1].parameters_of
    x = torch.randn(BATCH, TIME, FRAME).double()
    mask = None
    if masked:
        mask = torch.tensor([[True] * 4, [True, False, False, True], [False, True, True, False]])
        x = torch.where(mask[..., None], x, torch.nan)
    values, z = draws(sizes)
    ssm = evidence(model, mask)
    centred = torch.nan_to_num(x) - head.bias[:FRAME]
    exact = ssm.log_prob(centred) + ssm.posterior(centred).log_prob(z)
    torch.testing.assert_close(joint(model, x, values, mask), exact)


def test_a_linear_link_moves_frames_by_what_it_makes_of_the_one_before() -> None:
    """p(x, z) with a link B is p(x_t - B x_{t-1}, z) of the model without."""
    linked, bare = linear((3, 2), link=()), linear((3, 2))
    head = linked.emit[-1].parameters_of
    bare.load_state_dict(
        {**linked.state_dict(), "emit.0.parameters_of.weight": head.weight[:, :3]}
    )
    x = torch.randn(BATCH, TIME, FRAME).double()
    values, _ = draws((3, 2))
    before = torch.cat([torch.zeros(BATCH, 1, FRAME).double(), x[:, :-1]], 1)
    rest = x - before @ head.weight[:FRAME, 3:].T
    torch.testing.assert_close(joint(linked, x, values), joint(bare, rest, values))
    assert not torch.allclose(joint(linked, x, values), joint(bare, x, values))


def test_controls_move_every_level() -> None:
    model = linear((2, 2), controls=3)
    x, u = torch.randn(BATCH, TIME, FRAME).double(), torch.randn(BATCH, TIME, 3).double()
    values, z = draws((2, 2))
    centred = x - model.emit[-1].parameters_of.bias[:FRAME]
    ssm = evidence(model, u=u)
    exact = ssm.log_prob(centred) + ssm.posterior(centred).log_prob(z)
    torch.testing.assert_close(joint(model, x, values, u=u), exact)


def test_one_gated_level_is_a_deep_markov_model() -> None:
    torch.manual_seed(0)
    one = HierarchicalTemporalModel(FRAME, latents=[3], hidden=4, decoder=(6, 6)).double()
    dmm = DMM(FRAME, latent=3, hidden=4, width=6).double()
    dmm.dynamics.load_state_dict(one.levels[0].state_dict())
    dmm.emit = one.emit
    x = torch.rand(BATCH, TIME, FRAME).round().double()
    values, _ = draws((3,))
    same = {name.replace("z1_", "z_"): value for name, value in values.items()}
    torch.testing.assert_close(joint(one, x, values), joint(dmm, x, same))


def test_levels_above_lead_those_below() -> None:
    """A shift of the top at one step moves the levels below at that step, and no level above."""
    model = HierarchicalTemporalModel(FRAME, latents=[3, 2, 2], hidden=4)
    state = model.initial_state(torch.Size([2])).state
    assert [tuple(z.shape) for z in state.z] == [(2, 3), (2, 2), (2, 2)]
    base = {"z3": torch.zeros(2, 2), "z2": torch.zeros(2, 2), "z1": torch.zeros(2, 3)}
    means = []
    for site in (None, "z3", "z2", "z1"):
        moved = base | ({site: base[site] + 1.0} if site else {})
        with poutine.trace() as recorder, poutine.condition(data=moved):
            model.latents(state, None)
        nodes = recorder.trace.nodes
        assert list(nodes) == ["z3", "z2", "z1"]
        means.append({name: nodes[name]["fn"].mean for name in base})
    for number, affected in enumerate((["z2"], ["z1"], []), 1):
        for name in base:
            assert torch.equal(means[number][name], means[0][name]) == (name not in affected)


def test_presets_and_bad_options() -> None:
    assert len(HierarchicalTemporalModel.preset("small", frame=88).levels) == 3
    with pytest.raises(ValueError, match=r"latents must be one positive size or more; got \(\)"):
        HierarchicalTemporalModel(3, latents=[])
    with pytest.raises(ValueError, match=r"latents must be one positive size.*\(2, 0\)"):
        HierarchicalTemporalModel(3, latents=[2, 0])
    with pytest.raises(ValueError, match="transition must be one of gated, linear; got 'gru'"):
        HierarchicalTemporalModel(3, transition="gru")
    with pytest.raises(ValueError, match="emission must be one of"):
        HierarchicalTemporalModel(3, emission="poisson")
    with pytest.raises(TypeError, match="latents must be a sequence of sizes; got 2"):
        HierarchicalTemporalModel(3, latents=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="link must be a sequence of sizes; got True"):
        HierarchicalTemporalModel(3, link=True)  # type: ignore[arg-type]
