"""The console's tests share the serving tests' bundle and service."""

from tests.serving.conftest import bundle, service

__all__ = ["bundle", "service"]
