"""Results as ArviZ objects: plain arrays in, `InferenceData` or `DataTree` out, netCDF files on disk.

ArviZ changed its container at version 1: up to 0.23 it is `arviz.InferenceData`
(Python 3.11), from 1 on it is `xarray.DataTree` (Python 3.12 and newer). This
module builds whichever the installed ArviZ understands from the same plain
`{group: {variable: array}}`, needs neither torch nor Pyro, and writes one file
format that both majors open with `arviz.from_netcdf`.

Groups and shapes

| group | axes of an array |
|---|---|
| `posterior`, `sample_stats`, `log_likelihood` | chain, draw, then the variable's own |
| `posterior_predictive`, `predictions` | the same |
| `prior`, `prior_predictive` | the same, with a number of draws of their own |
| `observed_data`, `constant_data` | the variable's own |
| `predictions_constant_data` | the variable's own |

A variable's own axes are named by `dims`, usually from `trajectory`, `time`,
`channel` and `coordinate`; `coords` gives the values along them. On a grid
shared by all trajectories the coord `time` holds the real times. Where every
trajectory has its own grid, `time` is an index and the real times are
`constant_data["times"]` (trajectory, time).

Missing data

ArviZ takes every element of `log_likelihood` for an observation, so a value
that was never measured would spoil `arviz.loo`, and a predictive check would
compare draws at places that have no datum. When an observed variable, say
`obs`, has missing entries (NaN, or False in its mask), then

- `observed_data`, `log_likelihood`, `posterior_predictive` and
  `prior_predictive` hold `obs` at the measured entries only, along the one
  dimension `observation`; `observation_trajectory`, `observation_time`, ...
  are coords that say where each one lies;
- `constant_data["obs_grid"]` keeps the array in its full shape, NaN included,
  and `constant_data["obs_mask"]` is True where it was measured;
- `predictions` always keeps its full shape.

With more than one incomplete variable the dimension is called
`observation_<variable>`. Complete data keep their full shape in every group.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from vinppl._checks import require, require_choices

with warnings.catch_warnings():
    # ArviZ 0.23 announces version 1 by a FutureWarning on the first import of a day.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = [
    "ARVIZ_MAJOR",
    "GROUPS",
    "Groups",
    "add_group",
    "flatten_observed",
    "get_group",
    "group_names",
    "read_result",
    "require_group",
    "to_arviz",
    "unit_attribute",
    "write_result",
]

ARVIZ_MAJOR: int = int(az.__version__.split(".")[0])
"""Major version of the installed ArviZ: 0 gives `InferenceData`, 1 and above `DataTree`."""

Groups: TypeAlias = dict[str, dict[str, np.ndarray]]
"""Plain arrays by group and variable."""

_POSTERIOR_GROUPS = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "predictions")
_PRIOR_GROUPS = ("prior", "prior_predictive")
_FIXED_GROUPS = ("observed_data", "constant_data", "predictions_constant_data")
_FLATTENED_GROUPS = ("log_likelihood", "posterior_predictive", "prior_predictive")
_UNITLESS_GROUPS = ("log_likelihood", "sample_stats")

GROUPS: tuple[str, ...] = (*_POSTERIOR_GROUPS, *_PRIOR_GROUPS, *_FIXED_GROUPS)
"""Every group that `to_arviz` accepts, in the order in which they are stored."""

# xarray turns a float variable whose units are one of these words into timedelta64 when it reads a file.
_SAFE_TIME_UNITS = {
    "days": "d",
    "hours": "h",
    "minutes": "min",
    "seconds": "s",
    "milliseconds": "ms",
    "microseconds": "us",
    "nanoseconds": "ns",
}


def flatten_observed(log_likelihood: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Keep the measured entries of per-draw arrays: `(chain, draw, *shape)` to `(chain, draw, observation)`.

    Args:
        log_likelihood: pointwise log-likelihood, or any array with one value per draw and datum;
            shape (chain, draw, *shape).
        mask: True where a datum was measured; shape (*shape). Observations come in C order.

    Returns:
        The measured entries, shape (chain, draw, number of True entries).

    Raises:
        ValueError: the trailing axes of `log_likelihood` are not those of `mask`.

    Example:
        >>> flatten_observed(np.zeros((2, 5, 3)), [True, False, True]).shape
        (2, 5, 2)
    """
    values = np.asarray(log_likelihood)
    keep = np.asarray(mask, dtype=bool)
    require(
        values.ndim >= 2 and values.shape[2:] == keep.shape,
        f"log_likelihood must have shape (chain, draw, *{keep.shape}), the axes of mask last",
        values,
    )
    return values[:, :, keep]


def to_arviz(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    units: Mapping[str, str] | None = None,
    group_coords: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    masks: Mapping[str, ArrayLike] | None = None,
    attrs: Mapping[str, str | int | float] | None = None,
) -> InferenceData | xr.DataTree:
    """Build the container of the installed ArviZ from plain arrays.

    Args:
        groups: arrays by group and variable, with the axes of the module's table. Empty groups are left out.
        dims: names of a variable's own axes (without chain and draw), for example
            `{"obs": ("trajectory", "time", "channel")}`. A key `"group/variable"` holds for that group only.
            Unnamed axes become `<variable>_dim_0` and so on. Variables that no group holds may be named.
        coords: values along a dimension, one-dimensional; a dimension without values is numbered from 0.
        units: units of variables and coords, stored as their attribute `units`; log-densities get none.
            Words that xarray would decode into time deltas are stored as symbols ("seconds" as "s").
        group_coords: coords that replace `coords` within one group, for example a longer `time` for
            `predictions`. With `chain` or `draw` among them a group may hold fewer draws than the posterior.
        masks: True where an observed variable was measured, in its full shape; NaN counts as missing
            without it. Missing entries change the layout as the module's text says.
        attrs: what describes the run (model, versions, ...). It is stored on the root and on every group;
            `created_at`, `arviz_version` and `vinppl_version` are added where absent.

    Returns:
        `arviz.InferenceData` for ArviZ 0, `xarray.DataTree` for ArviZ 1 and above.

    Raises:
        ValueError: unknown groups, ranks or lengths that disagree; the message names group and variable.
        TypeError: arrays or attributes that netCDF cannot hold.

    Example:
        >>> result = to_arviz({"posterior": {"mass": np.ones((2, 10))}}, units={"mass": "kg"})
        >>> group_names(result)
        ['posterior']
    """
    arrays = _as_arrays(groups)
    named = _name_axes(arrays, dims or {})
    overrides = {group: dict(values) for group, values in (group_coords or {}).items()}
    _check_group_coords(overrides, named)
    _check_samples(arrays, overrides)
    observed_coords = {**(coords or {}), **overrides.get("observed_data", {})}
    axes = _flatten_missing(arrays, named, observed_coords, units or {}, masks or {})
    global_attrs = _global_attrs(attrs or {})
    datasets = {
        group: _dataset(
            group,
            arrays[group],
            named[group],
            {**(coords or {}), **overrides.get(group, {})},
            axes,
            units or {},
        ).assign_attrs(global_attrs)
        for group in GROUPS
        if group in arrays
    }
    return _container(datasets, global_attrs)


def write_result(result: InferenceData | xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write `result` to a netCDF file, whole or not at all.

    The data go to a temporary file in the same folder, are flushed to the disk and renamed into place. After
    a failure the file that was there before is unchanged and nothing is left beside it.

    Args:
        result: what `to_arviz`, `read_result` or ArviZ itself returned.
        path: the file; its folder is made if needed. An existing file is replaced.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written (disk full, no permission, path is a folder); the subclass follows
            the cause, for example `PermissionError`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "the path names a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _encode(result)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"could not write the result ({reason}); a file that was there before is unchanged"
        raise OSError(error.errno or errno.EIO, message, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def read_result(path: str | os.PathLike[str]) -> InferenceData | xr.DataTree:
    """Read a netCDF file of ArviZ groups into memory and close it.

    It reads what `write_result` or either major of ArviZ wrote; `arviz.from_netcdf` does the same lazily.

    Args:
        path: the file.

    Returns:
        The container of the installed ArviZ.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is damaged, or is no netCDF file with groups.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no result file", str(path))
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree.load()
            datasets = {name: child.to_dataset() for name, child in tree.children.items()}
            attrs = {str(name): value for name, value in tree.attrs.items()}
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        message = f"not a readable result file ({error}); it may be damaged, or not netCDF"
        raise OSError(errno.EIO, message, str(path)) from error
    if not datasets:
        raise OSError(errno.EINVAL, "the file holds no ArviZ groups", str(path))
    return _container(datasets, attrs)


def group_names(result: InferenceData | xr.DataTree) -> list[str]:
    """List the groups of `result`, whichever container it is."""
    if isinstance(result, xr.DataTree):
        return [str(name) for name in result.children]
    return list(result.groups())


def get_group(result: InferenceData | xr.DataTree, name: str) -> xr.Dataset:
    """Return the group `name` of `result` as a dataset, whichever container it is.

    Raises:
        KeyError: there is no such group.
    """
    names = group_names(result)
    require(name in names, f"group must be one of {', '.join(names)}", name, error=KeyError)
    dataset: xr.Dataset = result[name].to_dataset() if isinstance(result, xr.DataTree) else result[name]
    return dataset


def add_group(
    result: InferenceData | xr.DataTree, name: str, dataset: xr.Dataset
) -> InferenceData | xr.DataTree:
    """Return `result` with one more group, for example what a study found out about a forecast.

    Args:
        result: what `to_arviz` or `read_result` returned; it is not changed.
        name: of the group, none of those that ArviZ knows. A group of that name is replaced.
        dataset: its content, labelled; attributes must be text or numbers.

    Raises:
        ValueError: if the name is one of ArviZ's own groups or no word.
        TypeError: if it holds what netCDF cannot.
    """
    require(name.isidentifier(), "the name of a group must be a word", repr(name))
    require(name not in GROUPS, "the name of a group must be none of ArviZ's own", name)
    for key, variable in dataset.variables.items():
        _as_array(name, str(key), variable.values)
    attrs: dict[str, Any] = {str(key): value for key, value in result.attrs.items()}
    _global_attrs({str(key): value for key, value in dataset.attrs.items()})
    datasets = {group: get_group(result, group) for group in group_names(result)}
    return _container(datasets | {name: dataset}, attrs)


def unit_attribute(name: str, unit: str) -> dict[str, str]:
    """Return the attributes that say the unit of a variable; none without a unit.

    Words that xarray would decode into time deltas become symbols.
    """
    return _units(name, {name: unit})


def require_group(result: Any, name: str, why: str, fix: str = "") -> xr.Dataset:
    """Return the group `name` of a result, or say why it is needed.

    Raises:
        TypeError: `result` is not an ArviZ container.
        KeyError: there is no such group.
    """
    known = isinstance(result, xr.DataTree) or callable(getattr(result, "groups", None))
    require(
        known and not isinstance(result, xr.Dataset),
        "result must be an ArviZ container (InferenceData or DataTree)",
        type(result).__name__,
        "Read a file by vinppl.export.read_result.",
        error=TypeError,
    )
    names = group_names(result)
    got = ", ".join(names) or "none"
    require(name in names, f"{why}: group {name!r} is needed", got, fix, error=KeyError)
    return get_group(result, name)


def _as_arrays(groups: Mapping[str, Mapping[str, ArrayLike]]) -> Groups:
    require_choices("groups", groups, GROUPS)
    arrays = {
        group: {name: _as_array(group, name, value) for name, value in groups[group].items()}
        for group in GROUPS
        if groups.get(group)
    }
    require(bool(arrays), "groups must hold at least one variable", repr(dict(groups)))
    return arrays


def _as_array(group: str, name: str, value: ArrayLike) -> np.ndarray:
    require("/" not in name, f"names of variables in {group} must not contain '/'", repr(name))
    array = np.asarray(value)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        # netCDF knows neither half nor extended precision.
        array = array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
    require(
        array.dtype.kind in "biufUS",
        f"{group}[{name!r}] must hold numbers, truth values or text",
        f"dtype {array.dtype}",
        "netCDF holds no complex numbers, ragged lists or Python objects.",
        error=TypeError,
    )
    return array


def _is_sampled(group: str) -> bool:
    return group not in _FIXED_GROUPS


def _name_axes(arrays: Groups, dims: Mapping[str, Sequence[str]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Name the own axes of every variable."""
    return {
        group: {name: _own_dims(group, name, array, dims) for name, array in variables.items()}
        for group, variables in arrays.items()
    }


def _own_dims(group: str, name: str, array: np.ndarray, dims: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    rank = array.ndim - (2 if _is_sampled(group) else 0)
    leading = "(chain, draw, ...)"
    require(rank >= 0, f"{group}[{name!r}] must have shape {leading}", array)
    own = dims.get(f"{group}/{name}", dims.get(name))
    if own is None:
        return tuple(f"{name}_dim_{axis}" for axis in range(rank))
    require(
        not isinstance(own, str), f"dims[{name!r}] must be a sequence of names", repr(own), "Write ('time',)."
    )
    own = tuple(own)
    place = f" after {leading}" if _is_sampled(group) else ""
    require(
        len(own) == rank,
        f"{group}[{name!r}] must have {len(own)} axes {own}{place}, as dims says",
        array,
    )
    require(len(set(own)) == len(own), f"dims of {group}[{name!r}] must differ from each other", repr(own))
    reserved = {"chain", "draw", name} & set(own)
    require(
        not reserved,
        f"dims of {group}[{name!r}] must not be 'chain', 'draw' or the variable's name",
        repr(own),
    )
    return own


def _check_group_coords(
    overrides: Mapping[str, Mapping[str, ArrayLike]], named: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> None:
    for group, values in overrides.items():
        require(group in named, "group_coords must name groups that are given", group)
        known = {dim for own in named[group].values() for dim in own}
        known |= {"chain", "draw"} if _is_sampled(group) else set()
        unknown = sorted(set(values) - known)
        require(
            not unknown,
            f"group_coords[{group!r}] must name dimensions of that group ({', '.join(sorted(known))})",
            ", ".join(unknown),
        )


def _check_samples(arrays: Groups, overrides: Mapping[str, Mapping[str, ArrayLike]]) -> None:
    """Check that chains and draws agree within the posterior's groups and within the prior's."""
    for family in (_POSTERIOR_GROUPS, _PRIOR_GROUPS):
        reference: tuple[str, tuple[int, ...]] | None = None
        for group in family:
            own: tuple[str, tuple[int, ...]] | None = None
            for name, array in arrays.get(group, {}).items():
                where, sizes = f"{group}[{name!r}]", array.shape[:2]
                thinned = {"chain", "draw"} & set(overrides.get(group, {}))
                if not thinned:
                    reference = reference or (where, sizes)
                own = own or (where, sizes)
                other, expected = own if thinned or reference is None else reference
                require(
                    sizes == expected,
                    f"{where} must have (chain, draw) = {expected} like {other}",
                    array,
                    "A thinned group needs its chain and draw in group_coords.",
                )


def _flatten_missing(
    arrays: Groups,
    named: dict[str, dict[str, tuple[str, ...]]],
    coords: Mapping[str, ArrayLike],
    units: Mapping[str, str],
    masks: Mapping[str, ArrayLike],
) -> dict[str, xr.Variable]:
    """Move incomplete observed variables to the flat layout, in place; return the coords that locate them."""
    axes: dict[str, xr.Variable] = {}
    observed = arrays.get("observed_data", {})
    unknown = sorted(set(masks) - set(observed))
    require(not unknown, "masks must name variables of observed_data", ", ".join(unknown))
    keeps = {name: _mask(name, array, masks.get(name)) for name, array in observed.items()}
    incomplete = {name: keep for name, keep in keeps.items() if not keep.all()}
    for name, keep in incomplete.items():
        require(
            bool(keep.any()),
            f"observed_data[{name!r}] must hold at least one measured value",
            "only missing ones",
        )
        dim = "observation" if len(incomplete) == 1 else f"observation_{name}"
        own = named["observed_data"][name]
        for axis, size, index in zip(own, keep.shape, np.nonzero(keep), strict=True):
            values = _coord("observed_data", axis, size, coords, units)
            axes[f"{dim}_{axis}"] = xr.Variable((dim,), values.values[index], values.attrs)
        full = observed[name]
        _store(arrays, named, "constant_data", f"{name}_grid", full, own)
        _store(arrays, named, "constant_data", f"{name}_mask", keep, own)
        _store(arrays, named, "observed_data", name, full[keep], (dim,))
        for group in _FLATTENED_GROUPS:
            if name in arrays.get(group, {}):
                _store(arrays, named, group, name, _flat(group, name, arrays[group][name], keep), (dim,))
    return axes


def _mask(name: str, array: np.ndarray, mask: ArrayLike | None) -> np.ndarray:
    missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
    if mask is None:
        return ~missing
    keep = np.asarray(mask, dtype=bool)
    require(keep.shape == array.shape, f"masks[{name!r}] must have the shape {array.shape} of the data", keep)
    require(
        not bool(np.any(keep & missing)),
        f"masks[{name!r}] must be False where observed_data[{name!r}] is NaN",
        f"{int(np.sum(keep & missing))} NaN marked as measured",
    )
    return keep


def _flat(group: str, name: str, array: np.ndarray, keep: np.ndarray) -> np.ndarray:
    if array.shape[2:] == (int(keep.sum()),):
        return array  # already flattened by the caller
    require(
        array.shape[2:] == keep.shape,
        f"{group}[{name!r}] must have shape (chain, draw, *{keep.shape}) like observed_data[{name!r}]",
        array,
        "Predictions at other times belong in the group predictions.",
    )
    return flatten_observed(array, keep)


def _store(
    arrays: Groups,
    named: dict[str, dict[str, tuple[str, ...]]],
    group: str,
    name: str,
    array: np.ndarray,
    own: tuple[str, ...],
) -> None:
    arrays.setdefault(group, {})[name] = array
    named.setdefault(group, {})[name] = own


def _dataset(
    group: str,
    arrays: Mapping[str, np.ndarray],
    named: Mapping[str, tuple[str, ...]],
    coords: Mapping[str, ArrayLike],
    axes: Mapping[str, xr.Variable],
    units: Mapping[str, str],
) -> xr.Dataset:
    """Assemble one group, with coords for the dimensions that occur in it."""
    leading = ("chain", "draw") if _is_sampled(group) else ()
    sizes: dict[str, tuple[int, str]] = {}
    variables: dict[str, xr.Variable] = {}
    for name, array in arrays.items():
        full = (*leading, *named[name])
        for dim, size in zip(full, array.shape, strict=True):
            expected, other = sizes.setdefault(dim, (size, name))
            require(
                size == expected,
                f"{group}[{name!r}] must have length {expected} along {dim!r} like {group}[{other!r}]",
                array,
            )
        variables[name] = xr.Variable(
            full, array, _units(name, units) if group not in _UNITLESS_GROUPS else {}
        )
    for name in sorted(set(variables) & set(sizes)):
        raise ValueError(f"{group}[{name!r}] has the name of a dimension of that group; rename either.")
    values = {dim: _coord(group, dim, size, coords, units) for dim, (size, _) in sizes.items()}
    values |= {name: axis for name, axis in axes.items() if axis.dims[0] in sizes}
    return xr.Dataset(variables, coords=values)


def _coord(
    group: str, dim: str, size: int, coords: Mapping[str, ArrayLike], units: Mapping[str, str]
) -> xr.Variable:
    values = np.asarray(coords[dim]) if dim in coords else np.arange(size)
    require(
        values.shape == (size,),
        f"coords[{dim!r}] must have shape ({size},) for group {group}",
        values,
        "Give a group with other values along it its own in group_coords.",
    )
    return xr.Variable((dim,), values, _units(dim, units))


def _units(name: str, units: Mapping[str, str]) -> dict[str, str]:
    unit = units.get(name)
    if not unit:
        return {}
    require(
        " since " not in unit, f"units[{name!r}] must not be a calendar unit", repr(unit), "Use times in s."
    )
    return {"units": _SAFE_TIME_UNITS.get(unit, unit)}


def _global_attrs(attrs: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in attrs.items():
        require(
            isinstance(value, str | int | float) and not isinstance(value, bool),
            f"attrs[{name!r}] must be text or a number",
            value,
            "Pass json.dumps(...) of structured values.",
            error=TypeError,
        )
    defaults: dict[str, str | int | float] = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arviz_version": str(az.__version__),
    }
    try:
        defaults["vinppl_version"] = metadata.version("vinppl")
    except metadata.PackageNotFoundError:  # used from a source tree that is not installed
        defaults["vinppl_version"] = "unknown"
    return {**defaults, **attrs}


def _container(
    datasets: Mapping[str, xr.Dataset], attrs: Mapping[str, str | int | float]
) -> InferenceData | xr.DataTree:
    if ARVIZ_MAJOR < 1:
        arguments: dict[str, Any] = {"attrs": dict(attrs), **datasets}
        with warnings.catch_warnings():
            # ArviZ 0.23 remarks on groups beyond its own scheme, such as `uncertainty_growth`.
            warnings.filterwarnings("ignore", ".*not defined in the InferenceData scheme", UserWarning)
            return az.InferenceData(**arguments)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **datasets})


def _encode(result: InferenceData | xr.DataTree) -> memoryview | bytes:
    """Return the netCDF file's content.

    It is encoded in memory, so that a full disk is met by one plain write. Below an open HDF5 file it leaves
    a handle that the library cannot close any more, and the interpreter crashes on it.
    """
    datasets = {name: get_group(result, name) for name in group_names(result)}
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(result.attrs)), **datasets})
    encoding = {
        f"/{name}": {
            str(key): {"zlib": True, "complevel": 1}
            for key, variable in dataset.variables.items()
            if variable.ndim > 0 and variable.dtype.kind in "biuf"
        }
        for name, dataset in datasets.items()
    }
    content: memoryview | bytes = tree.to_netcdf(None, engine="h5netcdf", encoding=encoding)
    return content


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk where the system can do that for folders (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
