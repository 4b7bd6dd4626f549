"""Objectives of variational inference and the handlers that change them."""

from pyro_seq.inference.filtering import FilteringELBO
from pyro_seq.inference.handlers import site_scale, without_auxiliary
from pyro_seq.inference.particles import FIVO, IWAE
from pyro_seq.inference.trace_elbo import DeviceTraceELBO

__all__ = ["FIVO", "IWAE", "DeviceTraceELBO", "FilteringELBO", "site_scale", "without_auxiliary"]
