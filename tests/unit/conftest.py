"""Settings of hypothesis for the unit tests: the machine's speed is no property of the code."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("distilqa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("distilqa")
