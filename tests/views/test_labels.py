"""Class numbers as other programs write them, in `.cls` members and in CSVs."""

import pytest

from unic_cache.views.labels import class_number, is_number, label_text


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("+1", 1), ("007", 7), (" 12\n", 12), ("2.0", 2), ("3.", 3), ("5.000", 5), ("9" * 18, 10**18 - 1)],
)
def test_whole_numbers_are_kept(text: str, number: int) -> None:
    assert class_number(text) == number
    assert is_number(text)


@pytest.mark.parametrize("text", ["", "  ", "-1", "-1.0", "-1.\n"])
def test_nothing_and_minus_one_are_no_label(text: str) -> None:
    assert class_number(text) is None
    assert is_number(text)


@pytest.mark.parametrize("text", ["cat", "1.5", "-2", "1e3", "0x10", "1,0", "[3]", "3\n4", "9" * 19, "\u0661", "nan"])
def test_anything_else_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="is not a class number"):
        class_number(text)


@pytest.mark.parametrize("text", ["cat", "nan", "inf", "3rd", "1-2", "n01440764"])
def test_names_are_no_numbers(text: str) -> None:
    assert not is_number(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_no_part_of_a_label(encoding: str) -> None:
    assert class_number(label_text("17\n".encode(encoding))) == 17


def test_what_is_no_text_cannot_be_read_and_raises_nothing_else() -> None:
    for data in (b"\xff", b"\xff\xfe\x31", b"\x80\x04cos\nsystem\n"):
        with pytest.raises(ValueError, match="is not a class number"):
            class_number(label_text(data))
