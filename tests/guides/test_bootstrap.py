"""The guide that draws from the prior."""

from __future__ import annotations

import torch
from pyro import poutine

from pyro_seq.guides import Bootstrap
from pyro_seq.inference.filtering import filter_sequences
from tests.guides.unseen_model import Traffic, traffic


def test_q_is_the_prior_of_the_unrolled_model() -> None:
    model = Traffic()
    guide = Bootstrap(model)
    assert not [*guide.parameters()]
    x, mask, controls = traffic()
    for seen in (None, mask):
        guided = poutine.trace(guide).get_trace(x, seen, controls)
        model_trace = poutine.trace(poutine.replay(model, guided)).get_trace(x, seen, controls)
        for trace in (guided, model_trace):
            trace.compute_log_prob()
        for name, site in guided.nodes.items():
            if site["type"] == "sample" and name != "sequences":
                torch.testing.assert_close(
                    site["log_prob"], model_trace.nodes[name]["log_prob"], rtol=1e-5, atol=1e-5
                )


def test_its_bound_is_the_likelihood_of_draws() -> None:
    model = Traffic()
    x, mask, controls = traffic()
    torch.manual_seed(0)
    with torch.no_grad():
        terms = filter_sequences(Bootstrap(model), x, mask, controls)
    assert (terms.divergence == 0).all()
    torch.manual_seed(0)
    draws = Bootstrap(model)(x, mask, controls)
    trace = poutine.trace(poutine.condition(model, draws)).get_trace(x, mask, controls)
    trace.compute_log_prob()
    for number in range(x.shape[1]):
        expected = trace.nodes[f"x_{number + 1}"]["log_prob"].detach()
        torch.testing.assert_close(terms.log_likelihood[number], expected)
