"""Photos that crash or hang their decoder, in processes of their own."""

from __future__ import annotations

import multiprocessing
import threading
import time

from fss_models.limits import LIMITS
from pipelines.inference.decode_limit import DecodeLimit, stuck_photos
from tests.data.conftest import jpeg, scan_bomb


def test_photos_that_never_end_are_named_and_the_others_are_not() -> None:
    photos = {7: jpeg(40, 60), 3: scan_bomb(2000, 20_000), 5: b"broken", 9: jpeg(40, 60)}
    assert stuck_photos(photos, LIMITS, 2) == {3: "its decoder took longer than 2 s (data.max_seconds)"}


def test_a_photo_whose_decoder_crashes_is_named() -> None:
    """The process is killed for real while it decodes."""
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.05)
        time.sleep(3)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    found = stuck_photos({0: scan_bomb(2000, 20_000), 1: jpeg(40, 60)}, LIMITS, 60)
    killer.join()
    assert found == {0: "its decoder crashes"}


def decode(seconds: tuple[float, ...], limit: float) -> None:
    watch = DecodeLimit(limit)

    def one(wait: float) -> None:
        with watch():
            time.sleep(wait)

    threads = [threading.Thread(target=one, args=(wait,)) for wait in seconds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(2 * limit)  # nothing decodes now


def exit_code(*seconds: float) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=decode, args=(seconds, 1.5))
    process.start()
    process.join(120)
    return process.exitcode


def test_a_process_ends_when_one_of_its_decoders_hangs() -> None:
    assert exit_code(0.1, 1000) == 1
    assert exit_code(0.1, 0.8) == 0
