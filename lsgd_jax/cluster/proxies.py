"""HTTP proxies in the environment, through which gRPC would send what processes tell each other."""

from collections.abc import Mapping

# gRPC takes the first that is set.
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
LOOPBACK = "127.0.0.1,localhost,::1"


def past_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep loopback traffic on the machine, besides what they keep from proxies already."""
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY")
    kept = {"no_proxy": exceptions, "NO_PROXY": exceptions}
    if for_grpc := environment.get("no_grpc_proxy"):  # it goes before the others
        kept["no_grpc_proxy"] = for_grpc
    return {name: f"{value},{LOOPBACK}" if value else LOOPBACK for name, value in kept.items()}


def proxy_to(host: str | None, environment: Mapping[str, str]) -> str | None:
    """The variable that names the proxy to a host, or to any if it is not known; None if there is none."""
    exceptions = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    if host and any(host.endswith(name.strip()) for name in exceptions.split(",") if name.strip()):
        return None
    return next((name for name in PROXIES if environment.get(name)), None)
