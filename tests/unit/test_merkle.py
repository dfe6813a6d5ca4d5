"""The Merkle tree against the definition of RFC 9162 written out naively, and against known values."""

import base64
import contextlib
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.evidence.note import BadNote, Checkpoint, NoNote, Signer, notes_in, opened, signed, verifier_key
from collector.store import merkle
from collector.store.merkle import Tree, consistency, consistent, edge, grown, included, inclusion, leaf_hash, tiles_for

LEAVES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                           "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
"""The leaves of the test vectors that Certificate Transparency's implementations share."""
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return hashlib.sha256(b"\1" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(m: int, hashes: list[bytes]) -> list[bytes]:
    if len(hashes) == 1:
        return []
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m < k:
        return [*naive_path(m, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(m - k, hashes[k:]), naive_root(hashes[:k])]


def naive_proof(m: int, hashes: list[bytes], *, whole: bool = True) -> list[bytes]:
    if m == len(hashes):
        return [] if whole else [naive_root(hashes)]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m <= k:
        return [*naive_proof(m, hashes[:k], whole=whole), naive_root(hashes[k:])]
    return [*naive_proof(m - k, hashes[k:], whole=False), naive_root(hashes[:k])]


def built(hashes: list[bytes], cuts: list[int]) -> dict[merkle.Tile, bytes]:
    """The tiles of a tree that grew in steps."""
    tiles: dict[merkle.Tile, bytes] = {}
    size = 0
    for end in [*sorted(cut for cut in cuts if cut < len(hashes)), len(hashes)]:
        tiles.update(grown(size, {tile: tiles[tile] for tile in edge(size)}, hashes[size:end]))
        size = end
    return tiles


def test_roots_are_those_of_the_known_vectors() -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES]
    tree = Tree(built(hashes, [3, 5]))
    assert [tree.root(n).hex() for n in range(1, 9)] == ROOTS
    assert tree.root(0).hex() == hashlib.sha256(b"").hexdigest()


HASHES = [leaf_hash(n.to_bytes(4, "big")) for n in range(70_000)]
sizes = st.one_of(
    st.integers(1, 1_100), st.sampled_from([255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 66_001])
)


@settings(max_examples=25, deadline=None)
@given(size=sizes, cuts=st.lists(st.integers(0, 66_000), max_size=5), data=st.data())
def test_roots_and_proofs_are_those_of_the_definition_however_the_tree_grew(
    size: int, cuts: list[int], data: st.DataObject
) -> None:
    hashes = HASHES[:size]
    tiles = built(hashes, cuts)
    assert all(len(body) <= 256 * 32 for body in tiles.values())
    old, leaf = data.draw(st.integers(1, size)), data.draw(st.integers(0, size - 1))
    ranges = [(0, size), (0, old), *inclusion(leaf, size), *consistency(old, size)]
    needed = tiles_for(ranges)
    assert len(needed) <= 12
    tree = Tree({tile: tiles[tile] for tile in needed})
    root, old_root = tree.root(size), tree.root(old)
    assert root == naive_root(hashes)
    assert old_root == naive_root(hashes[:old])
    path, proof = tree.hashes(inclusion(leaf, size)), tree.hashes(consistency(old, size))
    assert path == naive_path(leaf, hashes)
    assert proof == naive_proof(old, hashes)
    assert included(hashes[leaf], leaf, size, path, root)
    assert consistent(old, old_root, size, root, proof)


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_a_proof_of_something_else_does_not_hold(size: int, data: st.DataObject) -> None:
    tree = Tree(built(HASHES[:size], []))
    root = tree.root(size)
    leaf, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    path, proof = tree.hashes(inclusion(leaf, size)), tree.hashes(consistency(old, size))
    other = data.draw(st.integers(0, size - 1))
    assert included(HASHES[leaf], other, size, path, root) == (leaf == other)
    assert not included(HASHES[size], leaf, size, path, root)
    assert not included(HASHES[leaf], leaf, size, [*path, root], root)
    wrong = bytes(32)
    if old < size:
        assert not consistent(old, tree.root(old), size, wrong, proof)
        assert not consistent(old, wrong, size, root, proof)
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not consistent(old, tree.root(old), size, root, [*proof[:at], wrong, *proof[at + 1 :]])
        assert not consistent(old, tree.root(old), size, root, proof[:-1])


SIGNER = Signer("linewarden.example/plant", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
NOTE = signed(Checkpoint(SIGNER.name, 1234, bytes(32), datetime(2026, 1, 31, 14, tzinfo=UTC)), SIGNER)


def test_a_note_says_what_was_signed_and_who_signed_it() -> None:
    assert NOTE.startswith(
        f"linewarden.example/plant\n1234\n{base64.b64encode(bytes(32)).decode()}\ntime 2026-01-31T14:00:00Z\n\n\u2014 "
    )
    key = verifier_key(str(SIGNER.verifier))
    found, by = opened(NOTE, [key])
    assert (found.leaves, found.root, by) == (1234, bytes(32), SIGNER.verifier)


@given(at=st.integers(0, len(NOTE) - 1), char=st.characters(codec="utf-8"))
def test_a_note_of_which_any_character_was_changed_is_refused(at: int, char: str) -> None:
    changed = NOTE[:at] + char + NOTE[at + 1 :]
    if changed == NOTE:
        return
    try:
        found, _ = opened(changed, [SIGNER.verifier])
    except BadNote:
        return
    assert (found.origin, found.leaves, found.root) == (SIGNER.name, 1234, bytes(32)), (
        "what is believed is what was signed"
    )


def test_a_note_of_an_unknown_key_and_a_damaged_key_are_refused() -> None:
    other = Signer(SIGNER.name, Ed25519PrivateKey.generate())
    with pytest.raises(BadNote, match="no key is known"):
        opened(NOTE, [other.verifier])
    with pytest.raises(BadNote, match="damaged"):
        verifier_key(str(SIGNER.verifier).replace("example", "exbmple"))


def test_notes_are_found_one_after_the_other_and_in_lines_of_a_syslog_and_half_a_note_is_not() -> None:
    flat = NOTE.replace("\n", "\\n")
    syslog = f"<109>1 2026-01-31T14:00:00Z host linewarden-collector 1 checkpoint - \ufeff{flat}"
    for cut in range(1, len(NOTE) - 1):
        text = f"\n\n{NOTE}\n\n\n{NOTE[:cut]}\n\n{NOTE}\n{syslog}\n"
        good = 0
        for note in notes_in(text):
            with contextlib.suppress(NoNote):
                opened(note, [SIGNER.verifier])
                good += 1
        assert good == 3, cut
