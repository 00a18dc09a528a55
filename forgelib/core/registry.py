"""The registry: an SQLite index over the manifests of all artifacts. The manifests are the truth; it can be rebuilt.

One thing is known to it alone: when a step that was run again last found an artifact finished. Who goes back to earlier
settings goes on with what those made, not with the artifact that was made last.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

PATIENCE = 30.0  # seconds to wait for another process
SCHEMA = """
CREATE TABLE IF NOT EXISTS artifacts (
    digest TEXT PRIMARY KEY, name TEXT, step TEXT, key TEXT, path TEXT, created TEXT, seed INTEGER, manifest TEXT);
CREATE TABLE IF NOT EXISTS parents (child TEXT, parent TEXT, PRIMARY KEY (child, parent));
CREATE TABLE IF NOT EXISTS tags (digest TEXT, tag TEXT, value TEXT, PRIMARY KEY (digest, tag));
CREATE TABLE IF NOT EXISTS taken_up (digest TEXT PRIMARY KEY, at TEXT);
CREATE INDEX IF NOT EXISTS by_key ON artifacts (key);
"""
LINEAGE = """
WITH RECURSIVE line(digest, depth) AS (
    SELECT ?, 0 UNION SELECT parents.parent, depth + 1 FROM parents JOIN line ON parents.child = line.digest)
SELECT line.digest, MIN(depth) AS depth, name, step, path FROM line LEFT JOIN artifacts USING (digest)
GROUP BY line.digest ORDER BY depth, name
"""


class Registry:
    """Index of the artifacts below `root`, kept in <root>/registry.sqlite.

    `rebuilt` is True when the file was unreadable, or missing beside artifacts, and was made anew from the manifests.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()
        self.path = self.root / "registry.sqlite"
        self.root.mkdir(parents=True, exist_ok=True)
        self.rebuilt = not self.path.exists() and any(self.root.glob("artifacts/*/manifest.json"))
        if self.rebuilt:
            self.rebuild()
        try:
            with self._open() as database:
                database.executescript(SCHEMA)
                if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("the file is damaged inside")
        except sqlite3.OperationalError:  # locked, read-only, disk full: the file itself is sound
            raise
        except sqlite3.DatabaseError:
            for leftover in self.root.glob("registry.sqlite*"):
                leftover.unlink()
            self.rebuild()
            self.rebuilt = True

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=PATIENCE)
        try:
            _write_ahead(database)
            with database:
                yield database
        finally:
            database.close()

    def add(self, path: Path, manifest: dict, digest: str) -> None:
        """Index a published artifact; adding it again changes nothing."""
        with self._open() as database:
            _insert(database, self._kept(path), manifest, digest)

    def _kept(self, path: Path) -> Path:
        """How a place is noted: below the root as seen from there, so that a run folder can be moved and copied."""
        path = Path(path).resolve()
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path

    def take_up(self, digest: str) -> None:
        """A step was run again and ends in this artifact: from now on it is the newest of its kind."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")  # as manifests hold it: later times sort after
        with self._open() as database:
            database.execute("INSERT OR REPLACE INTO taken_up VALUES (?, ?)", (digest, now))

    def rebuild(self) -> int:
        """Forget the artifacts and read every manifest below <root>/artifacts. Returns how many were found.

        A folder whose manifest cannot be read is left out: no step can use it.
        """
        with self._open() as database:
            database.executescript(SCHEMA)
            database.execute("BEGIN IMMEDIATE")  # who publishes meanwhile is added after this, not lost
            for table in ("artifacts", "parents", "tags"):
                database.execute(f"DELETE FROM {table}")
            for file in sorted((self.root / "artifacts").glob("*/manifest.json")):
                with contextlib.suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
                    text = file.read_bytes()
                    _insert(database, self._kept(file.parent), json.loads(text), hashlib.sha256(text).hexdigest())
            return database.execute("SELECT COUNT(*) FROM artifacts").fetchone()[0]

    def find(
        self,
        *,
        name: str | None = None,
        step: str | None = None,
        key: str | None = None,
        digest: str | None = None,
        tags: dict | None = None,
    ) -> list[dict]:
        """What matches everything asked for and still lies there: path, digest, manifest of each. First comes what was
        made, or taken up again, last.

        Nothing is verified here; `load_artifact(path)` does that.
        """
        asked = {"name": name, "step": step, "key": key, "digest": digest}
        wanted = [(column, value) for column, value in asked.items() if value is not None]
        query = "SELECT path, digest, manifest FROM artifacts LEFT JOIN taken_up USING (digest) WHERE 1"
        query += "".join(f" AND {column} = ?" for column, _ in wanted)
        values = [value for _, value in wanted]
        for tag, value in (tags or {}).items():
            query += " AND digest IN (SELECT digest FROM tags WHERE tag = ? AND value = ?)"
            values += [tag, json.dumps(value)]
        with self._open() as database:
            rows = database.execute(query + " ORDER BY MAX(created, COALESCE(at, '')) DESC, digest", values).fetchall()
        return [
            {"path": self.root / path, "digest": digest, "manifest": json.loads(manifest)}
            for path, digest, manifest in rows
            if Path(self.root, path, "manifest.json").is_file()
        ]

    def lineage(self, digest: str) -> list[dict]:
        """The artifact and all its ancestors: digest, depth (0 itself, 1 parents ...), name, step, path."""
        with self._open() as database:
            rows = database.execute(LINEAGE, (digest,)).fetchall()
        found = [dict(zip(("digest", "depth", "name", "step", "path"), row, strict=True)) for row in rows]
        return [line | {"path": line["path"] and str(self.root / line["path"])} for line in found]


def _write_ahead(database: sqlite3.Connection) -> None:
    """WAL mode. Where two processes make the file at once SQLite says "locked" without waiting; so we wait here."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _insert(database: sqlite3.Connection, path: Path, manifest: dict, digest: str) -> None:
    created, parents, tags = manifest.get("created", ""), manifest["parents"], manifest["tags"]
    row = (digest, manifest["name"], manifest["step"], manifest["key"], str(path), created, manifest["seed"])
    lines = [(digest, parent["digest"]) for parent in parents]
    labels = [(digest, tag, json.dumps(value)) for tag, value in tags.items()]
    database.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, json.dumps(manifest)))
    database.executemany("INSERT OR REPLACE INTO parents VALUES (?, ?)", lines)
    database.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", labels)
