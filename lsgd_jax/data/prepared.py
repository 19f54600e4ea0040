"""Sets that TFDS has prepared on disk: finding, downloading and opening one."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lsgd_jax.errors import InputError, NotYetError, first_line, is_disk_full

DEFAULT_DIR = "the default TFDS folder"


def find_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a set, which may not be on disk.

    Args:
      name: the set's.
      data_dir: where prepared TFDS sets are; TFDS's own default (~/tensorflow_datasets) if None.

    Raises:
      InputError: if there is no such set.
    """
    import tensorflow_datasets as tfds

    where = data_dir or DEFAULT_DIR
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        close = _versions_in(name, data_dir)[-1:] or difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "use 'digits', 'cifar10', or another TFDS set"
        raise InputError(f"unknown data set {name!r}: {hint}") from error
    except ImportError as error:
        raise InputError(f"data set {name!r} needs TensorFlow to be read: choose another") from error
    except Exception as error:  # TFDS has no common class for what a bad name or folder raises
        there = _versions_in(name, data_dir)
        hint = f" ({where} has {', '.join(there)}: use that)" if there else ""
        raise InputError(f"cannot open data set {name!r} in {where}: {first_line(error)}{hint}") from error


def prepared_builder(name: str, data_dir: str | None, download: bool) -> Any:
    """The TFDS builder of a set that is on disk, after downloading it if that is asked for and needed.

    Args:
      name: the set's.
      data_dir: where prepared TFDS sets are; TFDS's own default (~/tensorflow_datasets) if None.
      download: whether TFDS may fetch and prepare what is missing (needs TensorFlow).

    Raises:
      InputError: if there is no such set, or it is not there.
    """
    builder, where = find_builder(name, data_dir), data_dir or DEFAULT_DIR
    if builder.is_prepared():
        return builder
    if not download:
        if there := _versions_in(name, data_dir):
            raise InputError(
                f"data set {name!r}, of which this TFDS wants {builder.info.full_name}, is in {where} as "
                f"{', '.join(there)}: use --dataset={there[-1]}, or --download to fetch the other"
            )
        raise InputError(
            f"data set {name!r} is not in {where}: give the --data_dir of a prepared TFDS folder, "
            "or --download to fetch it (needs pip install 'lsgd_jax[train,tensorflow]')"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("--download needs TensorFlow to prepare data: pip install 'lsgd_jax[train,tensorflow]'")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # no network, no space, a set that must be downloaded by hand
        may_work_later = isinstance(error, OSError) and not is_disk_full(error)  # the network, as requests tells it too
        kind = NotYetError if may_work_later else InputError
        raise kind(f"cannot download {name!r} to {where}: {first_line(error)}") from error
    return builder


def filled_splits(builder: Any) -> list[str]:
    """The splits of a prepared set that have examples."""
    return [name for name, split in builder.info.splits.items() if split.num_examples]


def files_of(builder: Any, splits: Sequence[str]) -> tuple[pathlib.Path, ...]:
    """The files of those of the splits that have examples."""
    filled = filled_splits(builder)
    return tuple(
        pathlib.Path(file) for split in splits if split in filled for file in builder.info.splits[split].filepaths
    )


def data_source(builder: Any, split: str, **options: Any) -> Any:
    """The examples of a split, in the order of its files; options are those of TFDS's `as_data_source`.

    Raises:
      InputError: if they are stored in a format that needs TensorFlow.
    """
    try:
        return builder.as_data_source(split=split, **options)
    except NotImplementedError as error:
        raise InputError(
            f"data set {builder.name!r} in {builder.data_dir} is stored as {builder.info.file_format.value}: "
            "prepare it as array_record, or use --download with another --data_dir"
        ) from error


@contextlib.contextmanager
def reading(builder: Any, split: str) -> Iterator[Any]:
    """The examples of a split, to be read inside.

    Raises:
      InputError: if they cannot be read.
    """
    try:
        yield data_source(builder, split)
    except InputError:  # which is a ValueError, too
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a missing, cut-off or corrupted file
        raise InputError(
            f"cannot read the {split} split of {builder.name!r} in {builder.data_dir} "
            f"({first_line(error)}): prepare the set again"
        ) from error


def _versions_in(name: str, data_dir: str | None) -> list[str]:
    """What a folder has of a set, in any configuration and version, as --dataset takes it."""
    import tensorflow_datasets as tfds

    folder = pathlib.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))  # raises nothing without a home
    base = re.split("[:/]", name)[0]
    prepared = (folder / base).rglob("dataset_info.json") if re.fullmatch(r"\w+", base) else []
    places = sorted(path.parent.relative_to(folder).parts for path in prepared)
    return [f"{'/'.join(place[:-1])}:{place[-1]}" for place in places]
