"""An object store on this machine: moto's S3 server in a separate process, which can be told to fail.

python bucket_server.py FOLDER   serves; writes its port to FOLDER/port, and requests that it serves to FOLDER/requests
"""

import json
import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable

LOGIN = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class BucketServer:
    """A running server."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.log = (folder / "log").open("w")
        command = [sys.executable, __file__, str(folder)]
        self.process = subprocess.Popen(command, env=os.environ | LOGIN, stdout=self.log, stderr=self.log)
        end = time.monotonic() + 60
        try:
            while not (folder / "port").is_file():
                assert self.process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise
        self.environment = LOGIN | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{(folder / 'port').read_text()}"}

    def new_bucket(self) -> str:
        """The URL of a new, empty bucket."""
        import boto3

        name = f"bucket-{secrets.token_hex(4)}"
        login = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], **login).create_bucket(Bucket=name)
        return f"s3://{name}"

    def fail(self, pattern: str = ".", status: int = 500, times: int = 10**9):
        """Answers the next `times` requests that match `pattern` (as in "PUT /bucket/name") with this status."""
        part = self.folder / "fault.part"
        part.write_text(
            json.dumps({"pattern": pattern, "status": status, "times": times, "token": secrets.token_hex(4)})
        )
        part.replace(self.folder / "fault")

    def recover(self):
        (self.folder / "fault").unlink(missing_ok=True)

    def requests(self) -> list[str]:
        """The requests so far, such as "PUT /bucket/name", without those that were made to fail."""
        return (self.folder / "requests").read_text().splitlines()

    def pause(self):
        """Stops the process: connections are accepted, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def with_faults(app: Callable, folder: pathlib.Path) -> Callable:
    """A WSGI application that fails as `BucketServer.fail` asks."""
    failed: dict[str, int] = {}

    def answer(environ, start):
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        try:
            text = (folder / "fault").read_text()
        except FileNotFoundError:
            text = ""
        fault = json.loads(text or "{}")
        if fault and re.search(fault["pattern"], request) and failed.get(text, 0) < fault["times"]:
            failed[text] = failed.get(text, 0) + 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{fault['status']} fault", [("Content-Length", "0")])
            return [b""]
        with (folder / "requests").open("a") as file:
            file.write(request + "\n")
        return app(environ, start)

    return answer


def serve(folder: pathlib.Path):
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    (folder / "requests").touch()
    app = with_faults(DomainDispatcherApplication(create_backend_app), folder)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    (folder / "port.part").write_text(str(server.server_port))
    (folder / "port.part").replace(folder / "port")
    server.serve_forever()


if __name__ == "__main__":
    serve(pathlib.Path(sys.argv[1]))
