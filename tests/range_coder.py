"""The range coder of docs/format.md in plain integers, to measure the product by."""

from __future__ import annotations


class Reference:
    """The decoder of docs/format.md in plain integers, by which any other has to be measured."""

    def __init__(self, data):
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.lower, self.range, self.point = 0, 2**64 - 1, 0
        for _ in range(2):
            self.shift()

    def shift(self):
        word = self.words.pop(0) if self.words else 0
        self.point = (self.point << 32) % 2**64 | word

    def symbol(self, borders):
        """The number of the interval that comes next; borders are in 2**-24."""
        scale = self.range >> 24
        at = (self.point - self.lower) % 2**64 // scale
        found = max(i for i, border in enumerate(borders[:-1]) if border <= at)
        self.lower = (self.lower + scale * borders[found]) % 2**64
        self.range = scale * (borders[found + 1] - borders[found])
        if self.range < 2**32:
            self.lower, self.range = (self.lower << 32) % 2**64, self.range << 32
            self.shift()
        return found

    def uniform(self, size):
        return self.symbol([2**24 // size * i for i in range(size)] + [2**24])

    def mask(self, rows, columns):
        counts = [self.uniform(16) + 1 for _ in range(2)]
        classes = [
            [self.uniform(count) if count > 1 else 0 for _ in range(size)]
            for count, size in zip(counts, (rows, columns), strict=True)
        ]
        pairs = [(i, j) for i in range(counts[0]) for j in range(counts[1])]
        frequencies = {pair: self.uniform(65537) for pair in pairs}
        found = [[False] * columns for _ in range(rows)]
        for i, j in pairs:
            f = frequencies[i, j]
            borders = [0, (65536 - f) * (2**24 - 2) // 65536 + 1, 2**24]
            for row in (r for r in range(rows) if classes[0][r] == i):
                for column in (c for c in range(columns) if classes[1][c] == j):
                    sure = f in (0, 65536)
                    found[row][column] = bool(f) if sure else bool(self.symbol(borders))
        return found

    def plane(self, count, width=8):
        """A plane of digits of so many bits, None for a raw one."""
        if not self.uniform(2):
            return None
        low, span = self.uniform(2**width), self.uniform(2**width)
        held = [self.uniform(2) for _ in range(span + 1)]
        present = [low + i for i, one in enumerate(held) if one]
        size = len(present)
        frequencies = [self.uniform(65537) for _ in present]
        sums = [sum(frequencies[:i]) for i in range(size)]
        borders = [s * (2**24 - size) // 65536 + i for i, s in enumerate(sums)] + [2**24]
        return [present[self.symbol(borders) if size > 1 else 0] for _ in range(count)]
