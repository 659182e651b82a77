"""The selector's choices against times recorded on real layers: python -m benchmarks.selection --write tests/data/..."""

import pathlib

import pytest
from benchmarks import selection

from fastconv import _C

RECORDED = sorted(pathlib.Path(__file__).parent.joinpath("data").glob("selection*.csv"))


@pytest.fixture
def recorded(request):
    """{text: {row: seconds}}; the cost models believe that they run on the processor of the record."""
    facts, times = selection.read(request.param)
    before = _C.processor()
    _C.set_processor(int(facts["multiply_adds"]), int(facts["second_level"]), False, facts["isa"])
    yield times
    _C.set_processor(**before)


def test_there_is_a_record():
    assert RECORDED


@pytest.mark.parametrize("recorded", RECORDED, indirect=True, ids=lambda path: path.stem)
def test_at_least_95_percent_of_the_choices_are_as_good_as_the_best(recorded):
    assert len(recorded) >= 100
    _, good = selection.table(recorded, "as recorded")
    assert good >= 0.95 * len(recorded)


@pytest.mark.parametrize("recorded", RECORDED, indirect=True, ids=lambda path: path.stem)
def test_choosing_always_the_same_row_would_not_do(recorded):
    """The record is one that tells rows apart."""
    for row in selection.rows():
        good = sum(row in times and times[row] <= selection.WITHIN * min(times.values()) for times in recorded.values())
        assert good < 0.8 * len(recorded)


def test_a_record_is_read_as_it_was_written(tmp_path):
    text = "conv n1c8h9w11 k16r3s3 st1 pd1 dl1 g1 f32 nchw fwd bias relu acc:fast"
    times = {text: selection.measure(text)}
    assert set(times[text]) == {"direct", "im2col", "winograd"} and min(times[text].values()) > 0
    selection.write(tmp_path / "times.csv", times)
    facts, again = selection.read(tmp_path / "times.csv")
    assert facts["isa"] == _C.cpu_isa() and int(facts["second_level"]) == _C.processor()["second_level"]
    assert again == {text: {row: float(f"{value:.3e}") for row, value in times[text].items()}}


def test_every_pass_and_layout_is_among_the_problems():
    texts = selection.texts(("lenet5", "xception"))
    for word in (" fwd", " grad_input", " grad_weight", " nchw ", " nhwc "):
        assert any(word in text for text in texts)
    picked = selection.texts(("lenet5", "xception"), most=7)
    assert len(picked) == 7 and set(picked) < set(texts)
