"""When a forecast stops to hold: a model that has been right so far may not be right for ever.

A learned model explains what it was trained on. How long it will explain something new, no likelihood of
its own tells. Let it lapse at a rate of its own, unknown, after which frames come from a background that
knows no motion; frames that were explained so far bound the rate (Laplace's rule of succession, in time),
and the first frames of a new film tell whether it has lapsed already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vinppl._checks import require

__all__ = ["prior_survival", "survival"]


def prior_survival(times: Tensor, *, num_explained: float, num_fitted: Tensor | int = 0) -> Tensor:
    """Return the probability that the model holds through so many frames, before any of them is seen.

    With an exponential prior, of mean one a frame, over the rate of lapses, F explained frames leave
    Gamma(1, 1 + F) of it: P(no lapse within t frames) = (1 + F) / (1 + F + t).

    Args:
        times: numbers of frames, any shape.
        num_explained: F, the frames that the model was trained on.
        num_fitted: the first of these very frames that are among them: there it has not lapsed.
    """
    at_risk = (times - num_fitted).clamp_min(0)
    return (1 + num_explained) / (1 + num_explained + at_risk)


def survival(log_ratio: Tensor, *, num_times: int, num_explained: float, num_fitted: int = 0) -> Tensor:
    """Return the probability that the model still holds at each time, given the first measurements.

    Bayes' rule over the time of the lapse adds what the first frames say to `prior_survival`.

    Args:
        log_ratio: log density of each measured time under the model, less that under the background,
            `(*batch, measured)`.
        num_times: times to return, the measured ones first.
        num_explained: F, the frames that the model was trained on.
        num_fitted: the first of these very frames that are among them: there it has not lapsed.

    Returns:
        Shape `(*batch, num_times)`; it falls with time.

    Raises:
        ValueError: for fewer times than were measured, or a negative number of frames.
    """
    measured = log_ratio.shape[-1]
    require(num_times >= measured, f"num_times must be at least the {measured} measured", num_times)
    require(num_explained >= 0, "num_explained must be 0 or more", num_explained)
    times = torch.arange(num_times + 1, dtype=log_ratio.dtype, device=log_ratio.device)
    holds = prior_survival(times, num_explained=num_explained, num_fitted=num_fitted)
    lapses_at = holds[:-1] - holds[1:]  # at frame t, which is the first that the background draws
    gained = torch.nn.functional.pad(log_ratio, (1, num_times - measured)).cumsum(-1)  # over earlier frames
    weights = torch.cat([lapses_at.log() + gained[..., :-1], holds[-1].log() + gained[..., -1:]], dim=-1)
    return weights.softmax(-1).flip(-1).cumsum(-1).flip(-1)[..., 1:]
