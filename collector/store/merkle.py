"""The Merkle tree of RFC 9162, section 2.1, kept in tiles so that it grows in place.

    leaf   SHA-256(0x00 ‖ bytes of the leaf)
    node   SHA-256(0x01 ‖ left ‖ right), the left part of n leaves being the largest power of two below n

A tile of level 0 holds up to 256 hashes of leaves, one of level n up to 256 roots of full tiles of level n - 1. Every complete subtree of
2^h leaves is then the fold of neighbours in one tile, and a root, or a proof, reads a few tiles however large the tree. Adding leaves
rewrites the last tile of each level and no other.

Proofs are named first as ranges of leaves (which is arithmetic) and then looked up.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_HASHES = 1 << TILE_HEIGHT
EMPTY_ROOT = hashlib.sha256(b"").digest()

Tile = tuple[int, int]
"""Level and number."""
Range = tuple[int, int]
"""Leaves from … to, the last not included."""


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[n], level[n + 1]) for n in range(0, len(level), 2)]
    return level[0]


def split(size: int) -> int:
    """Where a tree of `size` leaves is divided: the largest power of two below it."""
    return 1 << (size - 1).bit_length() - 1


# ── what a root or a proof consists of ───────────────────────────────────────────────────────────────────────────────


def complete(wanted: Range) -> Iterator[tuple[int, int]]:
    """Height and number of the complete subtrees that make up a range, left to right. It begins where a subtree of its size may."""
    begin, end = wanted
    while begin < end:
        height = (end - begin).bit_length() - 1
        yield height, begin >> height
        begin += 1 << height


def inclusion(leaf: int, size: int) -> list[Range]:
    """The subtrees beside the way from a leaf to the root, from the leaf up."""
    begin, end, found = 0, size, list[Range]()
    while end - begin > 1:
        middle = begin + split(end - begin)
        if leaf < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    return found[::-1]


def consistency(old: int, size: int) -> list[Range]:
    """The subtrees that prove that the tree of `old` leaves is the beginning of that of `size`. 0 < old ≤ size."""
    begin, end, found, whole = 0, size, list[Range](), True
    while old < end:
        middle = begin + split(end - begin)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin, whole = middle, False
    if not whole:
        found.append((begin, end))
    return found[::-1]


def tile_of(height: int, number: int) -> tuple[Tile, int, int]:
    """The tile that a complete subtree lies in, and the hashes there that it is the fold of: from, to."""
    level, above = divmod(height, TILE_HEIGHT)
    first = number << above
    at = first % TILE_HASHES
    return (level, first // TILE_HASHES), at, at + (1 << above)


def tiles_for(ranges: Iterable[Range]) -> set[Tile]:
    """The tiles that have to be read."""
    return {tile_of(*node)[0] for wanted in ranges for node in complete(wanted)}


class MissingTile(LookupError):
    """A tile is not there, or is too short for the size that was asked for."""


class Tree:
    """Some tiles, and what can be computed from them."""

    def __init__(self, tiles: Mapping[Tile, bytes]) -> None:
        self._tiles = tiles

    def hash_of(self, wanted: Range) -> bytes:
        """The root over a range of leaves. Raises MissingTile."""
        nodes = [self._node(height, number) for height, number in complete(wanted)]
        if not nodes:
            return EMPTY_ROOT
        result = nodes[-1]
        for left in reversed(nodes[:-1]):
            result = node_hash(left, result)
        return result

    def root(self, size: int) -> bytes:
        """The root over the first leaves."""
        return self.hash_of((0, size))

    def hashes(self, ranges: Iterable[Range]) -> list[bytes]:
        """A proof."""
        return [self.hash_of(wanted) for wanted in ranges]

    def _node(self, height: int, number: int) -> bytes:
        tile, first, end = tile_of(height, number)
        body = self._tiles.get(tile, b"")
        if len(body) < end * HASH_BYTES:
            raise MissingTile(
                f"tile {tile[1]} of level {tile[0]} has {len(body) // HASH_BYTES} hashes, {end} are needed"
            )
        return fold(hashes_in(body)[first:end])


def hashes_in(body: bytes) -> list[bytes]:
    """The hashes of a tile."""
    return [body[at : at + HASH_BYTES] for at in range(0, len(body), HASH_BYTES)]


def edge(size: int) -> list[Tile]:
    """The last tile of each level that has hashes and is not full."""
    found = []
    level = 0
    while count := size >> (TILE_HEIGHT * level):
        if count % TILE_HASHES:
            found.append((level, count // TILE_HASHES))
        level += 1
    return found


def grown(size: int, tiles: Mapping[Tile, bytes], leaves: Sequence[bytes]) -> dict[Tile, bytes]:
    """The tiles that change when hashes of leaves are added to a tree of `size` leaves, whose `edge` is in `tiles`. Raises MissingTile."""
    changed: dict[Tile, bytes] = {}
    level, adding = 0, list(leaves)
    while adding:
        count = size >> (TILE_HEIGHT * level)
        number, there = divmod(count, TILE_HASHES)
        body = tiles.get((level, number), b"") if there else b""
        if len(body) != there * HASH_BYTES:
            raise MissingTile(f"tile {number} of level {level} has {len(body) // HASH_BYTES} hashes instead of {there}")
        whole = hashes_in(body) + adding
        adding = []
        for at in range(0, len(whole), TILE_HASHES):
            part = whole[at : at + TILE_HASHES]
            changed[level, number + at // TILE_HASHES] = b"".join(part)
            if len(part) == TILE_HASHES:
                adding.append(fold(part))
        level += 1
    return changed


# ── what anybody can check with a root alone ─────────────────────────────────────────────────────────────────────────


def included(leaf: bytes, number: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162, 2.1.3.2: whether the leaf of this hash is number `number` under the root."""
    if not 0 <= number < size:
        return False
    fn, sn, result = number, size - 1, leaf
    for hash_ in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            result = node_hash(hash_, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, hash_)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and result == root


def consistent(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """RFC 9162, 2.1.4.2: whether the tree of `old` leaves is the beginning of the one of `size`."""
    if not 0 < old <= size or (old == size and path):
        return False
    if old == size:
        return old_root == root
    hashes = list(path)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    fn, sn = old - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = hashes[0]
    for hash_ in hashes[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(hash_, fr), node_hash(hash_, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, hash_)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == root
