from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pyro
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_seq.data import Batch, SequenceDataset, batches
from pyro_seq.training import (
    Callback,
    Context,
    FitResult,
    Freeze,
    MemoryLogger,
    NonFiniteLossError,
    PlateauWarning,
    SequenceLoss,
    WarnOnPlateau,
    fit,
    warmup_cosine,
)
from tests.training.toys import ToyBatches, toy_batch, toy_pair


def run(
    epochs: int = 3,
    rate: float = 1e-2,
    train: Iterable[Batch] | None = None,
    **arguments: Any,  # noqa: ANN401
) -> tuple[SequenceLoss, FitResult]:
    loss = SequenceLoss(*toy_pair())
    optimizer = torch.optim.Adam(loss.parameters(), rate)
    if "schedule" in arguments:
        arguments["schedule"] = arguments["schedule"](optimizer)
    train = ToyBatches() if train is None else train
    return loss, fit(loss, train, epochs=epochs, optimizer=optimizer, **arguments)


def same_weights(a: SequenceLoss, b: SequenceLoss) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_fit_equals_the_loop_written_out() -> None:
    loss, result = run(schedule=lambda o: warmup_cosine(o, 12, warmup=3), clip_norm=5.0)
    expected = SequenceLoss(*toy_pair())
    optimizer = torch.optim.Adam(expected.parameters(), 1e-2)
    schedule = warmup_cosine(optimizer, 12, warmup=3)
    pyro.set_rng_seed(0)
    means = []
    for epoch in range(3):
        values = []
        for index in range(4):
            value = expected(toy_batch(1000 * epoch + index))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(list(expected.parameters()), 5.0)
            optimizer.step()
            schedule.step()
            values.append(value.item())
        means.append(sum(values) / 4)
    assert same_weights(loss, expected)
    assert [record["loss"] for record in result.history] == pytest.approx(means, rel=1e-12)
    assert result.steps == 12 and [r["step"] for r in result.history] == [4, 8, 12]
    assert [r["epoch"] for r in result.history] == [0, 1, 2] and result.best_weights is None


def test_validation_leaves_training_as_it_was_and_draws_the_same_noise() -> None:
    plain, _ = run()
    validated, result = run(validation=ToyBatches(2, seed=77))
    assert same_weights(plain, validated)
    assert min(result.history, key=lambda r: r["validation_loss"]) == result.best
    _, still = run(rate=0.0, validation=ToyBatches(2, seed=77))
    values = {record["validation_loss"] for record in still.history}
    assert len(values) == 1


def test_validation_loss_is_the_mean_over_all_observed_steps() -> None:
    loss, result = run(epochs=1, rate=0.0, validation=[toy_batch(1, 2), toy_batch(2, 7)])
    pyro.set_rng_seed(0)
    totals = [loss.totals(toy_batch(1, 2)), loss.totals(toy_batch(2, 7))]
    expected = sum(t.loss for t in totals) / sum(t.units for t in totals)
    assert result.history[0]["validation_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_every_kind_of_batches() -> None:
    data = torch.randn(12, 5, 3)
    dataset = SequenceDataset(data)
    loader = batches(dataset, 4, seed=5)
    orders = [
        run(train=loader)[1].history,
        run(train=[Batch(data[:4]), Batch(data[4:])])[1].history,
        run(
            train=DataLoader(dataset, 4, collate_fn=lambda p: Batch(torch.stack([b.x for b in p])))
        )[1].history,
    ]
    assert all(len(history) == 3 for history in orders)
    with pytest.raises(ValueError, match="train gave no batch in epoch 1; a generator"):
        run(train=(batch for batch in [toy_batch()]))


class Ruin(Callback):
    """Spoils the weights at the end of each epoch from the fourth on."""

    def on_epoch_end(self, context: Context) -> None:
        if context.epoch >= 3:
            with torch.no_grad():
                for parameter in context.loss.parameters():
                    parameter.add_(1.0)


def test_early_stopping_and_best_weights() -> None:
    arguments = {"validation": ToyBatches(2, seed=9), "callbacks": [Ruin()]}
    loss, result = run(epochs=20, early_stopping=2, **arguments)
    # Ruined after the validation of epoch 3, which is still good.
    assert result.best["epoch"] == 3 and len(result.history) == 6
    assert result.history[3]["validation_loss"] < result.history[2]["validation_loss"]


def test_best_weights_are_those_of_the_best_epoch() -> None:
    class Spoil(Callback):
        def on_step(self, context: Context) -> None:
            if context.step >= 14:
                Ruin().on_epoch_end(context)

    loss, result = run(epochs=6, validation=ToyBatches(2, seed=9), callbacks=[Spoil()])
    assert result.best["epoch"] == 2 and result.best_weights is not None
    loss.load_state_dict(result.best_weights)
    assert same_weights(loss, run(epochs=3)[0])


def test_callback_stops_and_adds_measures() -> None:
    class Stop(Callback):
        steps = 0

        def on_step(self, context: Context) -> None:
            assert context.batch_loss is not None and context.batch_loss.requires_grad is False
            self.steps += 1

        def on_epoch_end(self, context: Context) -> None:
            context.record["error"] = 0.25 * context.epoch
            context.stop = context.epoch == 1

    stop = Stop()
    _, result = run(epochs=9, callbacks=[stop])
    assert [r["error"] for r in result.history] == [0.0, 0.25] and stop.steps == 8


def test_freeze_holds_parameters_and_their_moments() -> None:
    class Watch(Callback):
        def on_epoch_end(self, context: Context) -> None:
            weights.append(context.loss.guide.encoder.weight.detach().clone())
            held.append(context.loss.guide.encoder.weight in context.optimizer.state)

    weights, held = [toy_pair()[1].encoder.weight.detach()], []
    loss = SequenceLoss(*toy_pair())
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2, weight_decay=0.1)
    freeze = Freeze(loss.guide.encoder, epochs=2)
    emission = loss.model.emission.weight.detach().clone()
    fit(loss, ToyBatches(), epochs=3, optimizer=optimizer, callbacks=[freeze, Watch()])
    same = [torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    assert same == [True, True, False] and held == [False, False, True]
    assert not torch.equal(emission, loss.model.emission.weight)
    assert (
        Freeze([loss.model, loss.guide.encoder.bias], 1).parameters[-1] is loss.guide.encoder.bias
    )
    with pytest.raises(ValueError, match="no parameters; nothing would be frozen"):
        Freeze(torch.nn.ReLU(), 1)


def test_freeze_may_reset_the_optimizer() -> None:
    class Count(Callback):
        def on_epoch_end(self, context: Context) -> None:
            states = context.optimizer.state.values()
            counts.append(sorted(int(state["step"]) for state in states))

    counts: list[list[int]] = []
    loss = SequenceLoss(*toy_pair())
    freeze = Freeze(loss.guide, epochs=2, reset_optimizer=True)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    fit(loss, ToyBatches(), epochs=3, optimizer=optimizer, callbacks=[freeze, Count()])
    assert counts == [[4, 4, 4], [], [4, 4, 4, 4, 4, 4]]


def warned(values: list[float], **arguments: Any) -> list[int]:  # noqa: ANN401
    """Epochs at which a plateau is warned of, when a measure takes these values."""
    watch = WarnOnPlateau(lambda context: values[context.epoch], message="Help.", **arguments)
    found = []
    for epoch in range(len(values)):
        context = Context(None, None, epoch=epoch)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.on_epoch_end(context)
        assert context.record[watch.name] == values[epoch]
        assert all(issubclass(w.category, PlateauWarning) for w in caught)
        assert all("Help." in str(w.message) for w in caught)
        found += [epoch] * len(caught)
    return found


@pytest.mark.parametrize(
    ("values", "arguments", "expected"),
    [
        ([0.0239, 0.0240, 0.0239, 0.01], {"reference": 0.0239}, [1, 2]),
        ([0.0240, 0.0230, 0.0239, 0.0240], {"reference": 0.0239}, [3]),
        ([0.3, 0.05, 0.02], {"reference": 0.0239}, [1]),
        ([-5.0, -5.05, -5.2], {"reference": -5.0}, [1]),
        ([1.0, 1.0], {"reference": 1.0, "patience": 3}, []),
        ([5.0, 4.0, 4.0, 4.1, 3.0], {"stall": 2}, [3]),
        ([5.0, 4.0, 3.0, 2.0], {"stall": 1}, []),
        ([5.0, 5.0, 4.0, 4.0], {"reference": 5.0, "stall": 1}, [1, 3]),
    ],
)
def test_plateau_warning(
    values: list[float], arguments: dict[str, Any], expected: list[int]
) -> None:
    assert warned(values, **arguments) == expected


def test_plateau_of_a_record_entry() -> None:
    with pytest.warns(PlateauWarning, match="validation_loss = .* not been below its best value"):
        run(
            rate=0.0,
            validation=ToyBatches(1),
            callbacks=[WarnOnPlateau("validation_loss", stall=1)],
        )
    with pytest.raises(ValueError, match="give a reference, or stall, or both"):
        WarnOnPlateau("loss")


class Poison(Callback):
    """Makes a parameter NaN after the sixth step."""

    def on_step(self, context: Context) -> None:
        if context.step == 6:
            with torch.no_grad():
                context.loss.model.emission.bias.fill_(float("nan"))


class Overflow(Callback):
    """Makes a gradient infinite in the sixth step."""

    def on_gradients(self, context: Context) -> None:
        if context.step == 5:
            context.loss.model.emission.bias.grad.fill_(float("inf"))


def test_loss_that_is_not_finite_is_named() -> None:
    where = r"the loss is nan at epoch 1, batch 2 \(step 6\); last checkpoint: none"
    with pyro.validation_enabled(False), pytest.raises(NonFiniteLossError, match=where):
        run(callbacks=[Poison()])
    where = r"'model.emission.bias'\] are not finite at epoch 1, batch 1 \(step 5\)"
    with pytest.raises(NonFiniteLossError, match=where) as caught:
        run(callbacks=[Poison()])
    assert isinstance(caught.value.__context__, ValueError), "Pyro's own error comes with it"


def test_gradient_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteLossError, match=r"norm of the gradients is (inf|nan) .*step 5"):
        run(callbacks=[Overflow()], clip_norm=1.0)
    with pytest.raises(NonFiniteLossError, match=r"emission.bias.* are not finite .*step 5"):
        run(callbacks=[Overflow()])


def test_error_in_a_step_says_where() -> None:
    class Break(Callback):
        def on_gradients(self, context: Context) -> None:
            if context.step == 5:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        run(callbacks=[Break()])
    note = "in training, epoch 1, batch 1 (step 5); last checkpoint: none"
    assert caught.value.__notes__ == [note]


def test_validation_loss_that_is_not_finite_is_named() -> None:
    bad = toy_batch()._replace(x=torch.full((6, 5, 3), float("inf")))
    with (
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteLossError, match="validation loss"),
    ):
        run(validation=[bad])


def test_logged_values() -> None:
    logger = MemoryLogger()
    _, result = run(epochs=2, loggers=[logger], log_every=3, clip_norm=1.0)
    steps = [row["step"] for row in logger.rows]
    assert steps == [3, 4, 6, 8]
    assert logger.rows[1]["loss"] == result.history[0]["loss"]
    assert logger.rows[0]["batch_loss"] > 0 and logger.rows[0]["gradient_norm"] > 1.0


def test_bfloat16_runs_the_networks_in_half_precision() -> None:
    types = set()
    loss = SequenceLoss(*toy_pair())
    loss.guide.encoder.register_forward_hook(lambda m, i, output: types.add(output.dtype))
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    result = fit(loss, ToyBatches(), epochs=4, optimizer=optimizer, precision="bfloat16")
    assert types == {torch.bfloat16}
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(p.dtype == torch.float32 for p in loss.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, got 0.0"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16', got 'float16'"),
        ({"early_stopping": 2}, "early_stopping needs validation"),
        ({"resume": True}, "need checkpoint_dir"),
        ({"checkpoint_every": 5}, "need checkpoint_dir"),
        ({"validation": []}, "validation has no observed step"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": toy_batch()}, "train must be batches .* got Batch"),
        ({"train": toy_batch().x}, "train must be batches .* got Tensor"),
        (
            {"validation": SequenceDataset(*toy_batch())},
            r"validation must be .*batches\(dataset, batch_size\) .* got SequenceDataset",
        ),
        ({"train": [toy_batch().x]}, "train must give batches of type Batch; got Tensor"),
    ],
)
def test_what_holds_no_batches_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(**arguments)


def test_optimizers_of_pyro_are_refused() -> None:
    loss = SequenceLoss(*toy_pair())
    with pytest.raises(TypeError, match="torch.optim; got PyroOptim. .* go with pyro.infer.SVI"):
        fit(loss, ToyBatches(), epochs=1, optimizer=pyro.optim.Adam({"lr": 0.1}))


def test_optimizer_of_other_parameters() -> None:
    loss, other = SequenceLoss(*toy_pair()), SequenceLoss(*toy_pair())
    with pytest.raises(ValueError, match="holds no parameter of the loss"):
        fit(loss, ToyBatches(), epochs=1, optimizer=torch.optim.SGD(other.parameters(), 0.1))
    with pytest.warns(UserWarning, match=r"stay fixed: \['guide.scale_unconstrained'"):
        optimizer = torch.optim.SGD(loss.model.parameters(), 1e-3)
        fit(loss, ToyBatches(1), epochs=1, optimizer=optimizer)


def test_progress_is_off_where_no_terminal_reads(capsys: pytest.CaptureFixture[str]) -> None:
    run(epochs=1)
    assert capsys.readouterr().err == ""
    run(epochs=1, progress=True, log_every=2)
    assert "4/4" in capsys.readouterr().err
