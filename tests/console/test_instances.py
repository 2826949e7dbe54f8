"""Instances in the console, in a real browser: a job with pieces, one selected by a click and rejected alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.labelling.test_instances import balls
from tests.serving.browser import NEEDS_BROWSER, browser, circle, drag, shot, wait_until
from tests.serving.helpers import Running, ball, encoded

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]
LIMIT_S = 300


def test_one_object_of_a_label_is_selected_and_rejected(service: Running, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(encoded(balls(i), quality=95))
    photo, mask = ball(1, 300, 400)
    (tmp_path / "support.png").write_bytes(encoded(photo, "PNG"))
    with browser(service.url) as page:
        page.fill("#name", "several")
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        drag(page, "#stage", circle(mask))
        page.click("#learn")
        wait_until(page, "document.getElementById('learn-message').textContent.includes('Learned')", LIMIT_S)
        page.select_option("#instances", "pieces")
        page.fill("#job-images", str(tmp_path / "photos"))
        page.click("#job-start")
        wait_until(page, "document.querySelector('.job.done')", LIMIT_S)
        assert "--instances=pieces" in page.locator(".job code").first.inner_text(timeout=1000) or page.evaluate(
            "document.querySelector('.job code').textContent.includes('--instances=pieces')")
        page.click(".job .main")
        wait_until(page, "document.querySelectorAll('#cards canvas').length === 3")
        place = page.evaluate("reviewed.rows.findIndex(r => r.instances.length > 1)")
        count = page.evaluate(f"reviewed.rows[{place}].instances.length")
        card = f"#cards > :nth-child({place + 1})"
        assert f"several: {count} objects" in page.inner_text(card)
        name, left, top, width, height = page.evaluate(f"""(() => {{
            const row = reviewed.rows[{place}], mask = unpack(row.instances[1].counts, row.height * row.width);
            const at = mask.findIndex((v, i) => v && mask[i + 3 * row.height + 3]);
            const c = document.querySelector('{card} canvas'), r = c.getBoundingClientRect();
            const scale = Math.min(r.width / row.width, r.height / row.height);
            return [row.image, r.left + (r.width - row.width * scale) / 2 + (Math.floor(at / row.height) + 3) * scale,
                    r.top + (r.height - row.height * scale) / 2 + (at % row.height + 3) * scale, row.width, row.height];
        }})()""")
        page.mouse.click(left, top)
        wait_until(page, f"reviewed.rows[{place}].selected === reviewed.rows[{place}].instances[1]")
        shot(page, "instances-selected")
        page.keyboard.press("r")
        wait_until(page, f"reviewed.rows[{place}].instances.length === {count - 1}")
        assert page.evaluate(f"reviewed.rows[{place}].decision") == "correct"
        shot(page, "instances-rejected")
    (folder,) = (p for p in (service.workspace / "labels").iterdir() if p.name.startswith("several"))
    (line,) = [json.loads(one) for one in (folder / "decisions.jsonl").read_text().splitlines()]
    assert (line["image"], line["decision"], len(line["instances"])) == (name, "correct", count - 1)
    assert np.prod(line["mask"]["size"]) == width * height
