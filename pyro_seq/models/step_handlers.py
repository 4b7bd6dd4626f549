"""Effect handlers around one step of a step model, and the frames that go into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message, get_plates
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import transform_to

from pyro_seq.ops.trees import where

__all__ = [
    "FRAME",
    "active_batch_shape",
    "at_step",
    "explaining",
    "frame_at",
    "hide",
    "in_support",
    "is_likelihood",
    "observe",
    "predicted",
    "spread",
    "touch",
]

FRAME = "x"
_WITHOUT_MEAN = (dist.Cauchy, dist.HalfCauchy, dist.StudentT, dist.MultivariateStudentT)


class at_step(Messenger):  # noqa: N801 - named like Pyro's own handlers
    """Names the sites of a step by its number: `"z"` becomes `"z_3"`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _pyro_sample(self, msg: Message) -> None:
        msg["name"] = f"{msg['name']}_{self.number}"


class observe(Messenger):  # noqa: N801 - named like Pyro's own handlers
    """Scores observed sites where the frame was seen, and predicts the frame elsewhere.

    The innermost handler of a step.

    Args:
        seen: bool `(*batch)`, or None where all frames were seen.

    Attributes:
        frame: Value of the site `"x"`: observed, predicted or generated.

    Raises:
        ValueError: At the end of a step without that site.
    """

    frame: Tensor

    def __init__(self, seen: Tensor | None) -> None:
        super().__init__()
        self.seen = seen
        self._prediction: Tensor | None = None
        self._site = ""

    def __enter__(self) -> observe:
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        super().__exit__(*error)
        if error == (None, None, None) and not hasattr(self, "frame"):
            raise ValueError("the step must sample the frame: pyro.sample('x', ..., obs=x_t)")

    def _pyro_sample(self, msg: Message) -> None:
        self._site, self._prediction = str(msg["name"]), None
        if self.seen is None or not is_likelihood(msg):
            return
        fn: Any = msg["fn"]
        value: Any = msg["value"]
        msg["mask"] = self.seen if msg["mask"] is None else msg["mask"] & self.seen
        if not isinstance(fn, dist.Unit):
            self._prediction = predicted(fn)
            msg["value"] = in_support(fn, value, self.seen)

    def _pyro_post_sample(self, msg: Message) -> None:
        value: Any = msg["value"]
        if self.seen is not None and self._prediction is not None:
            value = torch.where(spread(self.seen, msg["fn"]), value, self._prediction)
            msg["value"] = value
        if self._site == FRAME:
            self.frame = value


@contextmanager
def explaining(x_t: Tensor | None, u_t: Tensor | None) -> Iterator[None]:
    """Adds to an error in a step what may be why: an argument None, an event not declared."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        if "NoneType" in str(error):
            if x_t is None:
                error.add_note(
                    "x_t is None where frames are generated. What a step needs of the frame is "
                    "the value that pyro.sample('x', ..., obs=x_t) returns"
                )
            if u_t is None:
                error.add_note(
                    "u_t is None, since the model has no controls. One that reads u_t sets its "
                    "attribute controls to the size of u"
                )
        raise
    except ValueError as error:
        if "Shape mismatch inside plate" in str(error):
            error.add_note("Declare the dimensions of one value with .to_event(n)")
        raise


def is_likelihood(msg: Message) -> bool:
    """Whether a message is an observed site that counts in the density of the model."""
    if site_is_subsample(msg) or not msg["is_observed"]:
        return False
    return not (msg["infer"] or {}).get("_deterministic", False)


def predicted(distribution: Any) -> Tensor:  # noqa: ANN401
    """The mean of a distribution, or its location where it has none."""
    core = distribution
    while hasattr(core, "base_dist"):
        core = core.base_dist
    if isinstance(core, _WITHOUT_MEAN):
        return core.loc if hasattr(core, "loc") else core.scale
    return distribution.mean


def in_support(distribution: Any, value: Tensor, seen: Tensor | None) -> Tensor:  # noqa: ANN401
    """The value where it was seen, and elsewhere one that can be scored, for nobody to read."""
    if seen is None:
        return value
    support = distribution.support
    if support.is_discrete:
        other = torch.zeros_like(value)
        if isinstance(distribution, dist.OneHotCategorical):
            other[..., 0] = 1
    else:
        other = transform_to(support)(torch.zeros_like(value)).detach()
    return torch.where(spread(seen, distribution), value, other)


def spread(seen: Tensor, distribution: Any) -> Tensor:  # noqa: ANN401
    """The mask with a dimension of 1 for each of the frame's."""
    return seen.reshape(*seen.shape, *(1,) * len(distribution.event_shape))


def hide(x: Tensor, mask: Tensor | None) -> Tensor:
    """Frames with zeros where they are missing, whatever stood there."""
    return x if mask is None else where(mask, x, torch.zeros_like(x))


def frame_at(
    x: Tensor | None, mask: Tensor | None, number: int, batch_shape: Size
) -> tuple[Tensor | None, Tensor | None]:
    """One frame `(*batch, *frame)`, zero where it is missing, and where it was seen `(*batch)`."""
    here = None if mask is None else mask[:, number]
    seen = None if here is None else here.expand(batch_shape)
    if x is None:
        return None, seen
    x_t = hide(x[:, number], here)
    return x_t.expand(*batch_shape, *x_t.shape[1:]), seen


def active_batch_shape() -> Size:
    """The batch shape that the plates around this point make."""
    sizes = {frame.dim: frame.size for frame in get_plates() if frame.dim is not None}
    return Size([sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)])


def touch(module: PyroModule) -> None:
    """Reads every parameter of a module, so that Pyro's handlers see it."""
    for part in module.modules():
        if isinstance(part, PyroModule):
            for name in (*part._parameters, *part._modules, *part._pyro_params):
                getattr(part, name)
