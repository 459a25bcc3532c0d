"""Chains of Pyro's NUTS, which resume at the draw they were interrupted at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vinppl.fit.chains import ChainJob, MCMCProgress, Message
from vinppl.fit.nuts import Chain, DrawStats
from vinppl.interrupts import deferred_interrupts

__all__ = ["PyroJob"]


class PyroJob(ChainJob):
    """A chain that is saved every now and then, and goes on from there to the same draws."""

    kind: ClassVar[str] = "nuts"

    def run(self) -> Iterator[Message]:
        """Yield progress after every draw, and the finished chain at the end."""
        options, chain = self.options, self._new()
        kept = _Kept()
        before = self._restore(chain, kept)
        began = saved_at = time.monotonic()

        def save() -> None:
            self._save(chain, kept, before + time.monotonic() - began)

        complete = True
        try:
            while chain.count < options.num_warmup + options.num_draws:
                keep = not chain.warming_up
                with deferred_interrupts():
                    complete = False
                    at = time.monotonic()
                    drawn = chain.draw()
                    if keep:
                        kept.add(chain.point, drawn, time.monotonic() - at)
                    complete = True
                yield MCMCProgress(self.index, chain.count, drawn, kept.divergences)
                if time.monotonic() - saved_at > options.checkpoint_every:
                    save()
                    saved_at = time.monotonic()
        finally:
            if complete:
                with deferred_interrupts():
                    save()
        seconds = before + time.monotonic() - began
        yield self.finished(torch.stack(kept.points), kept.table(), seconds, kept.seconds)

    def _new(self) -> Chain:
        return Chain(
            self.whitened,
            self.start(),
            num_warmup=self.options.num_warmup,
            seed=self.seed,
            target_accept=self.options.target_accept,
            max_tree_depth=self.options.max_tree_depth,
            dense_mass=self.options.dense_mass,
        )

    def _save(self, chain: Chain, kept: _Kept, seconds: float) -> None:
        points = torch.stack(kept.points) if kept.points else self.centre.new_zeros(0, self.centre.numel())
        self.save(
            {
                "chain": chain.state(),
                "draws": points,
                "stats": kept.table(),
                "seconds": seconds,
                "sampling_seconds": kept.seconds,
            }
        )

    def _restore(self, chain: Chain, kept: _Kept) -> float:
        """Continue a saved chain, if there is one; return the seconds it has run."""
        state = self.saved()
        if state is None:
            return 0.0
        chain.restore(state["chain"])
        for point, row in zip(state["draws"], state["stats"].tolist(), strict=True):
            kept.add(point, DrawStats(*row), 0.0)
        kept.seconds = float(state["sampling_seconds"])
        return float(state["seconds"])


class _Kept:
    """The draws after the warm-up, their statistics, and the seconds they took."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.stats: list[tuple[float, ...]] = []
        self.seconds = 0.0
        self.divergences = 0

    def add(self, point: Tensor, stats: DrawStats, seconds: float) -> None:
        self.points.append(point)
        self.stats.append(tuple(float(x) for x in stats))
        self.seconds += seconds
        self.divergences += bool(stats.diverging)

    def table(self) -> Tensor:
        return torch.tensor(self.stats, dtype=torch.float64)
