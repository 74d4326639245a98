"""Property tests: never judged by the clock, and the same examples every time."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gale",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gale")
