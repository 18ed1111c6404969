"""The client of S3, by botocore: its credentials, profiles and endpoints are those of every AWS tool.

Google's storage speaks the same language (its XML API), with tokens of Google's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any, ClassVar

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Found, missing
from wnconvert.storage.stores.remote.patience import SILENCE, Passing
from wnconvert.storage.stores.remote.traffic import TRAFFIC

__all__ = ["S3", "amazon", "bucket_and_name", "google"]


_PIECE = 256 << 10
_PASSING = (
    *(
        "SlowDown",
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "Throttling",
        "RequestLimitExceeded",
    ),
    *("ThrottlingException", "TooManyRequests", "RequestTimeTooSkewed"),
)
#: The answer of stores that do not know what they are asked for.
_UNKNOWN = 501
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")
_NO_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed")
_CREDENTIALS = "aws configure, AWS_PROFILE=NAME, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def bucket_and_name(key: str) -> tuple[str, str]:
    """The bucket and the name of an object, by its key.

    >>> bucket_and_name("bucket/a/b.pt"), bucket_and_name("bucket")
    (('bucket', 'a/b.pt'), ('bucket', ''))
    """
    bucket, _, name = key.partition("/")
    return bucket, name


def amazon() -> S3:
    """S3, or what ``AWS_ENDPOINT_URL`` names, with the credentials that AWS's own tools find."""
    import botocore.session
    from botocore import UNSIGNED

    session = botocore.session.get_session()
    with told_of_bucket(""):
        signed = session.get_credentials() is not None
        return S3(
            session.create_client("s3", config=_config(**({} if signed else {"signature_version": UNSIGNED})))
        )


def google() -> S3:
    """Google's storage, or what ``STORAGE_EMULATOR_HOST`` names, with the application default credentials."""
    import botocore.session
    from botocore import UNSIGNED

    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="auto",
        endpoint_url=endpoint if "://" in endpoint else f"http://{endpoint}",
        config=_config(
            signature_version=UNSIGNED,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    if (token := _google_token()) is not None:
        client.meta.events.register("before-sign.s3", lambda request, **_: token(request.headers))
    return S3(client)


def _google_token() -> Any:
    """What puts a token of Google's into the headers of a request; None for the public alone."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.urllib3 import Request
    from urllib3 import PoolManager

    try:
        credentials: Any = google.auth.default(
            scopes=["https://www.googleapis.com/auth/devstorage.read_write"]
        )[0]
    except DefaultCredentialsError:
        return None
    asking = Request(PoolManager())  # type: ignore[no-untyped-call] # as it is
    return lambda headers: credentials.before_request(asking, "", "", headers)


def _config(**more: Any) -> Any:
    from botocore.config import Config

    return Config(
        connect_timeout=SILENCE,
        read_timeout=SILENCE,
        max_pool_connections=16,
        retries={"total_max_attempts": 1},  # it is asked again where all are
        s3={"payload_signing_enabled": False},  # it has a checksum, and the line is TLS
        user_agent_extra="wnconvert",
        **more,
    )


class S3:
    """Objects in buckets, by botocore's ``client``."""

    aborts: ClassVar[bool] = True

    def __init__(self, client: Any) -> None:
        self.client = client

    def look(self, key: str, /) -> Found:
        """What an answer without a body says; where it refuses, one with a body says why."""
        bucket, name = bucket_and_name(key)
        if not name:
            raise missing()
        with told_of_bucket(bucket):
            TRAFFIC.add()
            try:
                answer = self.client.head_object(Bucket=bucket, Key=name)
            except self.client.exceptions.ClientError as error:
                if _status(error) in (404, 429) or _status(error) >= 500:
                    raise
                TRAFFIC.add()
                self.client.get_object(Bucket=bucket, Key=name, Range="bytes=0-0")["Body"].close()
                raise
            return _found(answer, answer["ContentLength"])

    def read(self, key: str, at: int, buffer: memoryview, /) -> Found:
        """Fill a buffer by one request."""
        bucket, name = bucket_and_name(key)
        with told_of_bucket(bucket):
            TRAFFIC.add(fetched=len(buffer))
            span = f"bytes={at}-{at + len(buffer) - 1}"
            answer = self.client.get_object(Bucket=bucket, Key=name, Range=span)
            body = answer["Body"]
            try:
                done = 0
                while done < len(buffer):
                    if not (count := body.readinto(buffer[done : done + _PIECE])):
                        raise Passing(f"it was cut off after {done} of {len(buffer)} bytes")
                    done += count
            finally:
                body.close()
            return _found(answer, int(answer["ContentRange"].rpartition("/")[2]))

    def save(self, key: str, to: IO[bytes], /) -> Found:
        """Write all bytes of an object into a file."""
        raise NotImplementedError("every bucket has ranges")

    def names(self, key: str, /) -> list[str]:
        """The names of objects, and of folders, which are beginnings of their names and end with a slash."""
        bucket, name = bucket_and_name(key)
        prefix = f"{name}/" if name else ""
        found: list[str] = []
        with told_of_bucket(bucket):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
                TRAFFIC.add()
                found += [item["Key"] for item in page.get("Contents", ())]
                found += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        return [each for name in found if (each := name[len(prefix) :])]

    def begin(self, key: str, /) -> str:
        """Begin an upload."""
        bucket, name = bucket_and_name(key)
        with told_of_bucket(bucket):
            TRAFFIC.add()
            return str(self.client.create_multipart_upload(Bucket=bucket, Key=name)["UploadId"])

    def put(self, key: str, upload: str, number: int, data: bytearray, /) -> str:
        """Send a part, with its checksum; its ETag."""
        bucket, name = bucket_and_name(key)
        with told_of_bucket(bucket):
            TRAFFIC.add(sent=len(data))
            answer = self.client.upload_part(
                Bucket=bucket, Key=name, UploadId=upload, PartNumber=number + 1, Body=data
            )
            return str(answer["ETag"])

    def parts(self, key: str, upload: str, /) -> dict[int, tuple[int, str]]:
        """The parts that are there."""
        bucket, name = bucket_and_name(key)
        found: dict[int, tuple[int, str]] = {}
        with told_of_bucket(bucket):
            for page in self.client.get_paginator("list_parts").paginate(
                Bucket=bucket, Key=name, UploadId=upload
            ):
                TRAFFIC.add()
                found |= {
                    part["PartNumber"] - 1: (part["Size"], part["ETag"]) for part in page.get("Parts", ())
                }
        return found

    def complete(self, key: str, upload: str, tags: list[str], /, *, force: bool) -> None:
        """Make an object of the parts, in place of none unless ``force``, which some stores do not hear."""
        bucket, name = bucket_and_name(key)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        asked = {"Bucket": bucket, "Key": name, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        with told_of_bucket(bucket):
            TRAFFIC.add()
            try:
                self.client.complete_multipart_upload(**asked, **({} if force else {"IfNoneMatch": "*"}))
            except self.client.exceptions.ClientError as error:
                if force or _status(error) != _UNKNOWN:
                    raise
                self.client.complete_multipart_upload(**asked)

    def abort(self, key: str, upload: str, /) -> None:
        """Forget an upload; one that is not there is forgotten."""
        bucket, name = bucket_and_name(key)
        with contextlib.suppress(FileNotFoundError), told_of_bucket(bucket):
            TRAFFIC.add()
            self.client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=upload)

    def sweep(self, key: str, upload: str, /) -> None:
        """Forget an upload."""
        self.abort(key, upload)

    def delete(self, key: str, tag: str, /) -> None:
        """Delete an object, after a look at its tag: few stores hear of conditions here."""
        bucket, name = bucket_and_name(key)
        with contextlib.suppress(FileNotFoundError):
            if self.look(key).tag == tag:
                with told_of_bucket(bucket):
                    TRAFFIC.add()
                    self.client.delete_object(Bucket=bucket, Key=name)

    def unfinished(self, key: str, /) -> list[tuple[str, str]]:
        """The uploads of an object, and of all that lie below it."""
        bucket, name = bucket_and_name(key)
        found = []
        with contextlib.suppress(FileNotFoundError), told_of_bucket(bucket):  # some stores say so of none
            for page in self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=name
            ):
                TRAFFIC.add()
                found += [(item["Key"], item["UploadId"]) for item in page.get("Uploads", ())]
        below = name and f"{name}/"
        return [
            (f"{bucket}/{each}", upload) for each, upload in found if each == name or each.startswith(below)
        ]


def _found(answer: Any, size: int) -> Found:
    tag = answer.get("ETag", "").strip('"') or f"{answer.get('LastModified', '')}"
    return Found(size, f"{tag} {answer.get('VersionId', '')}".strip())


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def told_of_bucket(bucket: str) -> Iterator[None]:
    """Errors of botocore as those of a client."""
    from botocore import exceptions as boto

    lines = (
        *(boto.HTTPClientError, boto.EndpointConnectionError, boto.IncompleteReadError),
        *(boto.ResponseStreamingError, boto.ConnectionClosedError),
    )
    try:
        yield
    except boto.ClientError as error:
        raise _in_words(error, bucket) from error
    except lines as error:
        what = "no connection" if isinstance(error, boto.EndpointConnectionError) else "the line broke"
        raise Passing(
            "the server fell silent" if isinstance(error, boto.ReadTimeoutError) else what
        ) from error
    except boto.BotoCoreError as error:
        raise InputError(
            f"its credentials cannot be used ({type(error).__name__})", fix=_CREDENTIALS
        ) from error


def _in_words(error: Any, bucket: str) -> Exception:
    """An answer that is an error, in words; the text of a store may show keys, and is left out."""
    code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
    if code in _PASSING or status == 429 or (status >= 500 and status != _UNKNOWN):
        return Passing(f"the store answers {status or code}")
    if status == 404 and code != "NoSuchBucket":
        return missing()
    if status in (409, 412):
        return FileExistsError(17, "it exists")
    rights = f"credentials that may read and list {bucket}: {_CREDENTIALS}"
    said: dict[object, tuple[str, str]] = {
        **dict.fromkeys((401, 403), ("access is forbidden", rights)),
        "NoSuchBucket": (f"there is no bucket {bucket}", "check its name, AWS_PROFILE and AWS_ENDPOINT_URL"),
        **dict.fromkeys(
            _EXPIRED, ("the token has expired", "log in again (aws sso login), or take new credentials")
        ),
        **dict.fromkeys(_NO_KEYS, (f"its credentials are not valid ({code})", _CREDENTIALS)),
    }
    refused = (f"the store refuses ({status} {code})", "check the address and AWS_ENDPOINT_URL")
    what, fix = said.get(code) or said.get(status) or refused
    return InputError(what, fix=fix)
