"""Tables as text: figures are never broken, text is folded only where there is too little room."""

from __future__ import annotations

from pipelines.base.text_table import text_table

HEAD = ("method", "mean", "less the best", "")
ROWS = (("sansa", "42.0", "-", ""), ("fssam [x] with a long name", "9.1", "-30.0 (-31.1 to -22.2)", "incomplete"))


def test_without_a_terminal_lines_have_their_full_length() -> None:
    assert text_table(ROWS, head=HEAD, left=(0, 3)).splitlines() == [
        "method                      mean           less the best",
        "--------------------------------------------------------------------",
        "sansa                       42.0                       -",
        "fssam [x] with a long name   9.1  -30.0 (-31.1 to -22.2)  incomplete",
    ]
    assert text_table([("frozen", "3.6"), ("x", "43.7")]) == "frozen   3.6\nx       43.7"
    assert text_table([], head=("a", "b")).splitlines() == ["a  b", "----"]


def test_where_room_is_short_text_is_folded_and_figures_are_not() -> None:
    assert text_table(ROWS, head=HEAD, left=(0, 3), width=60).splitlines() == [
        "method              mean           less the best",
        "------------------------------------------------------------",
        "sansa               42.0                       -",
        "fssam [x] with a     9.1  -30.0 (-31.1 to -22.2)  incomplete",
        "long name",
    ]
    narrow = text_table(ROWS, head=HEAD, left=(0, 3), width=20).splitlines()
    assert any("-30.0 (-31.1 to -22.2)" in line for line in narrow), "too narrow for the figures: they stay whole"


def test_wide_characters_are_aligned() -> None:
    first, second = text_table([("杯子", "1"), ("cup", "22")]).splitlines()
    assert (first, second) == ("杯子   1", "cup   22")
