"""Checks an evidence bundle. Needs Python 3.8 or later and nothing else: no database, no network, no other library.

    python3 verify.py                  in the folder into which the bundle was unpacked
    python3 verify.py BUNDLE.zip
    python3 verify.py --key KEY        believe this verifier key, and not the one that came with the bundle

What is proven, step by step: each file is the one that the signed list names. The checkpoint is signed by the installation's key. Each
batch is a
leaf under the checkpoint's root (RFC 9162). Each event is a line of its batch, whose hash is in that leaf. Where the agent was
enrolled, its own
key signed the batch. A personal line is the one that the event commits to. If the key was published elsewhere before, nobody can have
changed any
of it since, the owner of the database included.

Exit code: 0 everything holds; 1 something does not; 2 it could not be checked.
"""

import base64
import binascii
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple  # noqa: UP035 - runs where Python is older than ours

# ── Ed25519, RFC 8032, verification alone ────────────────────────────────────────────────────────────────────────────

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_I = pow(2, (_P - 1) // 4, _P)
_Point = Tuple[int, int, int, int]  # noqa: UP006
KEY_BYTES, SIGNATURE_BYTES, HASH_BYTES = 32, 64, 32


def _root_of_x(y: int, sign: int) -> Optional[int]:  # noqa: UP045
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _I % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    return _P - x if x & 1 != sign else x


def _point(raw: bytes) -> Optional[_Point]:  # noqa: UP045
    number = int.from_bytes(raw, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    x = _root_of_x(y, sign) if y < _P else None
    return None if x is None else (x, y, 1, x * y % _P)


def _add(a: _Point, b: _Point) -> _Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    g, h = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    i, j, k, m = f - e, h - g, h + g, f + e
    return i * j % _P, k * m % _P, j * k % _P, i * m % _P


def _times(number: int, point: _Point) -> _Point:
    result: _Point = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = _add(result, point)
        point = _add(point, point)
        number >>= 1
    return result


_BASE_Y = 4 * pow(5, _P - 2, _P) % _P


def signature_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is that of a key over a message."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    key, r, s = _point(public), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    base_x = _root_of_x(_BASE_Y, 0)
    if key is None or r is None or s >= _L or base_x is None:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % _L
    left = _times(s, (base_x, _BASE_Y, 1, base_x * _BASE_Y % _P))
    right = _add(r, _times(challenge, key))
    return not ((left[0] * right[2] - right[0] * left[2]) % _P or (left[1] * right[2] - right[1] * left[2]) % _P)


# ── RFC 9162 ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def included(leaf: bytes, number: int, size: int, path: List[bytes], root: bytes) -> bool:  # noqa: UP006
    """Whether the leaf of this hash is number `number` under the root."""
    if not 0 <= number < size:
        return False
    fn, sn, result = number, size - 1, leaf
    for hash_ in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            result = _node(hash_, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = _node(result, hash_)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and result == root


def consistent(old: int, old_root: bytes, size: int, root: bytes, path: List[bytes]) -> bool:  # noqa: UP006
    """Whether the tree of `old` leaves is the beginning of the one of `size`."""
    if old == size:
        return old_root == root and not path
    if not 0 < old < size:
        return False
    hashes = [old_root, *path] if old & (old - 1) == 0 else list(path)
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
            fr, sr = _node(hash_, fr), _node(hash_, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = _node(sr, hash_)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == root


# ── the bundle ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Wrong(Exception):
    """Something does not hold. The text says what."""


class Key:
    """A verifier key: name+id+base64."""

    def __init__(self, text: str) -> None:
        try:
            self.name, self.id, encoded = text.strip().split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise Wrong("key.txt: no verifier key") from None
        self.public = raw[1:]
        if hashlib.sha256(self.name.encode() + b"\n" + raw).hexdigest()[:8] != self.id or raw[:1] != b"\1":
            raise Wrong("key.txt: the key does not fit its id")


class Bundle:
    """The files, from a folder or a zip."""

    def __init__(self, place: Path) -> None:
        if place.is_dir():
            self.files = {str(p.relative_to(place).as_posix()): p.read_bytes() for p in place.rglob("*") if p.is_file()}
            # What Python or a desktop leaves behind in a folder is not of the bundle.
            self.files = {n: b for n, b in self.files.items() if "__pycache__" not in n and not n.endswith(".zip")}
        else:
            with zipfile.ZipFile(place) as archive:
                self.files = {name: archive.read(name) for name in archive.namelist()}

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise Wrong(f"{name}: is not there")
        return self.files[name]

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise Wrong(f"{name}: cannot be read: {error}") from None


def check_files(bundle: Bundle, key: Key) -> Dict[str, Any]:  # noqa: UP006
    """The list of files, its signature, and each file."""
    manifest = bundle.read("bundle.json")
    try:
        signature = base64.b64decode(bundle.read("bundle.sig"), validate=True)
    except (ValueError, binascii.Error):
        raise Wrong("bundle.sig: cannot be read") from None
    if not signature_holds(key.public, b"linewarden bundle\n" + manifest, signature):
        raise Wrong(f"bundle.json: the list of files is not signed by key {key.name} {key.id}")
    said: Dict[str, Any] = bundle.json("bundle.json")  # noqa: UP006
    for name, digest in said["files"].items():
        if hashlib.sha256(bundle.read(name)).hexdigest() != digest:
            raise Wrong(f"{name}: is not the file that was exported")
    more = set(bundle.files) - set(said["files"]) - {"bundle.json", "bundle.sig", "key.txt"}
    if more:
        raise Wrong(f"{min(more)}: is no part of the bundle")
    return said


def read_note(bundle: Bundle, name: str, key: Key) -> Tuple[int, bytes]:  # noqa: UP006
    """Leaves and root of a checkpoint that the key signed."""
    body, _, rest = bundle.read(name).decode("utf-8", "replace").partition("\n\n")
    lines = body.split("\n")
    for line in rest.strip("\n").split("\n"):
        parts = line.split(" ")
        try:
            blob = base64.b64decode(parts[-1], validate=True)
        except (ValueError, binascii.Error):
            continue
        if parts[1:2] == [key.name] and blob[:4].hex() == key.id:
            if signature_holds(key.public, (body + "\n").encode(), blob[4:]):
                return int(lines[1]), base64.b64decode(lines[2])
            raise Wrong(f"{name}: the signature does not hold")
    raise Wrong(f"{name}: is not signed by key {key.name} {key.id}")


def check_batch(bundle: Bundle, proof: Dict[str, Any], size: int, root: bytes) -> Dict[str, Any]:  # noqa: UP006
    """A batch: header, lines, leaf, and the way to the root. Its header."""
    folder = proof["folder"]
    header_bytes, core = bundle.read(f"{folder}/header.json"), bundle.read(f"{folder}/core.ndjson")
    header: Dict[str, Any] = json.loads(header_bytes)  # noqa: UP006
    if hashlib.sha256(core).hexdigest() != header["core_sha256"] or len(core) != header["core_bytes"]:
        raise Wrong(f"{folder}/core.ndjson: is not what the header names")
    if len(core.split(b"\n")) != header["events"]:
        raise Wrong(f"{folder}/core.ndjson: has another number of lines than the header says")
    leaf = bundle.read(f"{folder}/leaf")
    head, _, text = leaf.partition(b"\n")
    said = json.loads(text)
    digest = hashlib.sha256(b"\1" + header_bytes).hexdigest()
    wanted = {"agent": header["agent"], "buffer": header["buffer"], "lane": header["lane"], "no": header["no"], "hash": digest,
              "prev": header["prev"], "events": header["events"]}  # fmt: skip
    if head != b"linewarden batch" or any(said.get(name) != value for name, value in wanted.items()):
        raise Wrong(f"{folder}/leaf: is about another batch than the header")
    path = [bytes.fromhex(text) for text in proof["path"]]
    if not included(hashlib.sha256(b"\0" + leaf).digest(), proof["leaf"], size, path, root):
        raise Wrong(f"{folder}: is not under the root of the checkpoint")
    check_personal(bundle, folder, core)
    return header


def check_personal(bundle: Bundle, folder: str, core: bytes) -> None:
    """Personal lines, where they were exported."""
    name = f"{folder}/personal.ndjson"
    if name not in bundle.files:
        return
    lines = bundle.read(name).split(b"\n")
    cores = core.split(b"\n")
    if len(lines) != len(cores):
        raise Wrong(f"{name}: has another number of lines than core.ndjson")
    for number, (line, said) in enumerate(zip(lines, cores)):  # noqa: B905 - runs where zip has no strict
        if line and hashlib.sha256(line).hexdigest() != json.loads(said).get("commit"):
            raise Wrong(f"{name}: line {number} is not the one that the event commits to")


def check_signature(bundle: Bundle, proof: Dict[str, Any], header: Dict[str, Any]) -> bool:  # noqa: UP006
    """The agent's own signature, where it was enrolled: over a run of batches that this one is in. Whether there is one."""
    name = proof.get("signature")
    if name is None:
        return False
    text = bundle.read(f"{name}.txt").decode("utf-8", "replace")
    said = dict(line.split(" ", 1) for line in text.split("\n")[1:6])
    keys = bundle.json("agent_keys.json")
    if said.get("key") not in keys:
        raise Wrong(f"{name}.txt: its key is not in agent_keys.json")
    key = keys[said["key"]]
    public = bytes.fromhex(key["public_key"])
    if hashlib.sha256(public).hexdigest()[:32] != said["key"]:
        raise Wrong("agent_keys.json: a key does not fit its id")
    if not signature_holds(public, text.encode(), bytes.fromhex(bundle.read(f"{name}.sig").decode().strip())):
        raise Wrong(f"{name}.sig: is not the signature of key {said['key']}")
    if said.get("agent") != header["agent"] or key["agent"] != header["agent"]:
        raise Wrong(f"{name}.txt: speaks for another agent")
    end = chain_end(bundle, proof, header)
    for line in text.split("\n"):
        run = line.split(" ")
        if (
            run[:3] == ["run", header["buffer"], str(header["lane"])]
            and int(run[3]) <= header["no"]
            and (int(run[4]), run[5]) == end
        ):
            return True
    raise Wrong(f"{name}.txt: does not cover batch {header['no']}")


def chain_end(bundle: Bundle, proof: Dict[str, Any], header: Dict[str, Any]) -> Tuple[int, str]:  # noqa: UP006
    """Number and hash of the last batch that the chain leads to from this one, header by header."""
    through = header["gap"]["through"] if header.get("gap") else header["no"]
    link = hashlib.sha256(b"\1" + bundle.read(f"{proof['folder']}/header.json")).hexdigest()
    for number, text in enumerate(bundle.json(f"{proof['folder']}/chain.json")):
        follows = json.loads(text)
        if follows["prev"] != link or follows["no"] != through + 1:
            raise Wrong(f"{proof['folder']}/chain.json: header {number} does not follow the one before it")
        through = follows["gap"]["through"] if follows.get("gap") else follows["no"]
        link = hashlib.sha256(b"\1" + text.encode()).hexdigest()
    return through, link


def check_events(bundle: Bundle, proofs: Dict[str, Any]) -> int:  # noqa: UP006
    """Each event as told against its line. How many."""
    folders = {proof["batch"]: proof["folder"] for proof in proofs["batches"]}
    count = 0
    for number, text in enumerate(bundle.read("events.ndjson").decode("utf-8", "replace").splitlines()):
        event = json.loads(text)
        batch, _, index = event["event_id"].rpartition("/")
        if batch not in folders:
            raise Wrong(f"events.ndjson: line {number} is of a batch that is not here")
        lines = bundle.read(f"{folders[batch]}/core.ndjson").split(b"\n")
        if int(index) >= len(lines) or json.loads(lines[int(index)]) != event["core"]:
            raise Wrong(f"events.ndjson: line {number} is not what its batch says")
        if "personal" in event:
            named = bundle.read(f"{folders[batch]}/personal.ndjson").split(b"\n")[int(index)]
            if json.loads(named[32:]) != event["personal"]:
                raise Wrong(f"events.ndjson: line {number}: the personal half is not what its batch says")
        count += 1
    return count


def check(bundle: Bundle, believed: Optional[str]) -> Iterator[str]:  # noqa: UP045
    """Everything, a sentence for each step. Raises Wrong."""
    came = bundle.read("key.txt").decode("utf-8", "replace").strip()
    if believed is not None and believed.strip() != came:
        raise Wrong(f"key.txt: is not the key that you believe. It says: {came}")
    key = Key(came)
    said = check_files(bundle, key)
    yield f"{len(said['files'])} files are those that were exported on {said['made']} for: {said['query']}"
    size, root = read_note(bundle, "checkpoint.txt", key)
    yield f"the checkpoint over {size} leaves is signed by {key.name}"
    proofs = bundle.json("proofs.json")
    for one in proofs["earlier"]:
        old, old_root = read_note(bundle, one["note"], key)
        if not consistent(old, old_root, size, root, [bytes.fromhex(text) for text in one["path"]]):
            raise Wrong(f"{one['note']}: the checkpoint is not a continuation of it")
        yield f"it continues the earlier checkpoint over {old} leaves ({one['note']})"
    signed = 0
    for proof in proofs["batches"]:
        header = check_batch(bundle, proof, size, root)
        if f"{header['agent']}/{header['buffer']}/{header['lane']}/{header['no']}" != proof["batch"]:
            raise Wrong(f"proofs.json: {proof['folder']} is not batch {proof['batch']}")
        signed += check_signature(bundle, proof, header)
    yield f"{len(proofs['batches'])} batches are under it; {signed} are signed by their agents"
    yield f"{check_events(bundle, proofs)} events are in these batches"


def main(arguments: List[str]) -> int:  # noqa: UP006
    """Run."""
    believed = None
    if "--key" in arguments[:-1]:
        at = arguments.index("--key")
        believed = arguments[at + 1]
        del arguments[at : at + 2]
    place = Path(arguments[0]) if arguments else Path(__file__).resolve().parent
    out = sys.stdout.write
    try:
        bundle = Bundle(place)
        for sentence in check(bundle, believed):
            out(f"ok    {sentence}\n")
    except Wrong as error:
        out(f"WRONG {error}\n")
        return 1
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        out(f"WRONG a file of the bundle is not as it has to be: {type(error).__name__}: {error}\n")
        return 1
    except (OSError, zipfile.BadZipFile) as error:
        out(f"cannot be checked: {error}\n")
        return 2
    if believed is None:
        key = bundle.files["key.txt"].decode().strip()
        out(f"note  all of this rests on one key. Compare it with what its owner published:\n      {key}\n")
    out("everything holds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
