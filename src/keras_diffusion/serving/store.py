"""Keeps jobs in a folder: a SQLite database of what was asked for, and a folder of files for each job.

    jobs.sqlite            one row for each job
    files/ID/image.0       what a job starts from, as it was sent; mask.0 likewise
    files/ID/0.png         what it drew

A job is in the database before it is answered, and its images are on disk before it is done. So a server that is
killed finds everything again, and draws the jobs that it had not finished.
"""

import json
import secrets
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import NamedTuple

from keras_diffusion.system.paths import new_file

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")
UNFINISHED = (QUEUED, RUNNING)
TABLE = """
create table if not exists jobs (
    number integer primary key autoincrement, -- their order
    id text unique not null,
    task text not null,
    model text not null,
    arguments text not null, -- JSON
    inputs text not null, -- JSON: the names of the files that it starts from
    state text not null,
    error text, -- what is wrong, for people
    error_type text,
    images integer not null default 0,
    steps integer not null default 0, -- that were done when it ended
    created real not null, -- seconds since 1970
    started real,
    finished real
);
create index if not exists by_state on jobs (state, number);
"""


class Job(NamedTuple):
    """A row of the table."""

    number: int
    id: str
    task: str
    model: str
    arguments: dict
    inputs: list
    state: str
    error: str | None
    error_type: str | None
    images: int
    steps: int
    created: float
    started: float | None
    finished: float | None

    @property
    def ended(self):
        return self.state not in UNFINISHED


class Store:
    """The jobs of a folder. Its methods may be called from any thread.

    Args:
        folder: A `Path`; it is made if need be.
        keep: How many finished jobs to keep; older ones are deleted.

    Raises:
        ValueError: If another server uses the folder.
    """

    def __init__(self, folder, keep):
        folder = Path(folder)
        self._files, self._keep, self._lock = folder / "files", keep, threading.RLock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files.mkdir(exist_ok=True)
        self._owner = _own(folder)
        self._database = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=full")
        self._database.executescript(TABLE)
        self._run("update jobs set state = ?, started = null where state = ?", QUEUED, RUNNING)
        known = {id for (id,) in self._run("select id from jobs")}
        for left in [path for path in self._files.iterdir() if path.name not in known]:
            shutil.rmtree(left, ignore_errors=True)

    def _run(self, statement, *values):
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _jobs(self, condition, *values):
        rows = self._run(f"select * from jobs {condition}", *values)
        return [Job(*row[:4], json.loads(row[4]), json.loads(row[5]), *row[6:]) for row in rows]

    def add(self, task, model, arguments, inputs):
        """Adds a job at the end of the queue.

        Args:
            task: The name of the method that draws.
            model: The name of the model.
            arguments: A dict, JSON.
            inputs: The files to start from: a dict from names to bytes.

        Returns:
            The `Job`.
        """
        id = secrets.token_urlsafe(12)
        for name, content in inputs.items():
            self.write(id, name, content)
        columns = "id, task, model, arguments, inputs, state, created"
        values = id, task, model, json.dumps(arguments), json.dumps([*inputs]), QUEUED, time.time()
        self._run(f"insert into jobs ({columns}) values (?, ?, ?, ?, ?, ?, ?)", *values)
        return self.get(id)

    def get(self, id):
        """Returns a `Job`, or None if there is none of this id."""
        return next(iter(self._jobs("where id = ?", id)), None)

    def newest(self, limit, before=None):
        """Returns up to `limit` jobs, the newest first; those older than the job of the id `before`."""
        condition = "where number < coalesce((select number from jobs where id = ?), 1 << 62)"
        return self._jobs(f"{condition} order by number desc limit ?", before, limit)

    def take(self):
        """Returns the first job of the queue, which is running from now on, or None."""
        with self._lock:
            for job in self._jobs("where state = ? order by number limit 1", QUEUED):
                self._run("update jobs set state = ?, started = ? where id = ?", RUNNING, time.time(), job.id)
                return self.get(job.id)

    def put_back(self, id):
        """Puts a job that is running back into the queue, where it was."""
        self._run("update jobs set state = ?, started = null where id = ? and state = ?", QUEUED, id, RUNNING)

    def finish(self, id, state, error=None, error_type=None, images=0, steps=0):
        """Ends a job that has not ended, deletes what it started from, and the jobs that are too old to keep."""
        statement = "update jobs set state = ?, error = ?, error_type = ?, images = ?, steps = ?, finished = ?"
        values = state, error, error_type, images, steps, time.time(), id
        with self._lock:
            self._run(f"{statement} where id = ? and state in {UNFINISHED}", *values)
            for job in self._jobs(
                f"where state not in {UNFINISHED} order by number desc limit -1 offset ?", self._keep
            ):
                self.delete(job.id)
        if job := self.get(id):
            for name in job.inputs:
                (self._files / id / name).unlink(missing_ok=True)

    def cancel_queued(self, id):
        """Takes a job out of the queue; one that is running or has ended stays as it is."""
        values = CANCELLED, time.time(), id, QUEUED
        self._run("update jobs set state = ?, finished = ? where id = ? and state = ?", *values)

    def delete(self, id):
        """Forgets a job and its files."""
        self._run("delete from jobs where id = ?", id)
        shutil.rmtree(self._files / id, ignore_errors=True)

    def place(self, job):
        """Returns how many jobs are before a job that waits, and itself; 0 while it is running, None when it ended."""
        if job.state == QUEUED:
            return self._run("select count(*) from jobs where state = ? and number <= ?", QUEUED, job.number)[0][0]
        return 0 if job.state == RUNNING else None

    @property
    def changes(self):
        """A number that grows whenever a job changes."""
        return self._database.total_changes

    def counts(self):
        """Returns how many jobs there are in each state, a dict."""
        return dict.fromkeys(STATES, 0) | dict(self._run("select state, count(*) from jobs group by state"))

    def write(self, id, name, content):
        """Writes a file of a job: it is complete or absent."""
        with new_file(self._files / id / name, overwrite=True) as temporary:
            temporary.write_bytes(content)

    def read(self, id, name):
        """Returns the content of a file of a job, or None if there is none."""
        try:
            return (self._files / id / name).read_bytes()
        except OSError:
            return None

    def close(self):
        """Lets go of the folder."""
        with self._lock:
            self._database.close()
            self._owner.close()


def _own(folder):
    """Takes a folder for this process, until it ends or the connection that is returned is closed."""
    connection = sqlite3.connect(folder / "owner.sqlite", check_same_thread=False, timeout=0, isolation_level=None)
    try:
        connection.execute("begin exclusive")
    except sqlite3.OperationalError as error:
        connection.close()
        raise ValueError(
            f"Another server uses this folder; give each its own with --jobs. Received: jobs={str(folder)!r:.200}"
        ) from error
    return connection
