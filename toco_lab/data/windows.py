"""Where the windows lie that a long side is cut into."""


def window_starts(length: int, side: int, step: int) -> list[int]:
    """Where windows of a side begin along a length, `step` apart; the last one ends at the end, and overlaps by more.

    Example:
        >>> window_starts(250, 100, 50), window_starts(80, 100, 50)
        ([0, 50, 100, 150], [0])
    """
    last = max(0, length - side)
    return [*range(0, last, step), last]
