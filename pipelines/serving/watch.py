"""A new champion is taken while a service runs: a thread of each replica reads bundle.json again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.bundles.bundle import read_bundle_info

log = logging.getLogger("ray.serve")


class BundleWatch:
    """Calls `take` with the content of bundle.json at `url` whenever it has changed, from a thread.

    `known` is the bundle that is in use. A bundle that `take` cannot load, such as one that is being written, is
    tried again; until then the old one stays in use.
    """

    def __init__(self, url: str, known: BundleInfo, take: Callable[[BundleInfo], None], every_s: float) -> None:
        self._url, self._known, self._take, self._every_s = url, known, take, every_s
        self._lock, self._said = threading.Lock(), ""
        threading.Thread(target=self._watch, name="bundle-watch", daemon=True).start()

    def look(self) -> None:
        """Look now. Returns when a new bundle is in use, or when there is none that can be."""
        with self._lock:
            try:
                if not Store(self._url, attempts=1).exists("bundle.json"):
                    return  # a promotion writes it last
                info = read_bundle_info(self._url)
                if info != self._known:
                    self._take(info)
                    self._known, self._said = info, ""
            except Exception as error:
                self._say(str(error) if isinstance(error, FssError) else f"{type(error).__name__}: {error}")

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._every_s):
            self.look()

    def _say(self, line: str) -> None:
        if line != self._said:  # once, not every few seconds
            log.warning("the bundle at %s is not taken: %s", self._url, line)
            self._said = line
