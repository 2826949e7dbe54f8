"""The one strict reader of state dicts: nothing missing, nothing unknown, every shape the model's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Size, Tensor, nn

from fss_models.errors import FssError


def check_state(
    given: Mapping[str, Tensor], want: Mapping[str, Tensor | Size], *, where: str = "", hint: str = "",
    subject: str = "", spare: Collection[str] = (), optional: Collection[str] = (),
) -> None:
    """Raises `FssError` naming the first tensor of `given` that is missing, unknown or of another shape than in `want`.

    where    the file the tensors come from; subject: what the message is about, where there is no file
    hint     what the user should check
    spare    names that `given` may have beside those of `want`; optional: names of `want` that it may lack
    """
    about = f"{subject} " if subject else ""
    for key in sorted(want.keys() - given.keys() - set(optional)):
        raise FssError(f"{about}lacks {key!r}", where=where, hint=hint)
    for key in sorted(given.keys() - want.keys() - set(spare)):
        raise FssError(f"{about}has unknown {key!r}", where=where, hint=hint)
    for key in sorted(want.keys() & given.keys()):
        ours, theirs = _shape(want[key]), _shape(given[key])
        if ours != theirs:
            raise FssError(f"{about}{key!r} has shape {theirs}, the model needs {ours}", where=where, hint=hint)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str = "", hint: str = "", optional: Collection[str] = (),
    assign: bool = False,
) -> None:
    """Load a whole state dict. Raises `FssError` as `check_state` does.

    With `assign` the model takes over the given tensors instead of copying their values.
    """
    check_state(state, model.state_dict(), where=where, hint=hint, optional=optional)
    model.load_state_dict(dict(state), strict=False, assign=assign)


def _shape(tensor: Tensor | Size) -> tuple[int, ...]:
    return tuple(tensor if isinstance(tensor, Size) else tensor.shape)
