"""When the pictures of a film are decoded, where its file does not say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

_MOST_LATE: Final = 32  # pictures: H.264 and H.265 reorder 16, each of which may be two fields


def decode_times(shown: Sequence[int | None], decoded: Sequence[int | None], step: int) -> list[int]:
    """When each picture is to be decoded: every one later than the one before, and none after it is shown.

    What the file says where that is so. Matroska says only when pictures are shown, and what libav concludes from it
    has holes and steps back if it took too few of them to wait for others. Then each is decoded when the picture is
    shown that comes, in the order of showing, as many places before it as pictures come too late at most.

    Args:
        shown: in the order of the file, in any unit; None where it is not known.
        decoded: by libav; None where it does not know either.
        step: between two pictures, in the same unit; for those decoded before the first one is shown.

    Raises:
        ValueError: neither is known of a picture, or pictures come far later than any codec has them.
    """
    given = [time for time in decoded if time is not None]
    if (
        len(given) == len(decoded)
        and all(before < after for before, after in pairwise(given))
        and all(show is None or decode <= show for decode, show in zip(given, shown, strict=True))
    ):
        return given
    known = [show if show is not None else decode for show, decode in zip(shown, decoded, strict=True)]
    times = [time for time in known if time is not None]
    if len(times) < len(known):
        raise ValueError("there are pictures in it without a time")
    order = sorted(range(len(times)), key=times.__getitem__)
    late = max(place - shown_as for shown_as, place in enumerate(order))
    if late > _MOST_LATE:
        raise ValueError("the clock of its pictures goes back")
    in_order = [times[place] for place in order]
    for at in range(len(in_order) - 2, -1, -1):  # two that are shown at once are not decoded at once
        in_order[at] = min(in_order[at], in_order[at + 1] - 1)
    return [in_order[0] - (late - at) * step if at < late else in_order[at - late] for at in range(len(in_order))]
