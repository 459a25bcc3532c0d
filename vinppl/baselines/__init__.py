"""What variational integrator networks are compared with, as Pyro components called like a `VIN`.

=====================  ====================================  ========================================
component              law                                   in the literature
=====================  ====================================  ========================================
`FreeField`, `euler`   x_{t+1} = x_t + h f_theta(x_t)        residual recurrent network (ResRNN)
`FreeField`, `rk4`     dx/dt = f_theta(x)                    neural ODE
`FreeMap`              x_{t+1} = g_theta(x_t)                feed-forward network
`HamiltonianNetwork`   dq/dt = dH_theta/dp, dp/dt = -dH/dq   Hamiltonian neural network (HNN)
=====================  ====================================  ========================================

x = (q, v). Where a coordinate is an angle, all networks see its sine and cosine. Rollouts run on
torch: a step is a few matrix products, which compiled scalar code would not make faster.

References:
    Chen et al., Neural ordinary differential equations, NeurIPS 2018; Greydanus, Dzamba, Yosinski,
    Hamiltonian neural networks, NeurIPS 2019.
"""

from vinppl.baselines.base import AbstractBaseline
from vinppl.baselines.fields import AbstractField, FreeField, HamiltonianNetwork
from vinppl.baselines.maps import FreeMap, NextState

__all__ = ["AbstractBaseline", "AbstractField", "FreeField", "FreeMap", "HamiltonianNetwork", "NextState"]
