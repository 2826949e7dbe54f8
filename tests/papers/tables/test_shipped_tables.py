"""The tables that ship: each parses, names recipes that exist, and every row's method builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models import registry
from fss_models.errors import FssError
from fss_models.settings import weight_fields
from jobs.tables import list_tables, load_table, make_cells, parse_places
from pipelines.config.method import MethodConfig
from pipelines.papers.tables.cells import TableCell
from pipelines.papers.tables.config import PublishedTable
from pipelines.papers.tables.missing import check_cells, file_name, find_missing, weight_files
from pipelines.papers.tables.outcome import collect_outcome
from pipelines.papers.tables.show import render_markdown, render_page, render_text


def all_cells() -> list[TableCell]:
    return [c for name in list_tables() for c in make_cells(load_table(name)[1])]


def test_the_papers_tables_are_there() -> None:
    wanted = {"sansa_main", "sansa_tuning", "sansa_adapters", "sansa_prompts", "sansa_sizes", "sansa_targets",
              "fssam_main", *(f"fcp_table{i}" for i in (1, 2, 3, 4)), "fcp_figure5"}
    assert wanted <= set(list_tables())


@pytest.mark.parametrize("name", list_tables())
def test_every_cell_is_a_recipe_of_a_method_that_exists(name: str, tmp_path: Path) -> None:
    _, table = load_table(name)
    cells = make_cells(table, out=str(tmp_path))
    assert {(c.row.name, c.key) for c in cells} == {(r.name, k) for r in table.rows for k in table.columns_of(r)}
    check_cells(cells)
    for cell in cells:
        assert cell.column.folds in (0, cell.folds)
        assert cell.read_record() is None
    distinct = {(c.row.name, c.column.recipe, str(c.column.set)): c.digest for c in cells}
    assert len(set(distinct.values())) == len({c.digest for c in cells})


@pytest.mark.parametrize("name", list_tables())
def test_means_agree_with_their_folds(name: str) -> None:
    """Would catch a mistyped figure: the published means are the means of the folds, up to rounding."""
    _, table = load_table(name)
    for row in table.all_rows:
        for key, given in row.published.items():
            if isinstance(given, list) and None not in given:
                *folds, mean = given
                assert mean == pytest.approx(sum(folds) / len(folds), abs=0.11), (row.name, key)


def test_what_cells_differ_in_is_in_their_digests() -> None:
    _, table = load_table("sansa_targets")
    assert len({c.digest for c in make_cells(table)}) == 12
    shared = {c.digest for c in make_cells(load_table("sansa_main")[1])}
    assert {c.digest for c in make_cells(table, rows=["J = 3"])} <= shared, "tables share what they have in common"


def distinct_methods() -> list[MethodConfig]:
    found = {}
    for cell in all_cells():
        method = cell.method
        drop = {*weight_fields(registry.method_config(method.name)), "prior"}  # debug needs no files and no ViT
        config = {k: v for k, v in method.config.items() if k not in drop}
        small = MethodConfig(name=method.name, preset="debug", config=config)
        found[small.model_dump_json()] = small
    return list(found.values())


def test_every_row_builds() -> None:
    methods = distinct_methods()
    assert len(methods) > 25
    for method in methods:
        model = registry.build(method.name, method.preset, method.config)
        assert any(p.requires_grad for p in model.parameters()) == registry.method_class(method.name).trains


def test_a_table_without_runs_shows_the_published(tmp_path: Path) -> None:
    stem, table = load_table("fcp_table1")
    found = collect_outcome(stem, table, make_cells(table, out=str(tmp_path)))
    for shown in (render_text(found), render_markdown(found), render_page(found)):
        assert "VRP-SAM, its own paper [1]" in shown
        assert "73.2" in shown
        assert "No cell of this table was run here yet." in shown
    assert found.finished == 0
    assert list(tmp_path.iterdir()) == []


def test_everything_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    cells = make_cells(load_table("fcp_table1")[1], roots={"coco20i": str(tmp_path / "coco")}, out="out")
    found = find_missing(cells)
    assert [(m.kind, m.name) for m in found] == [
        ("data", "pascal5i"), ("data", "coco20i"), ("weights", "sam_vit_h_4b8939.pth"),
        ("weights", "resnet50_v2.pth"), ("weights", "vgg16_bn-6c64b313.pth")]
    assert found[1].place == str(tmp_path / "coco")
    assert found[1].option == "--root coco20i=FOLDER"
    assert "82783 files" in " ".join(found[1].instructions)
    assert "semseg" in " ".join(found[3].instructions)
    assert not (tmp_path / "out").exists()


def test_a_named_place_of_a_weight_file_is_used(tmp_path: Path) -> None:
    here = tmp_path / "mine.pth"
    here.write_bytes(b"x")
    cells = make_cells(load_table("fcp_table4")[1], weights={"resnet50_v2.pth": str(here)}, out=str(tmp_path))
    assert all(cell.method.config["backbone_weights"] == str(here) for cell in cells)
    places = [file_name(p) for p, _ in weight_files(cells[0].method)]
    assert places == ["sam_vit_h_4b8939.pth", "mine.pth"]
    assert "mine.pth" not in [m.name for m in find_missing(cells)]


@pytest.mark.parametrize(("options", "line"), [
    ({"rows": ["FPC"]}, "the table has no row 'FPC' (known: FCP, ResNet-50"),
    ({"columns": ["coco"]}, "the table has no column 'coco' (known: pascal1"),
    ({"roots": {"coco": "x"}}, "the table has no dataset 'coco' (known: pascal5i, coco20i)"),
    ({"weights": {"sam.pth": "x"}}, "the table has no weight file 'sam.pth' (known: sam_vit_h_4b8939.pth"),
    ({"sets": ["train.stpes=1"]}, "did you mean 'train.steps'"),
])
def test_mistakes_name_what_is_known(options: dict[str, list[str]], line: str) -> None:
    with pytest.raises(FssError) as error:
        make_cells(load_table("fcp_table1")[1], **options)  # type: ignore[arg-type]
    assert line in str(error.value)


def test_options_and_files(tmp_path: Path) -> None:
    assert parse_places(["a=b=c"], "--root") == {"a": "b=c"}
    with pytest.raises(FssError, match="write --root NAME=PLACE"):
        parse_places(["a"], "--root")
    with pytest.raises(FssError, match="no table 'fcp_table9'"):
        load_table("fcp_table9")
    (tmp_path / "t.yaml").write_text("title: x\nrosw: []\n")
    with pytest.raises(FssError, match=r"t\.yaml"):
        load_table(str(tmp_path / "t.yaml"))


@pytest.mark.parametrize(("change", "line"), [
    ({"reference": "nobody"}, "is not the name of a row"),
    ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows are named 'a'"),
    ({"rows": [{"name": "a", "columns": ["z"]}]}, "there is no column 'z'"),
    ({"rows": [{"name": "a", "published": {"one": [1.0]}}]}, "expected one figure"),
    ({"rows": [{"name": "a", "published": {"two": [1.0, 2.0]}}]}, "expected a list of 2 folds and their mean"),
    ({"rows": [{"name": "a", "mask": "attention"}]}, "is needed for the measures of pseudo masks"),
    ({"columns": {"one": {"title": "t", "recipe": "{method}_x"}}}, "has no `method` to replace"),
    ({"rivals": [{"name": "b", "source": "", "published": {}}]}, "at least 1 character"),
])
def test_a_table_that_contradicts_itself_is_refused(change: dict[str, object], line: str) -> None:
    good = {"title": "t", "paper": "p", "source": "s", "rows": [{"name": "a"}],
            "columns": {"one": {"title": "1", "recipe": "debug"}, "two": {"title": "2", "recipe": "debug", "folds": 2}}}
    PublishedTable.model_validate(good)
    with pytest.raises(ValueError, match=line):
        PublishedTable.model_validate(good | change)
