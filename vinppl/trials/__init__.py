"""Studies: many independent trials in parallel, resumed after an interruption, and tables of their results.

run_study      what the scripts of studies call, with their options
run_trials     run what a folder does not hold yet: here, on this machine's cores, or on a dask cluster
table          the rows of all trials as one frame
write_table    a CSV file that says which command and commit made it
"""

from vinppl.trials.records import Trial, TrialResult
from vinppl.trials.run import Progress, print_progress, run_trials
from vinppl.trials.study import StudyOptions, run_study
from vinppl.trials.tables import code_version, read_table, table, write_table

__all__ = [
    "Progress",
    "StudyOptions",
    "Trial",
    "TrialResult",
    "code_version",
    "print_progress",
    "read_table",
    "run_study",
    "run_trials",
    "table",
    "write_table",
]
