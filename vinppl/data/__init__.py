"""Measured and simulated trajectories: one container, readers with clear errors, splits and windows."""

from vinppl.data.channels import Channel
from vinppl.data.columns import ColumnSpec
from vinppl.data.readers import read_trajectories
from vinppl.data.trajectories import Trajectories
from vinppl.data.writers import column_spec, write_csv

__all__ = ["Channel", "ColumnSpec", "Trajectories", "column_spec", "read_trajectories", "write_csv"]
