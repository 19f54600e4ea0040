"""Which runs a comparison consists of, and which setting of each method is the best."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsgd_jax.commands.settings import GROUPS, PROCESS_FLAGS
from lsgd_jax.compare.evaluations import final_validation_error
from lsgd_jax.compare.trials import Setting, Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import schedule_of
from lsgd_jax.config.make_method import make_method
from lsgd_jax.config.methods import METHODS, users_of
from lsgd_jax.config.own_code import is_own
from lsgd_jax.errors import InputError
from lsgd_jax.files.files import file_name
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.tasks.metric import Metric


def _switch(text: str) -> bool:
    if text not in ("false", "true"):
        raise ValueError(f"{text!r} is neither false nor true")
    return text == "true"


READERS: dict[str, Any] = {"string": str, "integer": int, "float": float, "boolean": _switch}
TYPES = {
    name: READERS[kind]
    for group in GROUPS.values()
    for name, kind, *_ in group
    if kind in READERS and name not in PROCESS_FLAGS
}
# What cannot be varied: it says which run it is, what it costs, or where its data is.
FIXED = (
    *("algorithm", "dataset", "text_file", "tokenizer", "data_dir", "download", "seed", "groups", "workers"),
    *("batch_size", "sequence_length", "steps"),
)
COMMUNICATION = frozenset(name for name, *_ in GROUPS["communication"])


def read_variations(texts: Iterable[str]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """What to vary, from `flag=value,value` for all methods and `method.flag=value,value` for one.

    Returns:
      `{method: {flag: values}}`; what concerns all methods stands under "".

    Raises:
      InputError: for what cannot be read, naming it.
    """
    variations: dict[str, dict[str, tuple[Any, ...]]] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        method, dot, flag = left.rpartition(".")
        if not (equals and right):
            raise InputError(f"--vary={text}: write flag=value,value or method.flag=value,value")
        if dot and method not in METHODS and not is_own(method):
            raise InputError(f"--vary={text}: unknown method {method!r}: choose one of {', '.join(METHODS)}")
        if flag not in TYPES or flag in FIXED or flag in {name for name, *_ in GROUPS["run"]}:
            raise InputError(f"--vary={text}: {flag!r} is nothing to vary: learning_rate or global_period, say")
        try:
            values = tuple(dict.fromkeys(TYPES[flag](value) for value in right.split(",")))
        except ValueError as error:
            raise InputError(f"--vary={text}: {error}") from error
        if flag in variations.setdefault(method, {}):
            raise InputError(f"--vary={text}: {left} is varied twice: give all its values at once")
        variations[method][flag] = values
    return variations


def settings_of(method: str, base: Config, variations: Mapping[str, Mapping[str, tuple[Any, ...]]]) -> list[Setting]:
    """The settings of a method in the grid: the product of its own variations and of those of all that it knows.

    Raises:
      InputError: if what is varied for this method alone makes no difference to it.
    """
    own, known = variations.get(method, {}), _flags_read_by(method, base)
    for flag in own:
        if flag in COMMUNICATION and flag not in known:
            raise InputError(f"--vary={method}.{flag}=...: {method} does not use it here: leave it out")
    unknown = COMMUNICATION - known | ({"method_args"} if method in METHODS else set())
    common = {flag: values for flag, values in variations.get("", {}).items() if flag not in unknown}
    axes = {**common, **own}
    return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def make_trial(
    method: str, setting: Setting, seed: int, phase: str, base: Config, *, eval_every: int | None = None
) -> Trial:
    """One run. `sgd` has one worker, which takes the steps of all, for as many samples.

    A test run is evaluated as often as `base` says, or every `eval_every` of its own steps.
    """
    alone = {"groups": 1, "workers": 1} if method == "sgd" else {}
    longer = base.groups * base.workers if method == "sgd" else 1
    varied = dataclasses.replace(base, **dict(setting))
    periods = {
        "steps": varied.steps,
        "eval_every": varied.steps if phase == "search" else varied.evaluation_period,  # of a search only its end
        "checkpoint_every": varied.checkpoint_period,
        "warmup_steps": varied.warmup_steps,
    }
    changes: dict[str, Any] = {name: period * longer for name, period in periods.items()}
    if varied.drop_at:
        changes["drop_at"] = ",".join(str(step * longer) for step in schedule_of(varied).drop_at)
    changes |= {"algorithm": method, "seed": seed, **alone}
    if eval_every is not None:
        changes["eval_every"] = eval_every
    if method not in users_of("wire_dtype"):
        changes["wire_dtype"] = None  # given for all, it is for those that use it
    if method in METHODS:
        changes["method_args"] = None  # likewise
        if method not in users_of("global_period"):
            changes |= {"compress": None, "compress_top_k": None, "fragments": 1, "overlap": None}
    shown = file_name(",".join(f"{flag}={value}" for flag, value in setting) or "as_given")
    changes["workdir"] = f"{base.workdir}/runs/{file_name(method.replace('/', '_'))}/{shown}/seed={seed}"
    return Trial(method, setting, seed, phase, dataclasses.replace(varied, **changes))


def choose(
    settings: Mapping[str, Sequence[Setting]], outcomes: Sequence[TrialOutcome], metric: Metric = ERROR
) -> dict[str, Setting | None]:
    """Each method's setting with the lowest validation figure, the mean over its seeds.

    None for a method of which every setting diverged. One whose search is not over is left out.
    """
    chosen: dict[str, Setting | None] = {}
    for method, choices in settings.items():
        errors = {
            setting: [
                final_validation_error(outcome, metric)
                for outcome in outcomes
                if (outcome.trial.method, outcome.trial.varied, outcome.trial.phase) == (method, setting, "search")
            ]
            for setting in choices
        }
        if len(choices) == 1:
            chosen[method] = choices[0]
        elif all(errors.values()):
            best = min(choices, key=lambda setting: statistics.mean(errors[setting]))
            chosen[method] = best if statistics.mean(errors[best]) < metric.worst else None
    return chosen


class _Reader:
    """Settings that remember which of them were read."""

    def __init__(self, config: Config) -> None:
        self._config, self.read = config, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._config, name)


def _flags_read_by(method: str, base: Config) -> set[str]:
    """The settings that make a difference to a method, with so many groups."""
    given = base.method_args if is_own(method) else None  # it is for those of one's own
    reader: Any = _Reader(dataclasses.replace(base, algorithm=method, method_args=given))
    make_method(reader)
    return reader.read
