"""Measured and simulated trajectories: one container, readers with clear errors, splits and windows."""

from vinppl.data.channels import Channel, pixel_channels
from vinppl.data.columns import ColumnSpec
from vinppl.data.readers import read_trajectories
from vinppl.data.trajectories import Trajectories
from vinppl.data.video import read_video, write_video
from vinppl.data.videofiles import is_video
from vinppl.data.writers import column_spec, write_csv

__all__ = [
    "Channel",
    "ColumnSpec",
    "Trajectories",
    "column_spec",
    "is_video",
    "pixel_channels",
    "read_trajectories",
    "read_video",
    "write_csv",
    "write_video",
]
