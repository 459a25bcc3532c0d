"""Amortised guides: where they start, and the bound they are fitted by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from vinppl.encoders import InitialPosterior
from vinppl.errors import ConvergenceWarning, NumericalWarning
from vinppl.fit.ascent import laplace_covariance
from vinppl.fit.pretrain import pretrain_encoder
from vinppl.fit.starts import MAX_CURVATURE_SIZE, find_start, fit_point, starting_values
from vinppl.guides import INITIAL_SITES, AmortisedGuide, FullRankGuide, GuideName, make_guide
from vinppl.logdensity import LogDensity

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["AmortisedELBO", "initial_amortised"]


class AmortisedELBO(TraceMeanField_ELBO):
    """The evidence lower bound, with divergences in closed form where there are any.

    Automatic guides sample a constrained site z(u) as a point mass that carries -log |dz/du|. The divergence
    that Pyro registers for point masses leaves this out, so that a positive site would be fitted under the
    prior p(z) / z instead of p(z); here it is put back.
    """

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Tensor]:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name in model_trace.nodes and isinstance(site["fn"], Delta):
                density = site["score_parts"].entropy_term.sum()
                loss, surrogate = loss + float(density.detach()), surrogate + density
        return loss, surrogate


def initial_amortised(
    model: Any,
    whole: Trajectories,
    data: Trajectories,
    name: GuideName,
    start: Literal["mode", "values", "prior"],
) -> AmortisedGuide:
    """Build an amortised guide; teach potential and encoder what can be learned without sampling.

    Args:
        model: Pyro model of one argument, the data.
        whole: the measurements.
        data: what the guide reads first: them, or windows of them.
        name: of the guide.
        start: as in `SVIOptions`; with `prior` nothing is learned.
    """
    if callable(getattr(model, "make_encoder", None)):  # what it reads is not in the units of states
        encoder = model.make_encoder(data)
        if start != "prior":
            model.pretrain(whole, encoder)
        return AmortisedGuide(model, data, encoder=encoder, initial_values=starting_values(model, data))
    found = None
    if start != "prior":
        if callable(getattr(model, "pretrain", None)):
            model.pretrain(data)
        found = _mode(model, data) if start == "mode" else _Mode(starting_values(model, data))
    values = found.values if found else {}
    rest = {name: value for name, value in values.items() if name not in INITIAL_SITES}
    guide = make_guide(name, model, data, initial_values=rest)
    assert isinstance(guide, AmortisedGuide)
    if found is not None and values:
        if found.covariance is None:
            found = _curvature(model, data, values)
        pretrain_encoder(model, guide, data, values, _taught(guide, data, found))
    return guide


class _Mode(NamedTuple):
    """A mode of the posterior, and the inverse curvature there where it is known.

    Attributes:
        values: latent sites.
        density: in whose unconstrained coordinates the following are.
        centre: the mode, `(size,)`.
        covariance: shape `(size, size)`.
    """

    values: Mapping[str, Tensor]
    density: LogDensity | None = None
    centre: Tensor | None = None
    covariance: Tensor | None = None


def _mode(model: Any, data: Trajectories) -> _Mode:
    """Return a mode: of the latent sites, or together with learned parameters where there are any."""
    if isinstance(model, torch.nn.Module) and any(p.requires_grad for p in model.parameters()):
        return _Mode(fit_point(model, data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # only a start
        start = find_start(model, data)
    return _Mode(start.values, start.density, start.centre, start.covariance)


def _curvature(model: Any, data: Trajectories, values: Mapping[str, Tensor]) -> _Mode:
    """Return the inverse curvature at `values`, if there are not too many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        density = LogDensity(model, data, initial_values=values)
    known = density.size <= MAX_CURVATURE_SIZE
    covariance = laplace_covariance(density, density.initial) if known else None
    return _Mode(values, density, density.initial, covariance)


def _taught(guide: AmortisedGuide, data: Trajectories, mode: _Mode) -> InitialPosterior | None:
    """Give the normal of the shared sites the curvature at a mode; return what the encoder should read.

    That is the normal over initial states by the same curvature, conditional on the shared sites if the guide
    has one normal over them. `None` where the curvature is not known.
    """
    density, centre, covariance = mode.density, mode.centre, mode.covariance
    if density is None or centre is None or covariance is None:
        return None
    where = density.split(torch.arange(density.size))
    q, v = (where[name].reshape(mode.values[name].shape) for name in INITIAL_SITES)
    own = torch.cat([q, v], dim=-1)  # (trajectory, 2 dim)
    blocks, response = covariance[own.unsqueeze(-1), own.unsqueeze(-2)], None
    if guide.is_joint:
        assert isinstance(guide.rest, FullRankGuide)
        names = [name for name in density.names if name not in INITIAL_SITES]
        shared = torch.cat([where[name].reshape(-1) for name in names])
        poutine.block(guide)(data)  # builds the prototype
        guide.rest.set_geometry(names, centre[shared], covariance[shared][:, shared])
        ordered = shared[guide.rest.order_of(names)]
        moved = covariance[own.unsqueeze(-1), ordered]  # covariance of initial states and shared sites
        response = torch.linalg.solve_triangular(guide.rest.factor, moved.mT, upper=False).mT
        blocks = blocks - response @ response.mT
    return _conditional(torch.cat([mode.values[name] for name in INITIAL_SITES], dim=-1), blocks, response)


def _conditional(loc: Tensor, covariance: Tensor, response: Tensor | None) -> InitialPosterior:
    """Return the normal in the encoder's form, which couples a velocity to its own position only."""
    dim = loc.shape[-1] // 2
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    floor = 1e-6 * variance.amax(0)
    q, v = variance.clamp_min(floor).split(dim, dim=-1)
    cross = covariance[..., :dim, dim:].diagonal(dim1=-2, dim2=-1)
    coupling = cross / q
    remaining = torch.maximum(v - coupling * cross, floor[dim:])
    return InitialPosterior(loc, torch.cat([q, remaining], dim=-1).sqrt(), coupling, response)
