r"""The iterative inference network: a learnt optimiser of a posterior's parameters.

.. math:: \lambda \leftarrow f_\phi(\lambda, \nabla_\lambda F)

References:
    Marino, Yue, Mandt (2018), Iterative amortized inference.
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["NORMALISATIONS", "UPDATES", "IterativeInference", "layer_norm"]

UPDATES = ("highway", "sgd")
NORMALISATIONS = ("layer", "log", "none")


class IterativeInference(nn.Module):
    r"""One update of a posterior's parameters from themselves and their gradients.

    The inputs, normalised, go through dense layers with highway gates,

    .. math::
        h \leftarrow g \odot h + (1 - g) \odot \mathrm{ELU}(W h), \quad
        g = \mathrm{sigm}(W_g h)

    (in the first layer a linear map of the input stands for the gated h), and the update is

    - ``"highway"``: :math:`\lambda' = g_\lambda \odot \lambda + (1 - g_\lambda) \odot o`,
    - ``"sgd"``: :math:`\lambda' = \lambda - g_\lambda \odot \nabla_\lambda F + o`, a learnt step.

    Args:
        sizes: Size of each group of parameters, by name.
        hidden: Units of each layer, all alike.
        update: One of :data:`UPDATES`.
        reads: `"parameters"`, `"gradients"`, or both: what is normalised and read.
        others: Size of each further input, by name; see :meth:`share`.
        normalise: `"log"` (:math:`\mathrm{sign}(v) \log(1 + |v|)`, keeps magnitudes), `"layer"`
            (the authors': zero mean and unit deviation over a group, so that a gradient that is
            almost zero reads like any other) or `"none"`.
        gradient_scale: Factor on the gradient in the learnt step.

    Raises:
        ValueError: For an unknown name, or layers of different width.

    Example:
        >>> network = IterativeInference({"loc": 4, "scale": 4}, hidden=[8])
        >>> now = {"loc": torch.zeros(2, 4), "scale": torch.zeros(2, 4)}
        >>> network(now, now)["loc"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        hidden: Sequence[int] = (1024, 1024),
        update: str = "highway",
        reads: Sequence[str] = ("parameters", "gradients"),
        others: Mapping[str, int] | None = None,
        normalise: str = "log",
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("update", update, UPDATES)
        check_choice("normalise", normalise, NORMALISATIONS)
        for read in reads:
            check_choice("reads", read, ("parameters", "gradients"))
        if not hidden or len(set(hidden)) > 1:
            raise ValueError(f"hidden must have one or more layers of one width; got {hidden}")
        self.sizes = dict(sizes)
        self.update, self.normalise, self.reads = update, normalise, tuple(reads)
        self.gradient_scale = gradient_scale
        total, width = sum(self.sizes.values()), hidden[0]
        self.first = RepeatedLinear(max(total * len(self.reads), 1), 3 * width)
        self.others = nn.ModuleDict(
            {
                name: RepeatedLinear(size, 3 * width, bias=False)
                for name, size in (others or {}).items()
            }
        )
        self.layers = nn.ModuleList(RepeatedLinear(width, 2 * width) for _ in hidden[1:])
        self.head = RepeatedLinear(width, 2 * total)
        with torch.no_grad():  # to begin with, most of what is known is kept, and steps are short
            self.head.bias[total:].fill_(1.0 if update == "highway" else -4.0)

    def forward(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        shares: Sequence[Tensor] = (),
        now: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The parameters after one update.

        Args:
            parameters: Each group `(*batch, size)`, as they are read.
            gradients: Gradients of the free energy of each element of the batch in `now`.
            shares: What :meth:`share` made of the further inputs.
            now: The parameters as they are updated, if that is in other coordinates.
        """
        terms = {"parameters": parameters, "gradients": gradients}
        inputs = [
            self._normalised(terms[read][name]) for read in self.reads for name in self.sizes
        ]
        if not inputs:  # all that is read comes in shares
            inputs = [torch.zeros_like(next(iter(parameters.values()))[..., :1])]
        total = self.first(torch.cat(inputs, -1))
        for share in shares:
            total = total + share
        linear, new, gate = total.chunk(3, -1)
        h = torch.lerp(functional.elu(new), linear, gate.sigmoid())
        for layer in self.layers:
            new, gate = layer(h).chunk(2, -1)
            h = torch.lerp(functional.elu(new), h, gate.sigmoid())
        output, gate = self.head(h).chunk(2, -1)
        old = torch.cat([(now or parameters)[name] for name in self.sizes], -1)
        if self.update == "highway":
            after = torch.lerp(output, old, gate.sigmoid())
        else:
            slope = torch.cat([gradients[name] for name in self.sizes], -1)
            after = old - self.gradient_scale * gate.sigmoid() * slope + output
        return dict(zip(self.sizes, after.split([*self.sizes.values()], -1), strict=True))

    def share(self, name: str, value: Tensor) -> Tensor:
        """What a further input `(*batch, size)` adds to the first layer.

        It does not change from one iteration to the next, and is computed once for all.
        """
        return self.others[name](value)

    def _normalised(self, values: Tensor) -> Tensor:
        if self.normalise == "layer":
            return layer_norm(values)
        return values.sign() * values.abs().log1p() if self.normalise == "log" else values


def layer_norm(values: Tensor) -> Tensor:
    """Zero mean and unit deviation over the last dimension; zero where all values are alike."""
    return functional.layer_norm(values, values.shape[-1:], eps=1e-14)
