"""Artifacts: folders that are there whole or not at all, and that are believed only when their hashes agree.

with draft(root, "cognate-trunk") as new:
    model.save_pretrained(new.path)
    artifact = new.publish(step="11_cognate_train", key=..., params=..., parents=[...], seed=0)

manifest.json holds the sha256 of every file, and manifest.sha256 that of the manifest (`sha256sum -c` reads it).
"""

import ast
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
DRAFT_PREFIX = ".draft-"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "reasoning-gym")
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy")
REQUIRED = (
    "schema",
    "name",
    "step",
    "key",
    "params",
    "parents",
    "files",
    "code",
    "libraries",
    "seed",
    "verdicts",
    "tags",
)


class ArtifactError(RuntimeError):
    """An artifact cannot be used; the text names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Artifact:
    """A published folder. digest: sha256 of its manifest, the artifact's identity."""

    path: Path
    manifest: dict
    digest: str

    @property
    def name(self) -> str:
        return self.manifest["name"]


@dataclass
class Draft:
    """An unpublished folder; `path` is where to write."""

    root: Path
    name: str
    path: Path

    def publish(
        self,
        *,
        step: str,
        key: str,
        params: dict,
        parents: list[Artifact] | tuple[Artifact, ...] = (),
        seed: int,
        verdicts: list[dict] | None = None,
        tags: dict | None = None,
    ) -> Artifact:
        """Hash, sync and rename the folder to <root>/<name>-<key>. Where that is already published, that one counts."""
        _refuse_pickles(self.path)
        manifest = {
            "schema": SCHEMA,
            "name": self.name,
            "step": step,
            "key": key,
            "params": params,
            "parents": [{"name": parent.name, "digest": parent.digest} for parent in parents],
            "files": {name: file_sha256(self.path / name) for name in _files(self.path)},
            "code": code_digest(),
            "libraries": _library_versions(),
            "seed": seed,
            "verdicts": verdicts or [],
            "tags": tags or {},
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        text = json.dumps(_strict(manifest), indent=1, allow_nan=False).encode()
        (self.path / MANIFEST).write_bytes(text)
        (self.path / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
        for folder in (self.path, *(p for p in self.path.rglob("*") if p.is_dir())):
            for file in (p for p in folder.iterdir() if p.is_file()):
                fsync(file)
            fsync(folder)
        target = self.root / f"{self.name}-{key[:12]}"
        try:
            os.rename(self.path, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return load_artifact(target)
        fsync(self.root)
        return load_artifact(target, verify=False)


@contextlib.contextmanager
def draft(root: Path, name: str) -> Iterator[Draft]:
    """A folder to write an artifact into; what is not published when the block ends is removed.

    Drafts left behind by processes that were killed are removed here, too.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"name = {name!r}: an artifact's name is letters, digits, '.', '_' and '-'")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_drafts(root)
    path = Path(tempfile.mkdtemp(prefix=f"{_draft_prefix()}{os.getpid()}-", dir=root))
    path.chmod(0o755)
    try:
        yield Draft(root, name, path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def load_artifact(path: Path | str, verify: bool = True) -> Artifact:
    """Read an artifact; with `verify`, every file's hash. Raises ArtifactError naming the file and the remedy."""
    path = Path(path)
    remedy = f"Delete {path} and run the step that makes it again."
    file = path / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{file} is missing: this is no published artifact, or a damaged one. {remedy}")
    text = file.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    try:
        manifest = json.loads(text)
        missing = [name for name in REQUIRED if name not in manifest]
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{file} is not JSON ({error}). {remedy}") from None
    if not isinstance(manifest, dict) or missing or not isinstance(manifest["files"], dict):
        raise ArtifactError(f"{file} is no manifest: {', '.join(missing) or 'a list of files'} is missing. {remedy}")
    if manifest["schema"] != SCHEMA:
        raise ArtifactError(f"{file} has schema {manifest['schema']!r}, this forgelib reads {SCHEMA}. {remedy}")
    _refuse_pickles(path)
    if verify:
        _verify_seal(path, digest, remedy)
        _verify_files(path, manifest["files"], remedy)
    return Artifact(path, manifest, digest)


def _verify_seal(path: Path, digest: str, remedy: str) -> None:
    seal = path / SEAL
    if not seal.is_file():
        raise ArtifactError(f"{seal} is missing: nothing vouches for the manifest. {remedy}")
    if seal.read_bytes() != f"{digest}  {MANIFEST}\n".encode():
        raise ArtifactError(f"{path / MANIFEST} is damaged: its sha256 differs from the one in {SEAL}. {remedy}")


def _verify_files(path: Path, expected: dict[str, str], remedy: str) -> None:
    for name, sha256 in expected.items():
        file = path / name
        if "\0" in name or path.resolve() not in file.resolve().parents:
            raise ArtifactError(f"{path / MANIFEST} lists {name}, which lies outside the artifact. {remedy}")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing though the manifest lists it. {remedy}")
        if file_sha256(file) != sha256:
            raise ArtifactError(f"{file} is damaged: its sha256 differs from the manifest's. {remedy}")
    surplus = sorted(set(_files(path)) - set(expected))
    if surplus:
        raise ArtifactError(f"{path / surplus[0]} is not in the manifest: somebody added it. {remedy}")


def code_digest(*modules: str) -> str:
    """sha256 over the source of forgelib's floors 0 to 3: what can change a result. The workbook only shows it.

    With `modules` ("forgelib.phases.cognate") only over what these rest on: their imports, and the imports of those. So
    a change in a later phase leaves the finished work of an earlier one as it is.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    everything = (file for file in package.rglob("*") if file.suffix in (".py", ".cpp", ".h"))
    for file in sources_of(*modules) if modules else sorted(everything):
        relative = file.relative_to(package)
        if relative.parts[0] not in ("workbook", "cli.py", "server.py", "server"):
            digest.update(str(relative).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def sources_of(*modules: str) -> list[Path]:
    """The files of forgelib that the modules are made of and import, directly or through others, and the C++ that they
    name, sorted."""
    package = Path(__file__).resolve().parents[1]
    found: set[Path] = set()
    waiting = [tuple(module.split(".")) for module in modules]
    while waiting:
        parts = waiting.pop()
        for n in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b as well
            place = package.parent.joinpath(*parts[:n])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if parts[0] == package.name and file.is_file() and file not in found:
                found.add(file)
                source = file.read_text(encoding="utf-8")
                waiting += imports_of(source, parts[:n] if place.is_dir() else parts[: n - 1])
    return sorted(found | {part for file in found for part in _cpp_of(file)})


def _cpp_of(module: Path) -> list[Path]:
    """The C++ sources beside a module that its text names, and the headers <name>_*.h of these and of the module."""
    text = module.read_text(encoding="utf-8")
    named = [source for source in module.parent.glob("*.cpp") if source.name in text]
    return [*named, *(part for owner in (module, *named) for part in module.parent.glob(f"{owner.stem}_*.h"))]


def imports_of(source: str, package: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """What a source imports, as the parts of dotted names; relative imports count from `package`."""
    names: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names += [(*module, alias.name) for alias in node.names]
    return names


def _files(path: Path) -> list[str]:
    names = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() or p.is_symlink())
    return sorted(name for name in names if name not in (MANIFEST, SEAL))


def _refuse_pickles(path: Path) -> None:
    """No file may be a pickle, whatever it is called: pickles run code when they are read."""
    for name in _files(path):
        file = path / name
        if file.is_symlink():
            raise ArtifactError(f"{file} is a link; an artifact holds plain files. Copy the file in instead.")
        if file.suffix.lower() in PICKLE_SUFFIXES or _looks_pickled(file):
            raise ArtifactError(
                f"{file} is or may be a pickle, which runs code when read; it was not opened. "
                "Store weights as .safetensors."
            )


def _looks_pickled(file: Path) -> bool:
    """By content: pickle protocols 2 to 5, zip (torch.save), and a .safetensors file that is none.

    A safetensors file starts with the length of its JSON header, 8 bytes, which alone may look like a pickle's start.
    """
    with file.open("rb") as opened:
        head = opened.read(9)
    if file.suffix.lower() == ".safetensors":
        return head[8:] != b"{" or int.from_bytes(head[:8], "little") > file.stat().st_size - 8
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"))


def _draft_prefix() -> str:
    """Drafts carry host and process, so that only a dead process of this very host is taken for dead."""
    return f"{DRAFT_PREFIX}{socket.gethostname()}-"


def _remove_abandoned_drafts(root: Path) -> None:
    for folder in root.glob(f"{DRAFT_PREFIX}*"):
        owner = folder.name.removeprefix(_draft_prefix()).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _strict(value: Any) -> Any:
    """The same in strict JSON: numbers that are not finite become the texts "nan", "inf", "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def _library_versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def file_sha256(file: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Have the disk keep what was written to this file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
