"""Tables beside images: joins, kinds of labels, groups and splits worked by hand, and what is said of bad ones."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.labels.group_split import group_split
from jepakit.data.labels.join import joined_rows
from jepakit.data.labels.table import TableSettings, read_table, table_settings
from jepakit.data.labels.table_labels import with_table
from jepakit.data.labels.table_values import values_of
from jepakit.data.opening import open_source
from jepakit.data.sources import ArraySource, Labels, Source
from jepakit.data.training_part import held_out, split_sentences, training_part, with_split
from jepakit.model.images import ImageSettings


class Titled(ArraySource):
    """Images of these titles."""

    def __init__(self, *titles: str, labels: Labels | None = None) -> None:
        super().__init__("set", np.zeros((len(titles), 1, 1, 3), np.uint8), labels)
        self.titles = titles

    def title(self, index: int) -> str:
        return self.titles[index]


def written(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def told(
    folder: Path, text: str | bytes, *titles: str, source: Source | None = None, name: str = "t.csv", **columns: Any
) -> Source:
    """What a table of this text tells of images of these titles."""
    file = written(folder / name, text)
    return with_table(source or Titled(*titles), TableSettings(file=file, **columns))


def labels_of(source: Source) -> Labels:
    assert source.labels is not None
    return source.labels


def classes_of(source: Source) -> list[str]:
    """The class of each image, - for none."""
    labels = labels_of(source)
    return [labels.classes[value] if value >= 0 else "-" for value in labels.values]


def said(source: Source) -> str:
    return "\n".join(source.notes)


# ---- reading


@pytest.mark.parametrize(
    "text",
    [
        b"file,label\na.png,cat\nb.png,dog\n",
        b"file,label\r\na.png,cat\r\nb.png,dog\r\n",  # Windows
        b"file,label\ra.png,cat\rb.png,dog\r",  # old Macs
        b"\xef\xbb\xbffile,label\r\na.png,cat\r\nb.png,dog",  # Excel's mark, no last line end
        "file,label\r\na.png,cat\r\nb.png,dog\r\n".encode("utf-16"),
        b'"file","label"\n"a.png","cat"\n"b.png","dog"\n',
        b"file;label\na.png;cat\nb.png;dog\n",
        b"file\tlabel\na.png\tcat\nb.png\tdog\n",
        b" file , label\n a.png, cat \n\n b.png ,dog\n,\n",  # blanks around, an empty line, a line of empty cells
    ],
)
def test_one_table_in_all_the_ways_that_programs_write_it(tmp_path: Path, text: bytes) -> None:
    assert classes_of(told(tmp_path, text, "b.png", "a.png")) == ["dog", "cat"]


def test_cells_in_quotes_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'file,label\n"a, 1.png","a ""big"" cat"\n"b.png","two\nlines"\nc.png,plain\n'
    source = told(tmp_path, text, "a, 1.png", "b.png", "c.png")
    assert classes_of(source) == ['a "big" cat', "two\nlines", "plain"]
    assert read_table(tmp_path / "t.csv").lines == [2, 3, 5]  # as an editor counts


def test_tsv_and_parquet_say_the_same(tmp_path: Path) -> None:
    written(tmp_path / "t.tsv", "file\tage\tsex\na.png\t30.5\tm,f\nb.png\t\tf\n")
    columns = {"file": ["a.png", "b.png"], "age": [30.5, None], "sex": ["m,f", "f"], "image": [b"x", b"y"], "at": [{"x": 1}] * 2}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    tsv, parquet = read_table(tmp_path / "t.tsv"), read_table(tmp_path / "t.parquet")
    assert tsv.cells == parquet.cells == {"file": ["a.png", "b.png"], "age": ["30.5", ""], "sex": ["m,f", "f"]}


def test_parquet_lists_numbers_and_dictionaries(tmp_path: Path) -> None:
    words = pa.array(["x", "y", None]).dictionary_encode()
    found = [["a", "b"], [], None]
    pq.write_table(pa.table({"id": [1, 2, 3], "w": words, "l": found, "f": [1.0, np.nan, 2.5]}), tmp_path / "t.parquet")
    cells = read_table(tmp_path / "t.parquet").cells
    assert cells == {"id": ["1", "2", "3"], "w": ["x", "y", ""], "l": ["a|b", "", ""], "f": ["1.0", "", "2.5"]}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "file,label\na.png,cat\nb.png,cat, dog\n", "line 3: 3 cells, and the first line has 2"),
        ("t.csv", 'file,label\n\na.png,"cat\n', "line 3: "),
        ("t.csv", b"file,label\na.png,caf\xe9\n", "no UTF-8 text"),
        ("t.csv", "file,label,label\na.png,1,2\n", "several columns 'label'"),
        ("t.csv", "file,label\n", "holds no rows"),
        ("t.csv", "", "holds no rows"),
        ("t.xlsx", "x", "give a file of .csv, .tsv, .parquet"),
        ("t.parquet", "PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(tmp_path: Path, name: str, text: str | bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")) as error:
        told(tmp_path, text, "a.png", name=name)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        with_table(Titled("a"), TableSettings(file=str(tmp_path / "none.csv")))


# ---- joins


@pytest.mark.parametrize(
    ("cells", "titles", "how", "rows"),
    [
        (["b/1.png", "a/1.png"], ["a/1.png", "b/1.png"], "relative path", [1, 0]),
        (["./a\\1.png", "b\\1.png"], ["a/1.png", "b/1.png"], "relative path", [0, 1]),  # Windows
        (["a/1", "b/1"], ["a/1.png", "b/1.jpg"], "relative path without its ending", [0, 1]),
        (["1.png", "2.png"], ["x/2.png", "y/1.png"], "file name", [1, 0]),
        (["1", "2"], ["x/2.tif", "1.tif"], "stem", [1, 0]),
        (["1.jpg", "2.jpg"], ["x/2.tif", "1.tif"], "stem", [1, 0]),  # converted meanwhile
        (["/home/me/set/a/1.png", "/home/me/set/b/1.png"], ["b/1.png", "a/1.png"], "path, less its first 4 folders", [1, 0]),
        (["C:\\set\\a\\1.png", "C:\\set\\b\\1.png"], ["b/1.png", "a/1.png"], "path, less its first 2 folders", [1, 0]),
        (["cafe\u0301.png"], ["caf\u00e9.png"], "relative path", [0]),  # macOS writes the accent apart
        (["v1", "v2"], ["x/v1.nii.gz", "x/v2.nii.gz"], "stem", [0, 1]),
        (["a.b.1", "a.b.2"], ["a.b.1.png", "a.b.2.png"], "relative path without its ending", [0, 1]),
    ],
)
def test_the_narrowest_way_that_fits_all_is_taken(cells: list[str], titles: list[str], how: str, rows: list[int]) -> None:
    found = joined_rows(cells, titles)
    assert (found.how, found.rows.tolist()) == (how, rows)
    assert not found.strangers and not found.ambiguous and not found.double


def test_paths_count_from_the_tables_folder_or_the_root() -> None:
    for cells in (["img/a.png", "other/a.png"], ["/set/img/a.png", "/set/other/a.png"], ["x/../img/a.png", "other/a.png"]):
        found = joined_rows(cells, ["a.png"], folder="/set", root="/set/img")
        assert (found.how, found.rows.tolist(), found.strangers) == ("path", [0], [1]), cells  # and other/a.png is not ours


def test_the_way_that_fits_most_is_taken_where_none_fits_all() -> None:
    found = joined_rows(["a/1.png", "a/2.png", "a/9.png", ""], ["a/1.png", "a/2.png", "a/3.png"])
    assert (found.how, found.rows.tolist(), found.strangers) == ("relative path", [0, 1, -1], [2, 3])


def test_one_stem_in_two_folders_is_no_ones_but_a_path_tells_them_apart() -> None:
    titles = ["x/1.png", "y/1.png", "x/2.png"]
    found = joined_rows(["1", "2"], titles)
    assert (found.rows.tolist(), found.ambiguous) == ([-1, -1, 1], [0])
    assert joined_rows(["x/1.png", "y/1.png", "x/2.png"], titles).rows.tolist() == [0, 1, 2]


def test_two_files_of_one_stem_are_told_apart_by_their_endings() -> None:
    found = joined_rows(["1.png", "1.jpg"], ["1.jpg", "1.png"])
    assert found.rows.tolist() == [1, 0]
    assert joined_rows(["1"], ["1.jpg", "1.png"]).ambiguous == [0]


def test_rows_of_other_paths_never_share_an_image(tmp_path: Path) -> None:
    """Half a set's table beside the other half of its images, which have the same names: no row is theirs."""
    titles = ["1.png", "2.png"]
    found = joined_rows(["b/1.png", "c/1.png", "b/2.png", "c/2.png"], titles)
    assert found.joined == 0 and [*found.contested] == [0, 1, 2, 3] and not found.double
    with pytest.raises(UserError, match="by file name 4 rows are several of one image: write paths that tell them apart"):
        told(tmp_path, "file,label\nb/1.png,x\nc/1.png,x\nb/2.png,x\nc/2.png,x\n", *titles)
    some = told(tmp_path, "file,label\nb/1.png,x\nc/1.png,x\nb/2.png,y\n", *titles)
    assert classes_of(some) == ["-", "y"]
    assert "2 rows of t.csv, 'b/1.png', 'c/1.png': several of one image by file name, so that none is its" in said(some)
    stems = joined_rows(["1.png", "1.jpg", "2.png", "2.png"], ["1.tif", "2.tif"])
    assert (stems.rows.tolist(), [*stems.contested], stems.double) == ([-1, 2], [0, 1], [(2, 3)])


@pytest.mark.parametrize("before", ["", "/data/old/", "C:\\set\\", "../"])
def test_a_table_of_the_whole_set_tells_of_one_folder_of_it(before: str) -> None:
    cells = [f"{before}{folder}/{name}.png" for folder in "abc" for name in (1, 2)]
    found = joined_rows(cells, ["2.png", "1.png"], folder="/elsewhere", root="/set/b")
    assert (found.how, found.rows.tolist(), [*found.strangers]) == ("path below b/", [3, 2], [0, 1, 4, 5])
    assert not found.unclear and not found.double


def test_what_does_not_join_is_counted_and_named_both_ways(tmp_path: Path) -> None:
    text = "file,label\na.png,cat\nb.png,dog\nq.png,cat\nr.png,cat\n"
    source = told(tmp_path, text, "a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
    assert classes_of(source) == ["cat", "dog", "-", "-", "-", "-"]
    assert "2 of 6 images have a row of 4, by relative path, column 'file' (guessed; --image names another)" in said(source)
    assert "2 rows of t.csv without an image here: 'q.png', 'r.png'" in said(source)
    assert "4 images without a row of t.csv, and so without a label: 'c.png', 'd.png', 'e.png', ..." in said(source)


def test_ambiguous_rows_are_named(tmp_path: Path) -> None:
    source = told(tmp_path, "id,label\n1,cat\n2,dog\n", "x/1.png", "y/1.png", "x/2.png")
    assert classes_of(source) == ["-", "-", "dog"]
    assert "1 row of t.csv, '1': of several images each, so that none is labelled by it" in said(source)


def test_a_row_given_twice_counts_once_and_one_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    source = told(tmp_path, "file,label,note\na.png,cat,x\nb.png,dog,\na.png,cat,y\n", "a.png", "b.png")
    assert classes_of(source) == ["cat", "dog"] and "1 row of t.csv repeated, saying the same" in said(source)
    with pytest.raises(UserError, match=r"lines 2 and 4 are both of a\.png and say 'cat' and 'dog' in 'label': leave one row"):
        told(tmp_path, "file,label\na.png,cat\nb.png,dog\na.png,dog\n", "a.png", "b.png")


def test_the_column_of_the_images_is_found_by_what_fits(tmp_path: Path) -> None:
    text = "index,name,scan,label\n1,Ann,a.png,x\n2,Bob,b.png,y\n"
    assert "column 'scan' (guessed" in said(told(tmp_path, text, "a.png", "b.png"))
    assert "column 'index' (guessed" in said(told(tmp_path, text, "1.png", "2.png"))
    age = "age,id,label\n7,7,x\n8,8,y\n"  # both fit: the usual name counts
    assert "column 'id' (guessed" in said(told(tmp_path, age, "7.png", "8.png"))
    assert "column 'age';" not in said(told(tmp_path, age, "7.png", "8.png", image="age"))
    assert "(guessed" not in said(told(tmp_path, age, "7.png", "8.png", image="age")).split("\n")[0]


def test_nothing_joins_is_said_with_three_examples_of_each_side(tmp_path: Path) -> None:
    rows = "".join(f"p{i},x\n" for i in range(9))
    with pytest.raises(UserError) as error:
        told(tmp_path, f"file,label\n{rows}", *(f"q{i}.png" for i in range(9)))
    for part in ("column 'file' holds 'p0', 'p1', 'p2', ...", "the images are 'q0.png', 'q1.png', 'q2.png', ...", "--image"):
        assert part in str(error.value)


def test_nothing_joins_as_names_repeat(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 row could be of several images each: write paths"):
        told(tmp_path, "file,label\n1.png,x\n", "x/1.png", "y/1.png")


def test_a_hundred_thousand_rows_are_joined(tmp_path: Path) -> None:
    n = 100_000
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "patient", "split", "a", "b", "age"])
        rows.writerows(
            [f"{i}.jpg", f"p{i // 7}", "test" if i // 7 % 5 == 0 else "train", i % 2, i % 3 % 2, i / 7] for i in range(n)
        )
    source = Titled(*(f"folder{i % 10}/{i}.png" for i in reversed(range(n))))
    settings = TableSettings(file=str(tmp_path / "t.csv"), labels="a,b", groups="patient")
    labels = labels_of(with_table(source, settings))
    order = np.arange(n)[::-1]
    assert labels.targets is not None and labels.groups is not None
    assert np.array_equal(labels.targets, np.stack([order % 2, order % 3 % 2], 1))
    assert np.array_equal(labels.test, order // 7 % 5 == 0)
    names = [labels.group_names[group] for group in labels.groups[:8]]
    assert names == [f"p{i // 7}" for i in order[:8]]


# ---- kinds of labels


def values(folder: Path, cells: list[str], kind: Any = None) -> Any:
    written(folder / "v.csv", "x,label\n" + "".join(f'{i},"{cell}"\n' for i, cell in enumerate(cells)))
    return values_of(read_table(folder / "v.csv"), ["label"], kind)


def test_words_are_classes_in_the_order_of_the_alphabet(tmp_path: Path) -> None:
    found = values(tmp_path, ["dog", "", "cat", "dog"])
    assert (found.classes, found.values.tolist(), found.targets) == (("cat", "dog"), [1, -1, 0, 1], None)


def test_few_whole_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    found = values(tmp_path, ["10", "9", "-1", "", "9"])
    assert (found.classes, found.values.tolist()) == (("-1", "9", "10"), [2, 1, 0, -1, 1])
    pandas = values(tmp_path, ["1.0", "", "0.0"])  # whole numbers beside an empty cell, as pandas writes them
    assert (pandas.classes, pandas.values.tolist()) == (("0", "1"), [1, -1, 0])
    assert len(values(tmp_path, [str(i) for i in range(20)]).classes) == 20


def test_many_whole_numbers_and_fractions_are_numbers(tmp_path: Path) -> None:
    found = values(tmp_path, [*map(str, range(20)), "", "20"])
    assert found.classes == () and found.values.tolist() == [0] * 20 + [-1, 0]
    assert np.isnan(found.targets[20]) and found.targets[21] == 20
    assert values(tmp_path, ["0.5", "-1e-3", "NA", ""]).targets[:2].tolist() == [0.5, -1e-3]
    assert "'NA' counts as empty" in values(tmp_path, ["0.5", "NA"]).said


def test_several_columns_are_several_labels_with_cells_missing(tmp_path: Path) -> None:
    written(tmp_path / "m.csv", "f,a,b\n1,1,0\n2,,1.0\n3,,\n4,True,false\n")
    found = values_of(read_table(tmp_path / "m.csv"), ["a", "b"], None)
    assert found.classes == ("a", "b") and found.values.tolist() == [0, 0, -1, 0]
    assert np.array_equal(found.targets, [[1, 0], [np.nan, 1], [np.nan, np.nan], [1, 0]], equal_nan=True)


def test_words_for_nothing_are_empty_cells_of_several_labels_too(tmp_path: Path) -> None:
    written(tmp_path / "m.csv", "f,a,b\n1,1,NA\n2,nan,1\n3,NA,NA\n")  # as R and others write them
    found = values_of(read_table(tmp_path / "m.csv"), ["a", "b"], None)
    assert found.values.tolist() == [0, 0, -1] and "; 'NA', 'nan' count as empty" in found.said
    assert np.array_equal(found.targets, [[1, np.nan], [np.nan, 1], [np.nan, np.nan]], equal_nan=True)
    one = values(tmp_path, ["1", "0", "NA"], "multi")
    assert one.classes == ("label",) and np.array_equal(one.targets, [[1], [0], [np.nan]], equal_nan=True)
    assert "'NA' is one: empty its cells" in values(tmp_path, ["a|b", "NA"]).said  # of words it may be a label's name


def test_words_with_strokes_between_are_several_labels(tmp_path: Path) -> None:
    found = values(tmp_path, ["mass|edema", "edema", "", "no finding"])
    assert found.classes == ("edema", "mass", "no finding") and found.values.tolist() == [0, 0, -1, 0]
    expected = [[1, 1, 0], [1, 0, 0], [np.nan] * 3, [0, 0, 1]]
    assert np.array_equal(found.targets, expected, equal_nan=True)


def test_as_overrules(tmp_path: Path) -> None:
    assert values(tmp_path, ["1", "2"], "number").targets.tolist() == [1, 2]
    assert values(tmp_path, ["0.5", "0.25"], "class").classes == ("0.25", "0.5")
    assert values(tmp_path, ["a|b", "c"], "class").classes == ("a|b", "c")
    assert values(tmp_path, ["a", "c"], "multi").targets.tolist() == [[1, 0], [0, 1]]
    one = values(tmp_path, ["1", "0", ""], "multi")
    assert one.classes == ("label",) and np.array_equal(one.targets, [[1], [0], [np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"labels": "agee"}, r"has no column 'agee' \(--labels\), but 'file', 'age', 'sex', 'empty'; did you mean 'age'\?"),
        ({"labels": "age", "groups": "patient"}, r"has no column 'patient' \(--groups\)"),
        ({"labels": "age", "splits": "sex"}, "column 'sex' is no split: it holds 'f', 'm', and words for train"),
        ({"labels": "sex", "kind": "number"}, r"column 'sex' holds 'm' \(line 2\), which is no number"),
        ({"labels": "age,sex"}, r"column 'age' holds '30' \(line 2\): where several labels are given at once, each is 0 or 1"),
        ({"labels": "age,sex", "kind": "class"}, "--as class takes one column of labels, not 2: age, sex"),
        ({"labels": "empty"}, "column 'empty' holds no label of any image here"),
    ],
)
def test_bad_columns_are_one_sentence(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        told(tmp_path, "file,age,sex,empty\na.png,30,m,\nb.png,31,f,\n", "a.png", "b.png", **columns)


def test_decimal_commas_are_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds '0,5' \(line 2\), which is no number: numbers are written as 0\.5"):
        told(tmp_path, "file;x\na.png;0,5\n", "a.png", labels="x", kind="number")


def test_words_that_may_stand_for_nothing_are_said(tmp_path: Path) -> None:
    assert "'NA' is one: empty its cells if it stands for no label" in values(tmp_path, ["cat", "NA"]).said
    assert "some of them numbers beside words such as 'about 7'" in values(tmp_path, ["7", "about 7"]).said


def test_without_a_column_that_is_plainly_labels_none_are_taken_and_that_is_said(tmp_path: Path) -> None:
    source = told(tmp_path, "file,age,sex\na.png,30,m\nb.png,31,f\n", "a.png", "b.png")
    assert source.labels is None and "no labels are taken from t.csv: --labels NAME takes a column ('age', 'sex')" in said(source)
    guess = told(tmp_path, "file,Label\na.png,m\nb.png,f\n", "a.png", "b.png")
    assert "labels are column 'Label', guessed by its name: 2 classes" in said(guess)


def test_keywords_of_a_table_without_one_are_refused() -> None:
    assert table_settings(None, {"labels": "count", "listed": False}) is None
    with pytest.raises(UserError, match="--groups is said of a table"):
        table_settings(None, {"groups": "patient"})
    with pytest.raises(UserError, match="there is no argument 'group'; did you mean 'groups'"):
        table_settings("t.csv", {"group": "patient"})
    with pytest.raises(UserError, match="kind: Input should be 'class', 'number' or 'multi'"):
        table_settings("t.csv", {"as_": "words"})
    given = table_settings({"file": "t.csv", "kind": "number"}, {"labels": "age", "groups": None})
    assert given == TableSettings(file="t.csv", kind="number", labels="age")


# ---- groups and splits


def of(value: list[int], groups: list[int] | None = None, targets: Any = None, classes: str = "abcdefgh") -> Labels:
    test = np.zeros(len(value), bool)
    array = None if groups is None else np.array(groups)
    return Labels("x", tuple(classes), np.array(value), test, array, own_split=False, targets=targets)


def test_a_split_made_here_divides_no_group() -> None:
    draw = np.random.default_rng(0)
    for seed in range(30):
        groups = draw.integers(0, 40, 400)
        kinds: list[Any] = [None, draw.normal(size=400), (draw.uniform(size=(400, 3)) < 0.2).astype(float)]
        for targets in kinds:
            value = draw.integers(-1, 3, 400) if targets is None else np.where(draw.uniform(size=400) < 0.1, -1, 0)
            labels = group_split(of(value.tolist(), groups.tolist(), targets, "abc"))
            held = {int(g) for g in groups[labels.test]}
            assert not held & {int(g) for g in groups[~labels.test]}, seed
            assert 3 <= len(held) <= 13
            if targets is None:
                assert {*value[labels.test & (value >= 0)]} == {*value[~labels.test & (value >= 0)]} == {0, 1, 2}


def test_groups_held_out_are_worked_by_hand() -> None:
    one_class_each = of([0] * 10 + [1] * 10, [*range(10), *range(10, 20)])
    assert np.flatnonzero(group_split(one_class_each).test).tolist() == [4, 9, 14, 19]  # every fifth of each class
    few = of([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 3, 3])  # two groups of each class: its last
    assert group_split(few).test.tolist() == [False, False, True, True, False, True, True]
    alone = of([0, 0, 1, 1], [0, 0, 1, 1])  # one group of each class: nothing can be held out
    assert not group_split(alone).test.any()
    rare = of([0, 1, 0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 2, 3, 4, 5, 6, 7])  # of class 1, in groups 0 and 1, the second
    assert np.flatnonzero(group_split(rare).test).tolist() == [2, 3, 8]  # and the fifth of those of class 0 alone
    unlabelled = of([0, 0, -1, 1, 1, -1], [0, 1, 1, 2, 3, 4])  # an image without a label goes where its group goes
    assert group_split(unlabelled).test.tolist() == [False, True, True, False, True, False]


def test_numbers_are_held_out_evenly_over_their_range() -> None:
    numbers = np.arange(20.0)[::-1].copy()
    assert numbers[group_split(of([0] * 20, None, numbers)).test].tolist() == [17, 12, 7, 2]
    groups = [i // 2 for i in range(20)]  # means 18.5, 16.5 ... 0.5: of ten groups the third and the eighth
    assert numbers[group_split(of([0] * 20, groups, numbers)).test].tolist() == [15, 14, 5, 4]


def test_given_splits_are_kept_and_groups_on_both_sides_are_counted(tmp_path: Path) -> None:
    rows = [
        ("a", "p1", "train"),
        ("b", "p1", "test"),
        ("c", "p2", "train"),
        ("d", "p3", "test"),
        ("e", "", "train"),
        ("f", "", "test"),
    ]
    text = "file,label,patient,split\n" + "".join(f"{f},{i % 2},{p},{s}\n" for i, (f, p, s) in enumerate(rows))
    source = told(tmp_path, text, *"abcdef")
    labels = labels_of(source)
    assert labels.own_split and labels.test.tolist() == [False, True, False, True, False, True]
    assert labels.groups is not None and labels.group_names == ("p1", "p2", "p3")
    assert labels.groups.tolist() == [0, 0, 1, 2, 3, 4]  # an image without a group stands alone
    assert "1 of 3 groups ('p1') have images on both sides of the given split" in said(source)
    assert "groups are column 'patient' (guessed; --groups names another): 3" in said(source)
    assert "the split is 'split' (test 3, train 3)" in said(source)


def test_held_out_rows_do_not_train_and_rows_without_a_part_do(tmp_path: Path) -> None:
    source = told(tmp_path, "file,split\na,train\nb,val\nc,test\nd,\n", *"abcde")
    assert held_out(source) is not None and source.labels is None
    images = with_split(ImageSettings(), source)
    part = training_part(source, images)
    assert images.split == "train" and [part.title(i) for i in range(len(part))] == ["a", "d", "e"]


def test_validation_is_apart_where_there_is_a_test(tmp_path: Path) -> None:
    text = "file,label,split\na,x,train\nb,y,train\nc,x,val\nd,y,test\n"
    labels = labels_of(told(tmp_path, text, *"abcd"))
    assert labels.values.tolist() == [0, 1, -1, 1] and labels.apart == 1
    numbers = labels_of(told(tmp_path, text.replace("x", "1.5").replace("y", "2"), *"abcd"))
    assert numbers.kind == "number" and numbers.targets is not None
    assert np.array_equal(numbers.targets, [1.5, 2, np.nan, 2], equal_nan=True)


def test_labels_of_the_set_stay_and_get_groups_and_a_split(tmp_path: Path) -> None:
    value = np.array([0, 0, 0, 1, 1, 1])
    own = Labels("folder", ("x", "y"), value, np.zeros(6, bool), own_split=False, whole_image=True)
    text = "file,patient\n" + "".join(f"{f},p{i // 2}\n" for i, f in enumerate("abcdef"))
    labels = labels_of(told(tmp_path, text, source=Titled(*"abcdef", labels=own)))
    assert labels.name == "folder" and labels.whole_image and labels.groups is not None and not labels.own_split
    for group in range(3):
        assert len({*labels.test[labels.groups == group].tolist()}) == 1
    split = "file,part\n" + "".join(f"{f},{'test' if f in 'cf' else 'train'}\n" for f in "abcdef")
    labels = labels_of(told(tmp_path, split, source=Titled(*"abcdef", labels=own), splits="part"))
    assert labels.own_split and labels.test.tolist() == [False, False, True, False, False, True]


def test_what_was_held_out_is_said_in_groups(tmp_path: Path) -> None:
    text = "file,label,patient\n" + "".join(f"{i},{i % 2},p{i}\n" for i in range(20))
    source = told(tmp_path, text, *map(str, range(20)))
    first, *_ = split_sentences(source, ImageSettings(split="all"))
    assert "a fifth of the groups, which evaluate tests on, too" in first


def test_groups_of_the_set_stay_where_the_table_has_none(tmp_path: Path) -> None:
    own = Labels("class", ("x", "y"), np.array([0, 0, 1, 1]), np.zeros(4, bool), np.array([0, 0, 1, 1]), group_names=("p", "q"))
    labels = labels_of(told(tmp_path, "file,label\na,1\nb,2\nc,1\nd,2\n", source=Titled(*"abcd", labels=own)))
    assert labels.name == "label" and labels.group_names == ("p", "q")
    assert labels.groups is not None and labels.groups.tolist() == [0, 0, 1, 1]


def test_a_row_of_a_volume_is_of_all_its_slices_which_are_a_group(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    draw = np.random.default_rng(0)
    for i in range(4):
        np.save(tmp_path / "scans" / f"p{i}.npy", draw.integers(0, 255, (3 + i, 8, 8), dtype=np.uint8))
    file = written(tmp_path / "t.csv", "id,label\np0,x\np1,y\np2,x\np3,y\n")
    source = open_source(tmp_path / "scans", table=TableSettings(file=file), images=ImageSettings(axis="z"))
    labels = labels_of(source)
    assert classes_of(source) == ["x"] * 3 + ["y"] * 4 + ["x"] * 5 + ["y"] * 6
    assert labels.groups is not None and labels.groups.tolist() == [0] * 3 + [1] * 4 + [2] * 5 + [3] * 6
    assert labels.test.tolist() == [False] * 7 + [True] * 11  # of two volumes of a class the last
    slices = written(tmp_path / "s.csv", "slice,label\n" + "".join(f"{source.title(i)},{i / 4}\n" for i in range(18)))
    each = labels_of(open_source(tmp_path / "scans", table=TableSettings(file=slices), images=ImageSettings(axis="z")))
    assert each.targets is not None and each.targets.tolist() == [i / 4 for i in range(18)] and each.groups is not None


# ---- images that the table lists


def test_a_table_lists_the_images_and_others_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png", "x/c.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name)
    text = f"path,label\nx/c.png,1\n{tmp_path / 'set' / 'a.png'},0\nx/none.png,1\n../secret.png,1\nx/c.png,1\n"
    table = TableSettings(file=written(tmp_path / "t.csv", text), listed=True)
    source = open_source(tmp_path / "set", table=table)
    assert [source.title(i) for i in range(len(source))] == ["x/c.png", "a.png"] and classes_of(source) == ["1", "0"]
    assert "2 paths of t.csv left out, without a file below" in said(source) and "'x/none.png'" in said(source)
    with pytest.raises(UserError, match="names a file below"):
        open_source(tmp_path / "set", table=TableSettings(file=written(tmp_path / "u.csv", "path,label\nq,1\n"), listed=True))


def test_a_folder_beside_its_table(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "img" / name)
    file = written(tmp_path / "labels.csv", "file,label\nimg/a.png,x\nimg/b.png,y\n")
    source = open_source(tmp_path, table=TableSettings(file=file))
    assert classes_of(source) == ["x", "y"] and "may tell labels" not in said(source)
    assert "--table FILE.csv" in said(open_source(tmp_path))
    assert "by path, column 'file'" in said(open_source(tmp_path / "img", table=TableSettings(file=file)))
