"""A large string is put together beside the parser, in whatever pieces it comes."""

from __future__ import annotations

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pevensie.redis._resp import LARGE, MAX_REPLY_BYTES, LargeValue


@given(
    st.integers(LARGE, LARGE + 3),
    st.lists(st.integers(1, LARGE + 20), max_size=5),
    st.sampled_from([b"", b"+OK\r\n", b"$"]),
)
def test_in_any_pieces(length: int, cuts: list[int], behind: bytes) -> None:
    value = bytes(range(256)) * (length // 256) + b"\r" * (length % 256)
    data = b"$%d\r\n%b\r\n" % (length, value)
    first = 16
    cuts = sorted({first, *(first + cut for cut in cuts if first + cut < len(data))})
    pieces = [data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True)]
    pieces[-1] += behind
    large = LargeValue.begun(data[:first])
    assert large is not None
    assert [large.add(piece) for piece in pieces] == [*[None] * (len(pieces) - 1), behind]
    assert large.whole() == value


@pytest.mark.parametrize(
    "data",
    [
        b"$%d\r\nx" % (LARGE - 1),
        b"$%d\r\nx" % (MAX_REPLY_BYTES + 1),
        b"$%d\r\n%b\r\n" % (LARGE, b"x" * LARGE),
        b"$-1\r\n",
        b"$" + b"9" * 40,
        b"*2\r\n$%d\r\nx" % LARGE,
        b"+OK\r\n",
    ],
)
def test_what_is_left_to_the_parser(data: bytes) -> None:
    assert LargeValue.begun(data) is None


def test_longer_than_it_said() -> None:
    large = LargeValue.begun(b"$%d\r\n" % LARGE)
    assert large is not None
    assert large.add(b"x" * (LARGE + 2)) == b""
    with pytest.raises(hiredis.ProtocolError):
        large.whole()
