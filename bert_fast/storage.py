"""Objects in a bucket: s3://BUCKET/PATH and gs://BUCKET/PATH. This is the only file that talks to a bucket.

tensorstore sends the requests, and finds the login as the vendor's own tools do. A request that fails for a temporary
reason (no connection, no progress, an error of the server) is repeated, with longer and longer pauses. Every wait has a
limit.
"""

import os
import re
from typing import Any, NamedTuple

from bert_fast import BadInput

RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}  # about 50 seconds of pauses if every try fails
STALL = 20  # seconds without a byte after which a request counts as failed
LIMIT = 1800.0  # seconds for a request with all of its repetitions, not counting the transfer of its bytes
SLOWEST = 1e6  # bytes per second that a connection must carry
LARGEST = 5 * 2**30  # bytes of the largest object that S3 accepts in one request
DRIVERS = {"s3": "s3", "gs": "gcs"}


class BucketError(BadInput):
    """Raised if a bucket cannot be used: it does not exist, refuses a request, or does not answer."""

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(": ".join(filter(None, [problem, remedy])))
        self.problem, self.remedy = problem, remedy


class StoredObject(NamedTuple):
    """An object's content, and the version that a conditional write replaces. content: None if there is no object."""

    content: bytes | None
    version: bytes


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL such as s3://BUCKET/PATH. Raises BadInput for a pathlib.Path made from a URL."""
    if not isinstance(place, str):
        if str(place).startswith(tuple(f"{scheme}:/" for scheme in DRIVERS)):
            raise BadInput(f"{place} is a path made of the URL of a bucket: give the URL as a string")
        return False
    return re.match(r"[A-Za-z][\w+.-]*://", place) is not None


def is_bucket(place: str) -> bool:
    """Whether a text begins like the URL of a bucket."""
    return place.startswith(tuple(f"{scheme}://" for scheme in DRIVERS))


def refuse(place: str | os.PathLike[str], what: str):
    """Raises BadInput if a place is a URL. what: the name of the argument that holds the place, for the message."""
    if is_url(place):
        raise BadInput(
            f"{what}={place} is a URL: expected a folder on a disk. Copy to or from a bucket with aws s3 sync or "
            "gcloud storage rsync"
        )


def name_of(url: str) -> str:
    """The last part of a URL's path, or the bucket."""
    return url.rstrip("/").rpartition("/")[2]


def open(url: str, hasty: bool = False) -> "Bucket":
    """The objects below the URL of a bucket. Sends no request. Raises BucketError if `url` is not such a URL.

    hasty: whether a request that fails is repeated only once, after a second.
    """
    import tensorstore  # takes long to import

    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.rstrip("/").partition("/")
    if scheme not in DRIVERS or not bucket:
        raise BucketError(f"{url}: expected a folder, s3://BUCKET/PATH or gs://BUCKET/PATH")
    # Without these limits, a server that accepts a connection and sends nothing would hold up a request forever.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(STALL))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "10")
    retries = RETRIES | ({"max_retries": 1} if hasty else {})
    context = tensorstore.Context({"s3_request_retries": retries, "gcs_request_retries": retries})
    spec: dict[str, Any] = {"driver": DRIVERS[scheme], "bucket": bucket, "path": f"{path}/" if path else ""}
    if scheme == "s3":
        spec |= _s3_options()
    try:
        store = tensorstore.KvStore.open(spec, context=context).result(timeout=LIMIT)
    except Exception as error:  # tensorstore has no error classes of its own
        raise BucketError(f"{url} cannot be opened: {_first_line(error)}") from None
    return Bucket(url.rstrip("/"), store)


def _s3_options() -> dict[str, Any]:
    """Options from the environment variables of AWS's own tools."""
    options: dict[str, Any] = {"use_conditional_write": True}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options |= {"endpoint": endpoint.rstrip("/"), "aws_region": region}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # AWS's default lookup tries files first, and logs each missing one
        options["aws_credentials"] = {"type": "environment"}
    return options


class Bucket:
    """The objects below a URL, by name. Any thread may use it. Every function raises BucketError if it fails."""

    def __init__(self, url: str, store):
        self.url, self.store = url, store

    def __str__(self):
        return self.url

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects that begin with `prefix`, sorted."""
        listed = self._result("list its objects", self.store.list(_below(prefix)))
        return sorted(name.decode() for name in listed)

    def check(self):
        """Raises BucketError unless the bucket exists and answers."""
        self.names("lock.json")  # any narrow prefix would do: a list of all objects could be long

    def look(self, name: str) -> StoredObject:
        """An object with its version."""
        found = self._result(f"read {name}", self.store.read(name), LARGEST)
        return StoredObject(found.value if found.state == "value" else None, found.stamp.generation)

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is no such object (or no such bucket)."""
        return self.look(name).content

    def write(self, name: str, content: bytes):
        self._result(f"write {name}", self.store.write(name, content), len(content))

    def replace(self, name: str, content: bytes, version: bytes) -> bytes | None:
        """Writes an object if it still has this version (see `look`).

        Returns the new version; None if the object has another version by now.
        """
        return self._result(f"write {name}", self.store.write(name, content, if_equal=version)).generation or None

    def delete(self, name: str):
        """Deletes an object. Does nothing if there is no such object."""
        self._result(f"delete {name}", self.store.write(name, None))

    def _result(self, what: str, future, size: int = 0):
        """The result of a request. size: the most bytes that it can transfer."""
        limit = LIMIT + size / SLOWEST
        try:
            return future.result(timeout=limit)
        except TimeoutError:
            future.cancel()
            raise BucketError(f"{self.url}: could not {what} within {limit:.0f} s", _remedy("")) from None
        except Exception as error:
            line = _first_line(error)
            raise BucketError(f"{self.url}: could not {what}: {line[:300]}", _remedy(str(error))) from None


def _below(prefix: str):
    import tensorstore

    if not prefix:
        return tensorstore.KvStore.KeyRange()
    return tensorstore.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))


def _first_line(error: Exception) -> str:
    """The first line of a tensorstore error, without its details in brackets, but with its HTTP status code."""
    text = str(error).strip() or type(error).__name__
    code = re.search(r"http_response_code='(\d+)'", text)
    line = re.sub(r"\s*\[\w[\w-]*='.*", "", text.splitlines()[0])
    line = re.sub(r"^ABORTED: All (\d+) retry attempts failed: ", r"tried again \1 times: ", line)
    return line + (f" (HTTP {code[1]})" if code else "")


def _remedy(text: str) -> str:
    """What to do about an error with this text."""
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return "create the bucket, or correct its name"
    if re.search(r"PERMISSION_DENIED|AccessDenied|UNAUTHENTICATED|http_response_code='40[13]'|[Cc]redential", text):
        return (
            "log in (aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; gcloud auth application-default "
            "login), and get the rights to read, write, list and delete there"
        )
    return "check the network, the URL and (for a server of your own) AWS_ENDPOINT_URL, then run the same command again"
