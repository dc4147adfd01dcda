"""How a start is handed to the server: its arguments, environment and folder, and its three standard streams."""

import json
import socket
from collections.abc import Mapping, Sequence

KILLED = 137  # what a shell says of SIGKILL


def hand_over(
    server: str, *, arguments: Sequence[str], folder: str, environment: Mapping[str, str], streams: Sequence[int]
) -> int:
    """Have the server run `arguments`, which follow `python` on a command line; return the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        request = {"arguments": list(arguments), "folder": folder, "environment": dict(environment)}
        content = json.dumps(request).encode()
        socket.send_fds(connection, [len(content).to_bytes(4, "big")], list(streams))
        connection.sendall(content)
        answer = connection.recv(1)
    return answer[0] if answer else KILLED
