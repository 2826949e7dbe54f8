"""The labelling tests share the serving tests' bundle."""

from tests.serving.conftest import bundle

__all__ = ["bundle"]
