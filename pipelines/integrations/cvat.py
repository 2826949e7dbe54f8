"""CVAT: a detection function for cvat-sdk's `annotate_task`, for `cvat-cli task auto-annotate` and for CVAT's agents.

    cvat-cli function create-native "cups" --function-module pipelines.integrations.cvat -p supports=str:supports.json
    cvat-cli function run-agent 7 --function-module pipelines.integrations.cvat -p supports=str:supports.json

The parameters are those of `create`. The interface is that of cvat-sdk's documentation, "Auto-annotation API".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.inference.masks import Instance, Label, PhotoFailure
from pipelines.integrations.photo_labeler import PhotoLabeler, photo_bytes
from pipelines.labelling.formats.outline import polygons

if TYPE_CHECKING:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk.models import LabeledShapeRequest
    from PIL.Image import Image

ATTRIBUTES = ("presence", "quality", "status")


def create(supports: str, bundle: str = "", url: str = "", device: str = "", attributes: bool = False,
           **settings: Any) -> CvatFunction:
    """A detection function whose labels are the classes of `supports`, the path of a supports file or folder.

    The arguments are those of `PhotoLabeler`, such as `url` for a running service, or `instances="pieces"` for a shape
    for each object. With `attributes` shapes have text attributes presence, quality and status (of bundles with a
    calibrator), which the labels of the task need too. Raises `FssError` as `PhotoLabeler` does, and without cvat-sdk.
    """
    return CvatFunction(PhotoLabeler(supports, bundle=bundle, url=url, device=device, **settings),
                        attributes=attributes)


class CvatFunction:
    """A detection function as cvat-sdk expects it: `spec`, its labels, and `detect`, the shapes in one image."""

    def __init__(self, labeler: PhotoLabeler, *, attributes: bool = False) -> None:
        try:
            import cvat_sdk.auto_annotation as cvataa
        except ImportError as error:
            raise FssError("cvat-sdk is not installed", hint="pip install 'fss[cvat]'") from error
        self._labeler, self._attributes = labeler, ATTRIBUTES if attributes else ()
        self.spec: cvataa.DetectionFunctionSpec = cvataa.DetectionFunctionSpec(labels=[
            cvataa.label_spec(name, number, type="mask", attributes=[
                cvataa.text_attribute_spec(one, place, default_value="")
                for place, one in enumerate(self._attributes)])
            for number, name in enumerate(labeler.classes)])

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image) -> list[LabeledShapeRequest]:
        """The shapes in an image: a mask for each class that is there, or for each of its objects.

        A shape's score is the calibrated quality of the mask, or the method's own estimate; of an object it is that of
        the object. Shapes below `context.conf_threshold` are left out. Where CVAT wants polygons, each piece of a mask
        is one, exactly along the borders of its pixels, holes included. An image that is too large gets none, and a
        line says why. Raises `FssError` for a service that fails.
        """
        result = self._labeler.label([photo_bytes(image)])[0]
        if isinstance(result, PhotoFailure):
            say(f"{context.frame_name} has no shapes: {result.reason}")
            return []
        return [shape for number, label in enumerate(result)
                for shape in self._shapes(number, label, context)]

    def _shapes(self, number: int, label: Label, context: cvataa.DetectionFunctionContext,
                ) -> Iterator[LabeledShapeRequest]:
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask

        for counts, box, score in _masks(label):
            if score < (context.conf_threshold or 0.0):
                continue
            about = {"score": score, "attributes": self._values(label)}
            bitmap = coco.decode({"size": [label.height, label.width], "counts": counts.encode()}).astype(bool)
            if context.conv_mask_to_poly:
                for corners in polygons(bitmap):
                    yield cvataa.polygon(number, corners.astype(float).ravel().tolist(), **about)
            else:
                yield cvataa.mask(number, [float(v) for v in encode_mask(bitmap, box)], **about)

    def _values(self, label: Label) -> list[Any]:
        """What a shape's attributes say: probabilities with three digits, empty where there is none."""
        from cvat_sdk.models import AttributeValRequest

        texts = (getattr(label, name) for name in self._attributes)
        return [AttributeValRequest(spec_id=place, value=f"{text:.3f}" if isinstance(text, float) else text or "")
                for place, text in enumerate(texts)]


def _masks(label: Label) -> Iterator[tuple[str, list[float], float]]:
    """(COCO's counts, box [left, top, right, bottom] in pixels, score in [0, 1]) of the masks that are not empty."""
    sure = label.score if label.quality is None else label.quality
    found: tuple[Label | Instance, ...] = (label,) if label.instances is None else label.instances
    for one in found:
        if one.area:
            left, top, width, height = one.bbox
            score = sure if isinstance(one, Label) or one.score is None else one.score
            yield one.counts, [left, top, left + width, top + height], float(score)
