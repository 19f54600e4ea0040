"""Proxies in the environment: what stays on the machine does not pass them, and what waits behind one is told."""

import pytest

from lsgd_jax.cluster.joining import _about_proxy
from lsgd_jax.cluster.proxies import LOOPBACK, past_loopback, proxy_to


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        ({"no_proxy": "a.org"}, {"no_proxy": f"a.org,{LOOPBACK}", "NO_PROXY": f"a.org,{LOOPBACK}"}),
        ({"NO_PROXY": "b.org"}, {"no_proxy": f"b.org,{LOOPBACK}", "NO_PROXY": f"b.org,{LOOPBACK}"}),
        (
            {"no_grpc_proxy": "c.org"},
            {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK, "no_grpc_proxy": f"c.org,{LOOPBACK}"},
        ),
    ],
)
def test_loopback_is_kept_from_proxies_besides_what_is_already(given: dict[str, str], kept: dict[str, str]) -> None:
    assert past_loopback(given) == kept


def test_the_proxy_is_the_one_that_grpc_takes() -> None:
    proxies = {"http_proxy": "http://one:80", "https_proxy": "http://two:80", "HTTP_PROXY": "http://three:80"}
    assert proxy_to(None, proxies) == proxy_to("10.0.0.1", proxies) == "https_proxy"
    assert proxy_to("node1.cluster", proxies | {"no_proxy": "localhost, .cluster"}) is None
    assert proxy_to("node1.cluster", proxies | {"no_proxy": ".cluster", "no_grpc_proxy": ".org"}) == "https_proxy"
    assert proxy_to("10.0.0.1", {"HTTP_PROXY": "http://three:80", "http_proxy": ""}) is None


def test_a_time_out_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://somewhere:3128")
    assert _about_proxy("10.0.0.1:1234") == "; http_proxy is set: unset it, or list 10.0.0.1 in no_proxy"
    assert _about_proxy(None) == "; http_proxy is set: unset it, or list the machines in no_proxy"
    monkeypatch.setenv("no_proxy", "10.0.0.1")
    assert _about_proxy("10.0.0.1:1234") == ""
