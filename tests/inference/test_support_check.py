"""The check of supports before a job: leave-one-out, harmful supports, trend, price, contact sheet, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fss_models import registry
from fss_models.marks import rle_json
from jobs.cli import main
from pipelines.bundles.bundle import save_bundle
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_check import NegativeWorth, _one_more, check_supports
from pipelines.inference.supports import Support, SupportSet
from pipelines.labelling.check import check_label_job
from pipelines.labelling.support_sheet import report_lines
from tests.inference.test_classes import support_set
from tests.serving.helpers import ball, encoded, photo_folder, supports_file


@pytest.fixture(scope="module")
def labeler(bundle: str) -> Labeler:
    return Labeler(bundle)


def spoilt(good: SupportSet, mask: np.ndarray) -> SupportSet:
    """The support set with one more photo, which has the mask `mask`."""
    photo = encoded(ball(1004)[0], "PNG")
    return SupportSet("ball", (*good.supports, Support(photo, {"mask": rle_json(mask)})))


def test_a_wrong_mask_is_found(labeler: Labeler) -> None:
    """A fifth support whose mask is inverted hurts. One with a small wrong mask does not hurt, but is odd."""
    good, truth = support_set("ball", 1000, 1001, 1002, 1003), ball(1004)[1]
    worth = check_supports(labeler, spoilt(good, ~truth))
    assert worth.hurting
    assert worth.hurting[0] == 4
    assert any("support 5 hurts" in line for line in report_lines(worth))
    small = np.zeros_like(truth)
    small[:20, :20] = True
    odd = check_supports(labeler, spoilt(good, small & ~truth))
    assert (odd.odd, odd.hurting) == ([4], [])
    assert any("support 5 is unlike the others" in line for line in report_lines(odd))
    assert set(worth.trend) == {1, 2, 3, 4}
    fine = check_supports(labeler, good)
    assert fine.miou is not None
    assert worth.miou is not None
    assert fine.miou > worth.miou
    assert fine.interval is not None
    assert fine.interval[0] <= fine.miou <= fine.interval[1]
    assert fine == check_supports(labeler, good)


def two_colours(seed: int, *, both: bool) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a ball whose colour is between red and blue, or of a red one beside it; and the mask of the red."""
    photo, mask = ball(seed, 200, 200)
    other = np.zeros_like(mask)
    other[:45, :45] = other[-45:, -45:] = True
    other &= ~mask
    photo[other] = [190, 60, 90]
    if not both:
        photo[mask] = [70, 70, 70]
    return photo, mask


def test_what_negative_supports_are_worth_is_measured(labeler: Labeler) -> None:
    """Boxes of nearly the ball's colour are taken for it; photos of such boxes alone are the negative supports."""
    def support(seed: int, *, both: bool) -> Support:
        photo, mask = two_colours(seed, both=both)
        mark = {"mask": rle_json(mask if both else np.ones_like(mask))}
        return Support(encoded(photo, "PNG"), mark if both else mark | {"negative": True})

    shown = tuple(support(s, both=True) for s in (1, 2, 3))
    negative = tuple(support(s, both=False) for s in (4, 5))
    plain = check_supports(labeler, SupportSet("ball", shown))
    told = check_supports(labeler, SupportSet("ball", (negative[0], *shown, negative[1])))
    assert plain.negatives is None
    worth = told.negatives
    assert worth is not None
    assert (told.shots, worth.count, set(told.scores)) == (3, 2, {1, 2, 3})
    assert plain.miou is not None
    assert told.miou is not None
    assert worth.without == pytest.approx(plain.miou)
    assert worth.gain == pytest.approx(told.miou - plain.miou)
    assert worth.found is not None
    assert worth.found_without is not None
    assert worth.found < worth.found_without
    lines = report_lines(told)
    assert any(line.startswith(f"  2 negative supports {worth.verdict}: mIoU") for line in lines)
    assert any("taken for the object" in line for line in lines)
    assert not any("negative" in line for line in report_lines(plain))
    one = check_supports(labeler, SupportSet("ball", (*shown, negative[0]))).negatives
    assert one is not None
    assert one.found is None


@pytest.mark.parametrize(("gain", "interval", "verdict"), [
    (0.2, (0.1, 0.3), "help"), (-0.2, (-0.3, -0.1), "hurt"), (0.2, (-0.1, 0.5), "make no clear difference"),
    (0.001, None, "make no clear difference"), (0.2, None, "help")])
def test_the_verdict_on_negatives(gain: float, interval: tuple[float, float] | None, verdict: str) -> None:
    assert NegativeWorth(count=1, without=0.5, gain=gain, interval=interval).verdict == verdict


def test_too_few_supports_say_nothing(labeler: Labeler) -> None:
    worth = check_supports(labeler, support_set("ball", 1000))
    assert (worth.miou, worth.one_more, worth.scores) == (None, None, {})
    two = check_supports(labeler, support_set("ball", 1000, 1001))
    assert two.miou is not None
    assert (two.one_more, two.influence) == (None, {})


def test_the_trend_of_a_known_curve() -> None:
    trend = {k: 0.8 - 0.3 / k for k in (1, 2, 3, 4)}
    assert _one_more(trend, 5) == pytest.approx(0.3 / 5 - 0.3 / 6)
    assert _one_more(dict.fromkeys((1, 2, 3), 0.5), 4) == pytest.approx(0)


def typed(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr("sys.argv", ["fss", "support", "check", "--supports", str(tmp_path / "classes"), "--bundle",
                                     bundle, "--page", str(tmp_path / "page.html"), *more])
    main()


def test_the_shipped_champion_is_not_taken_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped(Exception):  # noqa: N818 - the model itself is not wanted
        pass

    def labeler(*_: object, **__: object) -> None:
        raise Stopped

    save_bundle(str(tmp_path / "shipped" / "champion"), registry.build("prior", "nano"))
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "shipped"))
    monkeypatch.setattr("pipelines.labelling.check.Labeler", labeler)
    for bundle, told in (("", True), ("shipped", False)):
        with pytest.raises(Stopped):
            check_label_job(Recipe.model_validate({"out": str(tmp_path)}), supports=str(supports_file(tmp_path)),
                            images="", bundle=bundle, count=0, price=0, page=str(tmp_path / "page.html"))
        assert ("using the one that ships with fss" in capsys.readouterr().err) == told


def test_the_command(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    for name, invert in (("ball", False), ("noise", True)):
        place = tmp_path / "classes" / name
        place.mkdir(parents=True)
        for seed in (1, 2, 3):
            photo, mask = ball(seed)
            (place / f"{seed}.jpg").write_bytes(encoded(photo))
            (place / f"{seed}.png").write_bytes(encoded((mask ^ invert).astype(np.uint8) * 255, "PNG"))
    photos = photo_folder(tmp_path / "photos", 40)
    (photos / "0001.jpg").write_bytes(b"no photo")
    with pytest.raises(SystemExit) as ended:
        typed(bundle, tmp_path, monkeypatch, "--price", "2")
    assert ended.value.code == 2
    assert "--price needs photos" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(SystemExit):
        typed(bundle, tmp_path, monkeypatch, "--images", str(photos), "--count", "7200", "--price", "2", "--json")
    told = json.loads(capsys.readouterr().out)
    assert [w["class_name"] for w in told["classes"]] == ["ball", "noise"]
    assert 0 < told["classes"][0]["miou"] <= 1
    price = told["price"]
    assert price["images"] == 7200
    assert price["cost"] == pytest.approx(2 * 7200 / price["images_per_s"] / 3600)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 6 + 32 - page.count("no photo") - page.count("not an image")
    assert "uncalibrated" in page
    assert "http://" not in page
