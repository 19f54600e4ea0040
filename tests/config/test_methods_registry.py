"""The registry of methods: an entry is all that a method needs to be named by flags, compared and drawn."""

import dataclasses
import inspect

import pytest

import lsgd_jax
from lsgd_jax.commands import settings
from lsgd_jax.commands.settings import GROUPS, methods_help
from lsgd_jax.config.config import Config
from lsgd_jax.config.make_method import make_method
from lsgd_jax.config.methods import METHODS, Method, MethodSettings, Style, arguments_from, unused_by, users_of


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_gives_its_factory_what_that_takes(name: str) -> None:
    method = METHODS[name]
    given = arguments_from(method, Config("run", groups=2))
    inspect.signature(getattr(lsgd_jax, method.factory)).bind("base", **given)
    assert {*method.arguments.values()} <= {field.name for field in dataclasses.fields(Config)}


def test_every_setting_of_methods_is_used_by_one() -> None:
    assert [field.name for field in dataclasses.fields(MethodSettings) if not users_of(field.name)] == []


def test_settings_of_other_methods_are_told_from_those_of_this_one() -> None:
    given = ["beta", "global_period", "learning_rate", "steps", "global_pull"]
    assert unused_by("lsgd", given) == ("beta",)
    assert unused_by("easgd", given) == ("global_pull",)
    assert unused_by("mine.py:method", given) == ("beta", "global_period", "global_pull")


def test_what_flags_say_of_a_setting_names_the_methods_that_use_it() -> None:
    helps = {flag.name: flag.help for flag in GROUPS["communication"]}
    assert helps["beta"].startswith("easgd, eamsgd: ")
    assert helps["global_period"].startswith("steps between"), "of nearly all"


def test_an_entry_is_all_that_a_method_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    gentle = Method("lsgd", "a gentle pull", Style("#123456", "d", "-"), {"global_pull": "push"})
    monkeypatch.setitem(METHODS, "gentle", gentle)
    assert "  gentle             a gentle pull" in methods_help()
    assert users_of("push") == ("dppf", "gentle")
    flags = {flag.name: flag for flag in settings._flags_of_config()["communication"]}
    assert flags["push"].help.startswith("dppf, gentle: ")
    assert make_method(Config("run", algorithm="gentle")).window == 10


def test_flags_are_the_settings_of_a_run_and_those_of_the_process() -> None:
    names = [flag.name for members in GROUPS.values() for flag in members]
    assert len(names) == len({*names})
    assert {field.name for field in dataclasses.fields(Config)} == {*names} - {*settings.PROCESS_FLAGS}
