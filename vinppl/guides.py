"""Variational families: automatic ones by name, and the encoder-amortised guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, constraints
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vinppl._checks import require_choice
from vinppl.encoders import INITIAL_SITES, WindowEncoder

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["GUIDES", "INITIAL_SITES", "AmortisedGuide", "FullRankGuide", "GuideName", "make_guide"]

GuideName = Literal["full_rank", "mean_field", "low_rank", "map", "amortised"]
"""`full_rank`: one normal over all latents; `mean_field`: independent normals; `low_rank`: a
factor of low rank plus a diagonal; `map`: a point; `amortised`: the encoder's normal over
initial states, independent normals over the rest."""

GUIDES: tuple[GuideName, ...] = ("full_rank", "mean_field", "low_rank", "map", "amortised")


def make_guide(
    name: GuideName,
    model: Any,
    data: Trajectories,
    *,
    initial_values: Mapping[str, Tensor] | None = None,
    init_scale: float = 0.05,
) -> AutoGuide | AmortisedGuide:
    """Return the guide of that name for `model`.

    Args:
        name: see `GuideName`.
        model: the Pyro model.
        data: what it will be fitted to.
        initial_values: constrained starting values by site; others start at the prior median.
        init_scale: starting standard deviation in unconstrained space.

    Raises:
        ValueError: for an unknown name.
    """
    require_choice("guide", name, GUIDES)
    start = _start(initial_values or {})
    if name == "amortised":
        return AmortisedGuide(model, data, initial_values=initial_values, init_scale=init_scale)
    if name == "map":
        return AutoDelta(model, init_loc_fn=start)
    if name == "mean_field":
        return AutoNormal(model, init_loc_fn=start, init_scale=init_scale)
    if name == "low_rank":
        return AutoLowRankMultivariateNormal(model, init_loc_fn=start, init_scale=init_scale)
    return FullRankGuide(model, init_loc_fn=start, init_scale=init_scale)


def _start(values: Mapping[str, Tensor]) -> Callable[..., Any]:
    return init_to_value(values=dict(values), fallback=init_to_median(num_samples=25))


class FullRankGuide(AutoContinuous):
    """A normal over all latents in unconstrained space, learned in whitened coordinates.

    z = m + A (mu + L e) with e standard normal: m and A are fixed, mu and the lower triangle L
    are learned. With m a mode and A A^T the inverse curvature there, the optimiser starts at mu = 0,
    L = 1 and all its directions have the scale of the posterior, however narrow or tilted that is.

    Args:
        model: a Pyro model.
        init_loc_fn: per-site starting values, for m.
        init_scale: standard deviation to begin with; A is the identity until `set_geometry`.
    """

    centre: Tensor
    factor: Tensor
    scale: Any
    scale_tril: Any

    def __init__(
        self, model: Any, init_loc_fn: Callable[..., Any] = init_to_median, *, init_scale: float = 0.1
    ) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._init_scale = init_scale

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        centre = self._init_loc()
        eye = torch.eye(self.latent_dim, dtype=centre.dtype, device=centre.device)
        self.register_buffer("centre", centre)
        # Without a geometry the optimiser moves in the latents' own units, as fast as for other guides.
        self.register_buffer("factor", eye.clone())
        self.shift = torch.nn.Parameter(torch.zeros_like(centre))
        self.scale = PyroParam(torch.full_like(centre, self._init_scale), constraints.softplus_positive)
        self.scale_tril = PyroParam(eye.clone(), constraints.unit_lower_cholesky)

    def set_geometry(self, names: Sequence[str], centre: Tensor, covariance: Tensor) -> None:
        """Become the normal of this mean and covariance in unconstrained space; the guide must have run once.

        Args:
            names: latent sites, in the order in which `centre` holds them.
            centre: shape `(latent_dim,)`.
            covariance: positive definite, shape `(latent_dim, latent_dim)`.
        """
        sizes = [max(1, self._unconstrained_shapes[name].numel()) for name in names]
        places = dict(zip(names, torch.arange(self.latent_dim).split(sizes), strict=True))
        order = torch.cat([places[name] for name in self._unconstrained_shapes])
        with torch.no_grad():
            self.centre.copy_(centre[order])
            self.factor.copy_(torch.linalg.cholesky(covariance[order][:, order]))
            self.shift.zero_()
            self.scale = torch.ones_like(self.centre)
            self.scale_tril = torch.eye(self.latent_dim, dtype=centre.dtype, device=centre.device)

    def get_posterior(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """Return the normal over the unconstrained latents."""
        loc = self.centre + self.factor @ self.shift
        return MultivariateNormal(loc, scale_tril=self.factor @ (self.scale.unsqueeze(-1) * self.scale_tril))

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        posterior = self.get_posterior()
        return posterior.loc, posterior.covariance_matrix.diagonal().sqrt()


class AmortisedGuide(PyroModule):
    """q(x_1 | y) by an encoder over the whole window, paper eqs. (17)-(18).

    The initial states of all trajectories are normal with the mean and standard
    deviation that a `WindowEncoder` reads off each window; every other latent site
    of the model (mass, noise, Bayesian weights) has an independent normal. New
    trajectories need no new fit: call the guide on them.

    Args:
        model: a Pyro model with the encoder's sites under a plate `trajectory`: `initial_position` and
            `initial_velocity` if it says nothing else.
        data: sets the number of channels and their typical sizes.
        initial_values: constrained starting values of the other sites.
        init_scale: their starting standard deviation.
        encoder: another recognition network. Called on the data it returns an object whose method
            `sample_sites` samples the sites that its attribute `sites` names.
    """

    def __init__(
        self,
        model: Any,
        data: Trajectories,
        *,
        initial_values: Mapping[str, Tensor] | None = None,
        init_scale: float = 0.05,
        encoder: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.dim = data.dim
        scale = channel_scale(data)
        self.encoder = encoder or WindowEncoder(
            data.num_channels, data.dim, channel_index=data.channel_index, scale=scale
        ).to(dtype=data.values.dtype, device=data.values.device)
        sites: Sequence[str] = getattr(self.encoder, "sites", INITIAL_SITES)
        rest = poutine.block(model, hide=list(sites))
        trace = poutine.block(poutine.trace(rest).get_trace)(data)
        self.has_rest = any(
            site["type"] == "sample"
            and not site["is_observed"]
            and not site_is_subsample(site)
            and not site["infer"].get("_deterministic")
            for site in trace.nodes.values()
        )
        self._plates: list[Any] = []  # that of the trajectories, which a trace may create only once
        if self.has_rest:
            self.rest = AutoNormal(
                rest,
                init_loc_fn=_start(initial_values or {}),
                init_scale=init_scale,
                create_plates=lambda data: self._plates,
            )

    def forward(self, data: Trajectories) -> dict[str, Tensor]:
        """Sample every latent site of the model given `data`."""
        posterior = self.encoder(data)
        self._plates = [pyro.plate("trajectory", data.num_trajectories, dim=-1)]
        with self._plates[0]:
            samples = posterior.sample_sites()
        return {**samples, **self.rest(data)} if self.has_rest else samples


def channel_scale(data: Trajectories) -> Tensor:
    """Return the root mean square of every channel over its observed entries, `(num_channels,)`."""
    rms = data.channel_rms
    return rms.clamp_min(torch.finfo(rms.dtype).eps)
