"""Mixture dynamics against linear-Gaussian models, integrals and step-by-step runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.nn import LSTMWeights, MixtureDynamics, MLPWeights, StaticWeights, WeightNetwork

NETWORKS = {
    "lstm": lambda obs, modes: LSTMWeights(obs, modes, hidden=7),
    "mlp": lambda obs, modes: MLPWeights(obs, modes, hidden=7),
    "window": lambda obs, modes: MLPWeights(obs, modes, hidden=7, window=3),
    "static": StaticWeights,
}


def dynamics(
    name: str, obs: int = 2, state: int = 4, modes: int = 3, controls: int = 1
) -> MixtureDynamics:
    made = MixtureDynamics(
        NETWORKS[name](obs, modes),
        obs,
        state,
        modes,
        controls=controls,
        start="local_linear_trend",
        jitter=0.3,
        initial_var=2.0,
    ).double()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        made.first_code.normal_()
    return made


def log_evidence(
    made: MixtureDynamics, a: Tensor, mask: Tensor | None, controls: Tensor | None
) -> Tensor:
    model = made.condition(a, mask, controls).model
    return LinearGaussianSSM.from_model(model, time=a.shape[1], mask=mask).log_prob(a)


@pytest.mark.parametrize("name", NETWORKS)
def test_unrolled_weights_equal_steps(name: str) -> None:
    network: WeightNetwork = NETWORKS[name](2, 3).double()
    previous = torch.randn(4, 6, 2, dtype=torch.float64)
    state = network.initial_state(4)
    steps = []
    for t in range(6):
        weights, state = network.step(previous[:, t], state)
        steps.append(weights)
    unrolled = network.unroll(previous)
    torch.testing.assert_close(unrolled, torch.stack(steps, 1))
    torch.testing.assert_close(unrolled.sum(-1), torch.ones(4, 6, dtype=torch.float64))


@pytest.mark.parametrize("name", NETWORKS)
def test_stepwise_filter_equals_the_vectorised_model(name: str) -> None:
    made = dynamics(name)
    a, u = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double()
    everything = torch.ones(3, 5, dtype=torch.bool)
    given = made.condition(a, everything, u)
    assert given.filtered is not None
    torch.testing.assert_close(
        given.filtered.log_likelihood.sum(-1), log_evidence(made, a, None, u)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_filter_of_missing_frames_equals_the_model_it_implies(name: str) -> None:
    made = dynamics(name)
    a, u = torch.randn(4, 7, 2).double(), torch.randn(4, 7, 1).double()
    mask = torch.rand(4, 7) > 0.4
    mask[0] = False
    given = made.condition(a, mask, u)
    assert given.filtered is not None
    torch.testing.assert_close(
        given.filtered.log_likelihood.sum(-1), log_evidence(made, a, mask, u)
    )
    assert given.filtered.log_likelihood[0].eq(0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_codes_reach_neither_value_nor_gradient(name: str) -> None:
    made = dynamics(name)
    mask = torch.rand(3, 6) > 0.4
    u = torch.randn(3, 6, 1).double()
    a = torch.randn(3, 6, 2).double()

    def evidence(fill: float) -> tuple[Tensor, list[Tensor]]:
        value = torch.where(mask.unsqueeze(-1), a, fill).requires_grad_()
        total = made.condition(value, mask, u).filtered.log_likelihood.sum()  # type: ignore[union-attr]
        return total, list(
            torch.autograd.grad(total, [value, *made.parameters()], allow_unused=True)
        )

    one, gradients = evidence(0.0)
    other, again = evidence(float("nan"))
    assert torch.equal(one, other)
    for first, second in zip(gradients, again, strict=True):
        if first is not None:
            assert torch.equal(first, second)
    assert gradients[0][~mask].eq(0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_density_integrates_to_one(missing: bool) -> None:
    made = dynamics("lstm", obs=1, state=2, controls=0)
    grid = torch.linspace(-14, 14, 281, dtype=torch.float64)
    first, last = torch.meshgrid(grid, grid, indexing="ij")
    middle = torch.full_like(first, 0.7)
    a = torch.stack([first, middle, last] if missing else [first, last], -1).view(
        -1, 3 if missing else 2, 1
    )
    mask = None
    if missing:
        mask = torch.tensor([True, False, True]).expand(len(a), 3)
        density = made.condition(a, mask).filtered.log_likelihood.sum(-1).exp()  # type: ignore[union-attr]
    else:
        density = log_evidence(made, a, None, None).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1.0, abs=1e-3)


def test_a_single_mode_is_a_plain_linear_model() -> None:
    made = dynamics("static", modes=1)
    a, u = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double()
    initial, process, measurement = made.noise()
    assert made.control is not None
    plain = LinearGaussianSSM(
        torch.zeros(4).double(),
        initial,
        made.transition,
        process[None],
        made.emission,
        measurement[None],
        u @ made.control[0].mT,
        time=5,
    )
    torch.testing.assert_close(log_evidence(made, a, None, u), plain.log_prob(a))


def test_controls_act_on_the_transition_into_their_own_step() -> None:
    made = dynamics("static")
    a, u = torch.randn(1, 4, 2).double(), torch.randn(1, 4, 1).double()
    predicted = made.condition(a, torch.ones(1, 4, dtype=torch.bool), u).filtered.predicted_loc  # type: ignore[union-attr]
    for step in range(4):
        other = u.clone()
        other[:, step] += 1.0
        moved = made.condition(a, torch.ones(1, 4, dtype=torch.bool), other).filtered.predicted_loc  # type: ignore[union-attr]
        change = (moved - predicted).abs().sum(-1)[0]
        assert change[:step].eq(0).all()
        assert bool(change[step] > 0) == (step > 0)


def test_drawn_sequences_have_the_moments_of_the_prior() -> None:
    made = dynamics("static", modes=1, controls=0)
    state = made.initial_state(20_000)
    codes = []
    with torch.no_grad():
        for _ in range(4):
            state, code = made.draw(state)
            codes.append(code)
        a = torch.stack(codes, 1)
        model = made.condition(a[:1]).model
        prior = LinearGaussianSSM(
            *model[:3], model.transition_cov, model.emission, model.emission_cov, time=4
        )
        loc, cov = prior.observe(prior.latent_prior().mean, prior.latent_prior().covariance)
    spread = cov.diagonal(dim1=-2, dim2=-1)
    assert ((a.mean(0) - loc).abs() < 5 * (spread / 20_000).sqrt()).all()
    assert ((a.var(0) / spread - 1).abs() < 5 * (2 / 20_000) ** 0.5).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("masked", [False, True])
def test_sample_dimensions_are_further_sequences(name: str, masked: bool) -> None:
    made = dynamics(name)
    a, u = torch.randn(2, 3, 4, 5, 2).double(), torch.randn(4, 5, 1).double()
    mask = torch.rand(4, 5) > 0.4 if masked else None
    given = made.condition(a, mask, u)
    for i in range(2):
        for j in range(3):
            one = made.condition(a[i, j], mask, u)
            torch.testing.assert_close(given.weights[i, j], one.weights)
            torch.testing.assert_close(given.model.transition[i, j], one.model.transition)
            torch.testing.assert_close(given.model.offset[i, j], one.model.offset)
            assert (given.filtered is None) == (one.filtered is None) == (mask is None)
            if given.filtered is not None and one.filtered is not None:
                torch.testing.assert_close(given.filtered.loc[i, j], one.filtered.loc)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "random"}, "start must be 'identity' or 'local_linear_trend'"),
        ({"start": "local_linear_trend", "state": 3}, "needs state >= 2"),
        (
            {"learn_noise": "full"},
            "learn_noise must be None, 'isotropic' or 'diagonal'; got 'full'",
        ),
    ],
)
def test_bad_starts_are_named(arguments: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"obs": 2, "state": 4, "modes": 2} | arguments
    with pytest.raises(ValueError, match=message):
        MixtureDynamics(StaticWeights(2, 2), **options)  # type: ignore[arg-type]


def test_no_parameter_is_a_scalar() -> None:
    made = MixtureDynamics(StaticWeights(2, 2), 2, 4, 2, learn_noise="isotropic")
    assert all(parameter.dim() > 0 for parameter in made.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_code_is_learnt_if_the_network_reads_it(name: str) -> None:
    made = dynamics(name)
    reads = name != "static"
    assert made.network.reads_codes == reads
    assert ("first_code" in dict(made.named_parameters())) == reads
    assert "first_code" in made.state_dict()
    with torch.no_grad():  # modes that read the first state differently
        made.emission.add_(torch.randn_like(made.emission))
    a, u = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double()
    parameters = list(made.parameters())
    gradients = torch.autograd.grad(log_evidence(made, a, None, u).sum(), parameters)
    assert all(gradient.ne(0).any() for gradient in gradients)


@pytest.mark.parametrize(
    ("learn", "sizes"), [(None, None), ("isotropic", (1, 1, 1)), ("diagonal", (4, 4, 2))]
)
def test_noise_is_learnt_when_asked(learn: str | None, sizes: tuple[int, ...] | None) -> None:
    made = MixtureDynamics(StaticWeights(2, 2), 2, 4, 2, learn_noise=learn).double()
    initial, transition, emission = made.noise()
    torch.testing.assert_close(initial, 20.0 * torch.eye(4).double())
    torch.testing.assert_close(transition, 0.08 * torch.eye(4).double())
    torch.testing.assert_close(emission, 0.03 * torch.eye(2).double())
    names = ("initial_log_var", "transition_log_var", "emission_log_var")
    learnt = {name: p.numel() for name, p in made.named_parameters() if name in names}
    assert learnt == ({} if sizes is None else dict(zip(names, sizes, strict=True)))


def test_offsets_are_a_control_that_is_always_one() -> None:
    torch.manual_seed(1)
    one = MixtureDynamics(StaticWeights(2, 2), 2, 4, 2, offsets=True).double()
    torch.manual_seed(1)
    other = MixtureDynamics(StaticWeights(2, 2), 2, 4, 2, controls=1).double()
    with torch.no_grad():
        assert one.offset is not None
        assert other.control is not None
        other.control.copy_(one.offset.unsqueeze(-1))
    a = torch.randn(3, 5, 2).double()
    torch.testing.assert_close(
        log_evidence(one, a, None, None),
        log_evidence(other, a, None, torch.ones(3, 5, 1).double()),
    )
