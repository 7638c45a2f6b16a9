"""The peer of the API: FastAPI on uvicorn that answers with bytes it holds in memory, for whoever asks.

It looks nothing up and checks no token: what is above its time is what an answer of Hubline's costs.
`python -m bench.api_peer PORT FOLDER` serves each file of the folder under its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response


def app(folder: Path) -> FastAPI:
    """Return the application in front of the files."""
    bodies = {file.stem: file.read_bytes() for file in folder.glob("*.json")}
    found = FastAPI(openapi_url=None)

    @found.get("/{name}")
    async def fixed(name: str) -> Response:
        return Response(bodies[name], media_type="application/json")

    return found


if __name__ == "__main__":
    options = {"http": "h11", "ws": "none", "lifespan": "off", "access_log": False, "log_level": "warning"}
    uvicorn.run(app(Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), **options)  # type: ignore[arg-type]
