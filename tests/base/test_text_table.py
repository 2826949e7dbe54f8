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


def test_where_room_is_short_text_is_folded_first_and_figures_last() -> None:
    assert text_table(ROWS, head=HEAD, left=(0, 3), width=60).splitlines() == [
        "method              mean           less the best",
        "------------------------------------------------------------",
        "sansa               42.0                       -",
        "fssam [x] with a     9.1  -30.0 (-31.1 to -22.2)  incomplete",
        "long name",
    ]
    assert text_table(ROWS, head=HEAD, left=(0, 3), width=20).splitlines() == [
        "method  mean     less the best",
        "------------------------------------------",
        "sansa   42.0                 -",
        "fssam    9.1             -30.0  incomplete",
        "[x]           (-31.1 to -22.2)",
        "with a",
        "long",
        "name",
    ]


def test_columns_without_content_are_left_out() -> None:
    assert text_table([("x", "", "1"), ("y", "", "2")], head=("", "", "n")) == "   n\n----\nx  1\ny  2"
    assert text_table([]) == ""


def test_wide_characters_are_aligned() -> None:
    first, second = text_table([("杯子", "1"), ("cup", "22")]).splitlines()
    assert (first, second) == ("杯子   1", "cup   22")
