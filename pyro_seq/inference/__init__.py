"""Objectives of variational inference and the handlers that change them."""

from pyro_seq.inference.handlers import site_scale

__all__ = ["site_scale"]
