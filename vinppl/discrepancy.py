"""Forces that a model does not know: Gaussian processes over time that admit what its law leaves out.

A parametric law is an idealisation. Fitted without saying so, it explains what it cannot follow as noise,
its parameters take values that make up for it, and its forecasts are sure of themselves. A generalised
force d(t) beside the known ones, a Gaussian process for every trajectory, takes up what the law leaves
out; it enters the integrator as a discrete d'Alembert force, and beyond the data it goes on as its prior
given the past, so that bands widen as they should.

References: Kennedy and O'Hagan, Bayesian calibration of computer models, JRSS B 63 (2001), for the idea;
Alvarez, Luengo and Lawrence, Latent force models, AISTATS 2009, for processes as forces; Särkkä and Solin,
Applied stochastic differential equations (2019), section 12.3, for the Matérn process in state space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require, require_choice
from vinppl.draws import CONTINUATION
from vinppl.equations import DISCREPANCY_LINE
from vinppl.forces import KnotSignal
from vinppl.matern import MaternKnots, continue_path, matern_path
from vinppl.parameters import Component, Spec
from vinppl.priors import half_normal, log_normal, state_scales

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["DiscrepancyForce", "ForceCoordinates", "make_discrepancy"]

ForceCoordinates = Literal["innovations", "knots"]
"""In what coordinates a force is inferred; see `DiscrepancyForce`."""


class DiscrepancyForce(Component):
    """d(t), a Matérn-3/2 process: Cov[d(s), d(t)] = A^2 (1 + r) exp(-r), r = sqrt(3) |s - t| / l.

    Independent for every trajectory and coordinate. The process and its derivative are drawn at
    equidistant knots, exactly, and interpolated by cubics: at spacings up to half of l, that loses at most
    1.4 % of the variance between knots (A^2 (sqrt(3) spacing / l)^3 / 48 halfway).

    One process in two coordinates: `innovations`, standard normal numbers, suit forces that the data say
    little about; `knots`, the force itself, those that precise measurements pin down, whose innovations
    would have to follow every change of amplitude and correlation time (Papaspiliopoulos, Roberts and
    Sköld, Statistical Science 22 (2007), on non-centred and centred parametrisations).

    Call it outside of plates, as the VIN whose force it is.

    Args:
        amplitude: A, the stationary standard deviation; force. `None` for a law that is trusted: no force.
        correlation_time: l, in units of time.
        spacing: time between knots.
        span: time from the first sample of a trajectory on over which the force is inferred: the longest
            trajectory of the fit.
        dim: number of coordinates.
        coordinates: see above.

    Sites:
        `amplitude`, `correlation_time`; `innovations` or `knots`, `(knots, 2 dim)` for each trajectory; in
        forecasts `continuation`, the innovations of later knots; outside of inference `force`.

    Raises:
        ValueError: if the spacing or the span is not positive, or for unknown coordinates.
    """

    default_name: ClassVar[str] = "discrepancy"

    def __init__(
        self,
        amplitude: Spec | None,
        correlation_time: Spec = 1.0,
        *,
        spacing: float = 1.0,
        span: float = 1.0,
        dim: int = 1,
        coordinates: ForceCoordinates = "innovations",
    ) -> None:
        super().__init__()
        self.active = amplitude is not None
        require(spacing > 0 and math.isfinite(spacing), "spacing must be positive and finite", spacing)
        require(span > 0 and math.isfinite(span), "span must be positive and finite", span)
        require_choice("coordinates", coordinates, ("innovations", "knots"))
        self.spacing, self.dim, self.coordinates = spacing, dim, coordinates
        self.num_knots = self._count(span)
        self.typical: dict[str, float] = {}
        self.declare("amplitude", 1.0 if amplitude is None else amplitude, support=constraints.positive)
        self.declare("correlation_time", correlation_time, support=constraints.positive)

    def _site(self, name: str) -> str:
        """Return the name of a site; unlike Pyro's, also before the model has run."""
        return f"{self._pyro_name}.{name}" if self._pyro_name else name

    def _count(self, span: float) -> int:
        """Return the number of knots that reach from zero to `span`, two at least."""
        return max(1, math.ceil(span / self.spacing - 1e-6)) + 1

    def forward(self, data: Trajectories, trajectories: Any) -> KnotSignal | None:
        """Draw the force over the times of `data`; `None` for none.

        Args:
            data: sets the times.
            trajectories: the plate of the trajectories.
        """
        if not self.active:
            return None
        amplitude, ratio = self.amplitude, self.spacing / self.correlation_time
        scale = amplitude[..., None, None]
        origin = data.times[:, :1]
        more = self._count(float((data.times - origin).amax())) - self.num_knots
        with trajectories:
            if self.coordinates == "knots":
                process = MaternKnots(amplitude, ratio, self.num_knots, self.dim)
                values, slopes = pyro.sample(self._site("knots"), process).chunk(2, dim=-1)
            else:
                z = self._innovations("innovations", self.num_knots)
                values, slopes = (scale * x for x in matern_path(z, ratio))
            if more > 0:
                z = self._innovations("continuation", more, infer={CONTINUATION: True})
                values, slopes = continue_path(values, slopes, z, amplitude, ratio)
        shared = bool((origin == origin[:1]).all())
        return KnotSignal(origin[0] if shared else origin, self.spacing, values, slopes)

    def _innovations(self, name: str, count: int, infer: Any = None) -> Tensor:
        """Draw standard normal numbers `(*batch, trajectory, count, 2 dim)`."""
        standard = Normal(self._reference.new_zeros(count, 2 * self.dim), 1.0).to_event(2)
        return pyro.sample(self._site(name), standard, infer=infer)  # type: ignore[no-any-return]

    def record(self, force: KnotSignal | None, data: Trajectories) -> None:
        """Store the force at the times of `data` as deterministic site `force`, inside of the plate.

        Not while gradients are recorded (inference), where nothing looks at it.
        """
        if force is not None and not torch.is_grad_enabled():
            pyro.deterministic(self._site("force"), force.at(data.grid().times), event_dim=2)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return where inference starts: no force, and its scales at the medians of their priors."""
        if not self.active:
            return {}
        shape = (data.num_trajectories, self.num_knots, 2 * self.dim)
        scales = {self._site(name): data.values.new_tensor(value) for name, value in self.typical.items()}
        return {**scales, self._site(self.coordinates): data.values.new_zeros(shape)}

    @property
    def term(self) -> str:
        """The force in an equation of motion; empty for none."""
        return "d_n(t)" if self.active else ""

    @property
    def equations(self) -> tuple[str, ...]:
        """What is assumed of the force; nothing for none."""
        return (DISCREPANCY_LINE,) if self.active else ()

    @property
    def scale_sites(self) -> tuple[str, ...]:
        """Latent scales of the process, of which its most probable path together with them says nothing."""
        return tuple(self._site(name) for name in self.typical)


def make_discrepancy(
    data: Trajectories,
    amplitude: float | None,
    correlation_time: tuple[float, float] | None = None,
    *,
    coordinates: ForceCoordinates = "innovations",
) -> DiscrepancyForce:
    """Return the force with weakly informative priors, its knots half of the typical correlation time apart.

    The half-normal prior of the amplitude is highest at zero: without evidence the law is believed.

    Args:
        data: what will be fitted; sets the span.
        amplitude: scale of the half-normal prior of the amplitude, in units of force; `None` for no force.
        correlation_time: median and sd of the logarithm of the log-normal prior of the correlation time.
            `None` takes rms q / rms v, about a sixth of the period of an oscillation, and 0.5.
        coordinates: see `DiscrepancyForce`.
    """
    if amplitude is None:
        return DiscrepancyForce(None, dim=data.dim)
    if correlation_time is None:
        q_scale, v_scale = state_scales(data)
        correlation_time = float((q_scale / v_scale).median()), 0.5
    span = float((data.times - data.times[:, :1]).amax())
    force = DiscrepancyForce(
        half_normal(amplitude),
        log_normal(*correlation_time),
        spacing=0.5 * correlation_time[0],
        span=span,
        dim=data.dim,
        coordinates=coordinates,
    )
    force.typical = {"amplitude": 0.6745 * amplitude, "correlation_time": correlation_time[0]}
    return force
