"""What a controller tells the heads of a memory, and what a memory writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["WRITES", "Interface", "RowWriter", "Start"]

Start: TypeAlias = Mapping[str, float | Tensor]

WRITES = ("latent_tag", "latent_add", "linear", "tanh")
_TAG, _PAIR = 4, 8


class Interface(nn.Module):
    """One dense layer for all parameters of all heads, by name.

    Args:
        inputs: Size of what the controller gives out.
        parts: The shape of each part.
        start: Biases to begin with, for the parts that have them: a number, or a tensor that
            broadcasts to the part's shape.

    Example:
        >>> layer = Interface(8, {"queries": (2, 3), "strengths": (2,)}, {"strengths": 2.0})
        >>> layer(torch.zeros(5, 8))["queries"].shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        inputs: int,
        parts: Mapping[str, Sequence[int]],
        start: Start | None = None,
    ) -> None:
        super().__init__()
        self.parts = {name: torch.Size(shape) for name, shape in parts.items()}
        self.sizes = [shape.numel() for shape in self.parts.values()]
        self.layer = RepeatedLinear(inputs, sum(self.sizes))
        with torch.no_grad():
            for name, value in (start or {}).items():
                bias = self.rows_of(name, self.layer.bias)
                bias.view(self.parts[name]).copy_(torch.as_tensor(value))

    def rows_of(self, name: str, of: Tensor) -> Tensor:
        """The rows of weight or bias that make one part."""
        return dict(zip(self.parts, of.split(self.sizes), strict=True))[name]

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        """All parts, `(*batch, *shape)` each, for h `(*batch, inputs)`."""
        pieces = self.layer(h).split(self.sizes, -1)
        shapes = self.parts.items()
        return {n: p.unflatten(-1, s) for (n, s), p in zip(shapes, pieces, strict=True)}


class RowWriter(nn.Module):
    r"""The row that is written for a latent.

    With v the parameters that the controller gives:

    - `"latent_tag"`: :math:`[z_{t-1}, \tanh v]`: the latent as it is, and a learnt tag to find
      it by; with `previous`, :math:`[z_{t-1}, P z_{t-2} + \tanh v]`: the tag also says what came
      before, so that a latent is found by its predecessor;
    - `"latent_add"`: :math:`z_{t-1} + v`;
    - `"linear"`: v, the write of the papers' DNC, and `"tanh"`: :math:`\tanh v`.

    Args:
        latent: Size of z.
        write: One of :data:`WRITES`.
        word: Size of a row. None for the latent, with a tag of 4 beside it, or of 8 for pairs.
        previous: Whether to write pairs.
        tied: Whether queries are to be tied to the rows, see :meth:`cue`.

    Attributes:
        word: Size of a row.
        parameters_size: Size of v.

    Raises:
        ValueError: When the write is unknown, the word does not hold the latent, pairs have
            no tag to stand in, or queries are tied to rows that hold no latent.
    """

    def __init__(
        self,
        latent: int,
        write: str,
        word: int | None = None,
        *,
        previous: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        check_choice("write", write, WRITES)
        check_positive(latent=latent)
        if word is None:
            word = latent + (write == "latent_tag") * (_PAIR if previous else _TAG)
        check_positive(word=word)
        tag = word - latent
        if (write == "latent_add" and tag) or (write == "latent_tag" and tag < 0):
            raise ValueError(
                f"word must {'be' if write == 'latent_add' else 'be at least'} the size of the "
                f"latent, {latent}, which write={write!r} stores as it is; got {word}"
            )
        if previous and (write != "latent_tag" or not tag):
            raise ValueError(
                "write_previous needs write='latent_tag' and a word larger than the latent: the "
                f"tag holds the latent before; got write={write!r}, word={word}, latent={latent}"
            )
        if tied and write not in ("latent_tag", "latent_add"):
            raise ValueError(
                "tied_query needs rows that hold the latent, write='latent_tag' or "
                f"'latent_add'; got write={write!r}"
            )
        self.write, self.word, self.previous, self.tied = write, word, previous, tied
        self.parameters_size = tag if write == "latent_tag" else word
        if previous:
            self.pair = RepeatedLinear(latent, tag, bias=False)
            nn.init.orthogonal_(self.pair.weight)

    def forward(self, z: Tensor, parameters: Tensor, previous: Tensor) -> Tensor:
        r"""Rows of all write heads.

        Args:
            z: :math:`z_{t-1}`, `(*batch, latent)`.
            parameters: v, `(*batch, heads, parameters_size)`.
            previous: :math:`z_{t-2}`, `(*batch, latent)`; not read unless there are pairs.

        Returns:
            `(*batch, heads, word)`.
        """
        z = z.unsqueeze(-2)
        if self.write == "latent_add":
            return z + parameters
        if self.write == "linear":
            return parameters
        tag = parameters.tanh()
        if self.write == "tanh":
            return tag
        if self.previous:
            tag = tag + self.pair(previous).unsqueeze(-2)
        return torch.cat([z.expand(*tag.shape[:-1], -1), tag], -1)

    def cue(self, queries: Tensor, z: Tensor) -> Tensor:
        r"""Queries, with :math:`[z, 0]` added, or :math:`[0, P z]` for pairs, if they are tied.

        Args:
            queries: `(*batch, heads, word)`.
            z: `(*batch, latent)`.
        """
        if not self.tied:
            return queries
        if self.previous:
            cue = torch.cat([torch.zeros_like(z), self.pair(z)], -1)
        else:
            cue = nn.functional.pad(z, (0, self.word - z.shape[-1]))
        return queries + cue.unsqueeze(-2)
