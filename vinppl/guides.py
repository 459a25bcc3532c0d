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
from torch import Tensor
from torch.distributions import biject_to

from vinppl._checks import require_choice
from vinppl.draws import latent_sites, prototype
from vinppl.encoders import INITIAL_SITES, WindowEncoder

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = [
    "AMORTISED",
    "GUIDES",
    "INITIAL_SITES",
    "AmortisedGuide",
    "FullRankGuide",
    "GuideName",
    "make_guide",
]

GuideName = Literal["full_rank", "mean_field", "low_rank", "map", "amortised", "amortised_mean_field"]
"""`full_rank`: one normal over all latents; `mean_field`: independent normals; `low_rank`: a
factor of low rank plus a diagonal; `map`: a point; `amortised`: the encoder's normal over initial
states, which follows one normal over the rest; `amortised_mean_field`: the same with independent
normals over the rest, which nothing follows."""

GUIDES: tuple[GuideName, ...] = (
    "full_rank",
    "mean_field",
    "low_rank",
    "map",
    "amortised",
    "amortised_mean_field",
)

AMORTISED: tuple[GuideName, ...] = ("amortised", "amortised_mean_field")
"""Those whose encoder reads the initial states of trajectories."""


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
    if name in AMORTISED:
        joint = name == "amortised"
        return AmortisedGuide(model, data, initial_values=initial_values, init_scale=init_scale, joint=joint)
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
        order = self.order_of(names)
        with torch.no_grad():
            self.centre.copy_(centre[order])
            self.factor.copy_(torch.linalg.cholesky(covariance[order][:, order]))
            self.shift.zero_()
            self.scale = torch.ones_like(self.centre)
            self.scale_tril = torch.eye(self.latent_dim, dtype=centre.dtype, device=centre.device)

    def order_of(self, names: Sequence[str]) -> Tensor:
        """Return where the guide's latents are in a vector that holds the sites in the order of `names`."""
        sizes = [max(1, self._unconstrained_shapes[name].numel()) for name in names]
        places = dict(zip(names, torch.arange(self.latent_dim).split(sizes), strict=True))
        return torch.cat([places[name] for name in self._unconstrained_shapes])

    def get_posterior(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """Return the normal over the unconstrained latents."""
        loc = self.centre + self.factor @ self.shift
        return MultivariateNormal(loc, scale_tril=self.factor @ (self.scale.unsqueeze(-1) * self.scale_tril))

    def whitened(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return A^-1 (z - m) of the latent sites, `(*batch, latent_dim)`, given values `(*batch, *site)`."""
        parts = []
        for name, shape in self._unconstrained_shapes.items():
            assert self.prototype_trace is not None
            z = biject_to(self.prototype_trace.nodes[name]["fn"].support).inv(values[name])
            parts.append(z.reshape(*z.shape[: z.ndim - len(shape)], -1))
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        offset = torch.cat([part.expand(*batch, -1) for part in parts], dim=-1) - self.centre
        return torch.linalg.solve_triangular(self.factor, offset.unsqueeze(-1), upper=False).squeeze(-1)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        posterior = self.get_posterior()
        return posterior.loc, posterior.covariance_matrix.diagonal().sqrt()


MAX_JOINT_SIZE = 100
"""Shared latent variables up to which an amortised guide has one normal over them."""


class AmortisedGuide(PyroModule):
    """q(x_1 | y) by an encoder over the whole window, paper eqs. (17)-(18), and q of the shared sites.

    The initial states of all trajectories are normal with the mean and covariance that a `WindowEncoder`
    reads off each window. New trajectories need no new fit: call the guide on them.

    All other latent sites (mass, noise, physics) have one normal in unconstrained space, a `FullRankGuide`,
    and the means of the initial states follow them linearly, as the encoder says: under another stiffness the
    same window began in another state. Where sites are in plates, there are more than 100 latent variables,
    or another encoder is given, they have independent normals instead, which nothing follows.

    Args:
        model: a Pyro model with the encoder's sites under a plate `trajectory`: `initial_position` and
            `initial_velocity` if it says nothing else.
        data: sets the number of channels and their typical sizes.
        initial_values: constrained starting values of the other sites.
        init_scale: their starting standard deviation.
        encoder: another recognition network. Called on the data it returns an object whose method
            `sample_sites` samples the sites that its attribute `sites` names.
        joint: whether the other sites have one normal, where they can.
    """

    def __init__(
        self,
        model: Any,
        data: Trajectories,
        *,
        initial_values: Mapping[str, Tensor] | None = None,
        init_scale: float = 0.05,
        encoder: torch.nn.Module | None = None,
        joint: bool = True,
    ) -> None:
        super().__init__()
        self.dim = data.dim
        sites: Sequence[str] = getattr(encoder, "sites", INITIAL_SITES)
        rest = poutine.block(model, hide=list(sites))
        size = _joint_size(prototype(rest, data)) if joint and encoder is None else 0
        self.is_joint = 0 < size <= MAX_JOINT_SIZE
        self.encoder = encoder or WindowEncoder(
            data.num_channels,
            data.dim,
            channel_index=data.channel_index,
            scale=channel_scale(data),
            num_shared=size if self.is_joint else 0,
        ).to(dtype=data.values.dtype, device=data.values.device)
        trace = poutine.block(poutine.trace(rest).get_trace)(data)
        self.has_rest = len(latent_sites(trace)) > 0
        self._plates: list[Any] = []  # that of the trajectories, which a trace may create only once
        start = _start(initial_values or {})
        self.rest: Any
        if self.is_joint:
            self.rest = FullRankGuide(rest, init_loc_fn=start, init_scale=init_scale)
        elif self.has_rest:
            self.rest = AutoNormal(
                rest, init_loc_fn=start, init_scale=init_scale, create_plates=lambda data: self._plates
            )

    def forward(self, data: Trajectories) -> dict[str, Tensor]:
        """Sample every latent site of the model given `data`."""
        self._plates = [pyro.plate("trajectory", data.num_trajectories, dim=-1)]
        shared = self.rest(data) if self.is_joint else {}
        posterior = self.encoder(data)
        if self.is_joint:
            posterior = posterior.given(self.rest.whitened(shared))
        with self._plates[0]:
            samples = posterior.sample_sites()
        if self.has_rest and not self.is_joint:
            shared = self.rest(data)
        return {**samples, **shared}


def _joint_size(trace: Any) -> int:
    """Return the number of unconstrained latent variables; 0 if some are in plates."""
    sites = [trace.nodes[name] for name in latent_sites(trace)]
    if any(frame.vectorized for site in sites for frame in site["cond_indep_stack"]):
        return 0
    return sum(biject_to(site["fn"].support).inv(site["value"]).numel() for site in sites)


def channel_scale(data: Trajectories) -> Tensor:
    """Return the root mean square of every channel over its observed entries, `(num_channels,)`."""
    rms = data.channel_rms
    return rms.clamp_min(torch.finfo(rms.dtype).eps)
