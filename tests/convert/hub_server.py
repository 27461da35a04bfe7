"""The part of the Hugging Face hub's API that downloads a model, over folders of this machine."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextlib.contextmanager
def serve(models: dict[str, pathlib.Path]) -> Iterator[tuple[str, list[str]]]:
    """Gives the address, for HF_ENDPOINT, and a list that grows by the path of each file sent."""
    sent: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def log_message(self, *args):
            pass

        def _answer(self, with_body):
            path = self.path.partition("?")[0].strip("/")
            for name, folder in models.items():
                files = sorted(folder.iterdir())
                if path in (f"api/models/{name}", f"api/models/{name}/revision/v1"):
                    info = {"id": name, "sha": COMMIT, "private": False, "tags": []}
                    info["siblings"] = [{"rfilename": file.name} for file in files]
                    return self._send(json.dumps(info).encode(), True)
                if path == f"api/models/{name}/tree/{COMMIT}":
                    kinds = {"type": "file", "oid": COMMIT}
                    rows = [kinds | {"path": p.name, "size": p.stat().st_size} for p in files]
                    return self._send(json.dumps(rows).encode(), True)
                start = f"{name}/resolve/{COMMIT}/"
                file = folder / path.removeprefix(start)
                if path.startswith(start) and file.is_file():
                    if with_body:
                        sent.append(file.name)
                    return self._send(file.read_bytes(), with_body)
            return self._send(b"", True, status=404)

        def _send(self, body, with_body, status=200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if with_body and self.command == "GET":
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
