"""An S3 bucket and prefix as an object store, through boto3. The only module that knows boto3. Any thread.

Payloads are unsigned: over TLS its MAC protects them, over plain HTTP nothing more than TCP's checksum does until a
read checks the digests; signing would hash every byte once more. botocore repeats nothing: `driver.store.retry` does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.credentials import SharedCredentialProvider
from urllib3.exceptions import HTTPError

from driver.core.errors import (
    AccessDenied,
    InvalidArgument,
    OutOfSpace,
    RepositoryMissing,
    RepositoryUnavailable,
    StillframeError,
    Unsupported,
)
from driver.core.settings import Repository
from driver.store.port import Body, Listed, Options, Page, Part, Pieces

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2RequestTypeDef, ObjectIdentifierTypeDef

_REGION_DEFAULT: Final = "us-east-1"
_REFUSED: Final = {
    "InvalidAccessKeyId": "the access key is not known there: check the credentials",
    "XAdminUserNotFound": "the access key is not known there: check the credentials",
    "SignatureDoesNotMatch": "the secret key is wrong: check the credentials",
    "ExpiredToken": "the session token has expired: provide fresh credentials",
}
_REFUSED_HINT: Final = "check the credentials, and that they may list, read, write and delete in this bucket"
_WRONG_REGION: Final = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed"})
_MAY_PASS: Final = frozenset({"RequestTimeout", "SlowDown", "ConditionalRequestConflict", "IncompleteBody"})
_CREDENTIAL_ERRORS: Final = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
_NO_ROOM: Final = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "StorageFull"}
)
"""Codes of a full quota or store: Ceph's, MinIO's, others'."""
_STATUS_OF: Final = {"AccessDenied": 403}
"""Of one object's error within an answer that is 200 as a whole."""
_MISSING: Final = frozenset({"NoSuchKey", "NotFound"})
_MISSING_HEAD: Final = _MISSING | {"404"}
"""An answer to HEAD has no body, so no code. A 404 to anything else that has none is not the store's, but some proxy's."""


_T = TypeVar("_T")


class _Keys(NamedTuple):
    access: str | None
    secret: str | None
    token: str | None


class _Failure(NamedTuple):
    code: str
    status: int
    text: str


class S3Store:
    """Objects in `repository`'s bucket. Raises InvalidArgument, AccessDenied (no credentials)."""

    def __init__(self, repository: Repository, options: Options) -> None:
        parts = urlsplit(repository.url)
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = repository.endpoint or "AWS"
        self._name = repository.name
        self._pace = options.pace
        if not self._bucket:
            raise InvalidArgument(f"{repository.url!r} names no bucket", "write s3://bucket/prefix")
        if repository.ca and not os.path.isfile(repository.ca):
            raise InvalidArgument(f"there is no CA file {repository.ca}", "set the repository's `ca` to a PEM file")
        self._repository = repository
        self._options = options
        self._changing = threading.Lock()  # guards a change of the two below
        self._keys = _keys(repository)
        self._client = _client(repository, options, self._keys)

    @property
    def where(self) -> str:
        return f"bucket {self._bucket!r} at {self._endpoint} (repository {self._name!r})"

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        with self._translated("reading", key):
            answer = self._unless_missing(lambda: self._client.get_object(Bucket=self._bucket, Key=self._prefix + key))
            if answer is None:
                return None
            return _read(answer, maximum_bytes + 1)

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        with self._translated("reading", key):
            wanted = f"bytes={offset}-{offset + length - 1}"
            try:
                answer = self._unless_missing(
                    lambda: self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, Range=wanted)
                )
            except exceptions.ClientError as error:
                if _failure(error).status == 416:
                    return Part(b"", 0)
                raise
            if answer is None:
                return None
            if "ContentRange" in answer:
                return Part(_read(answer, length + 1), int(answer["ContentRange"].rpartition("/")[2]))
            return Part(_read(answer, offset + length)[offset:], answer["ContentLength"])

    def put(self, key: str, pieces: Pieces) -> None:
        with self._translated("writing", key):
            body: Any = Body(pieces, self._pace)
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._translated("writing", key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
            except exceptions.ClientError as error:
                if _failure(error).status == 412:
                    return False
                raise
            return True

    def delete(self, key: str) -> None:
        with self._translated("deleting", key):
            self._unless_missing(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def delete_many(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        wanted: list[ObjectIdentifierTypeDef] = [{"Key": self._prefix + key} for key in keys]
        try:
            with self._translated(f"deleting {len(keys)} objects, the first of which is", keys[0]):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": wanted, "Quiet": True})
        except Unsupported:  # it has no such request, or only one with an MD5 of its body, as S3 once demanded
            for key in keys:
                self.delete(key)
            return
        for failed in answer.get("Errors", []):
            code = str(failed.get("Code", ""))
            if code not in _MISSING:
                what = f"deleting {failed.get('Key')!r} in {self.where}"
                raise self._refusal(what, _Failure(code, _STATUS_OF.get(code, 500), f"{code}: {failed.get('Message', '')}"))

    def tidy(self, before: float) -> int:
        """Nothing: an object is there when all of it is, and we make none in parts."""
        return 0

    def head(self, key: str) -> Listed | None:
        with self._translated("looking at", key):
            answer = self._unless_missing(
                lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key), _MISSING_HEAD
            )
            if answer is None:
                return None
            return Listed(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def page(self, prefix: str, after: str | None) -> Page:
        wanted: ListObjectsV2RequestTypeDef = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after is not None:
            wanted["ContinuationToken"] = after
        with self._translated("listing", prefix):
            answer = self._client.list_objects_v2(**wanted)
        following = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
        if answer.get("IsTruncated") and following in (None, after):
            raise Unsupported(
                f"listing {self._prefix + prefix!r} in {self.where}: it ends early, and does not say how to go on",
                "this store's listings cannot be relied on",
            )
        found = tuple(
            Listed(item["Key"][len(self._prefix) :], item["Size"], item["LastModified"].timestamp())
            for item in answer.get("Contents", [])
        )
        return Page(found, _date(answer["ResponseMetadata"]["HTTPHeaders"]), following)

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _unless_missing(call: Callable[[], _T], missing: frozenset[str] = _MISSING) -> _T | None:
        try:
            return call()
        except exceptions.ClientError as error:
            if _failure(error).code in missing:
                return None
            raise

    @contextlib.contextmanager
    def _translated(self, doing: str, key: str) -> Iterator[None]:
        what = f"{doing} {self._prefix + key!r} in {self.where}"
        keys = self._keys
        try:
            yield
        except exceptions.ClientError as error:
            refusal = self._refusal(what, _failure(error))
            if isinstance(refusal, AccessDenied) and self._has_others_than(keys):
                refusal = RepositoryUnavailable(refusal.message, "the credentials file holds other keys now: try again")
            raise refusal from error
        except _CREDENTIAL_ERRORS as error:
            raise _no_credentials(what) from error
        except exceptions.CredentialRetrievalError as error:
            raise _not_fetched(what, error) from error
        except exceptions.SSLError as error:
            raise RepositoryUnavailable(
                f"{what}: TLS: {error}", "set the repository's `ca` to the authority's PEM file, or correct the endpoint"
            ) from error
        except (exceptions.ParamValidationError, exceptions.InvalidRegionError, exceptions.NoRegionError) as error:
            raise InvalidArgument(f"{what}: {error}", "check the repository's url, endpoint and region") from error
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:
            raise RepositoryUnavailable(
                f"{what}: no answer: {error}", "check that the endpoint is right and the store is up"
            ) from error
        except RuntimeError as error:  # botocore has no other word for keys that are stale when they are fetched
            if type(error) is not RuntimeError:
                raise
            raise RepositoryUnavailable(
                f"{what}: not asked: {error}", "look at what its credentials come from, unless this process was being ended"
            ) from error

    def _has_others_than(self, refused: _Keys) -> bool:
        """Whether there are other keys than these by now, which every request is made with from now on."""
        with self._changing:
            if self._keys != refused:
                return True
            try:
                found = _keys(self._repository)
            except AccessDenied:
                return False
            if found == refused:
                return False
            self._client = _client(self._repository, self._options, found)  # the old one may be in use: it is not closed
            self._keys = found
            return True

    def _refusal(self, what: str, failure: _Failure) -> StillframeError:
        message = f"{what}: {failure.text}"
        if failure.code == "NoSuchBucket":
            return RepositoryMissing(f"{self.where} does not exist", "make it, or correct the repository's url")
        if failure.code in _WRONG_REGION or failure.status in (301, 307):
            return InvalidArgument(message, "set the repository's `region` to the bucket's")
        if failure.status == 507 or failure.code in _NO_ROOM:
            return OutOfSpace(
                message, "raise the bucket's quota, or make room in the store: even a deletion writes a small object"
            )
        if failure.code == "RequestTimeTooSkewed":  # it may be set soon, as after the sleep of a virtual machine
            return RepositoryUnavailable(message, "this host's clock differs from the store's: set the clock")
        if failure.status in (401, 403) or failure.code in _REFUSED:
            return AccessDenied(message, _REFUSED.get(failure.code, _REFUSED_HINT))
        if failure.status == 404:
            return RepositoryUnavailable(
                message, "something answers in the store's place, such as a proxy without a route to it: check the endpoint"
            )
        if failure.status == 501:
            return Unsupported(message, "this store lacks what Stillframe needs")
        if failure.status >= 500 or failure.status in (408, 409, 429) or failure.code in _MAY_PASS:
            return RepositoryUnavailable(message, "the store has a problem; try again later")
        return Unsupported(message, "the store does not accept this request; check the repository's settings")


def _client(repository: Repository, options: Options, keys: _Keys) -> S3Client:
    config = Config(
        connect_timeout=options.connect_seconds,
        read_timeout=options.read_seconds,
        max_pool_connections=options.connections,
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "payload_signing_enabled": False,
            "addressing_style": "path" if repository.endpoint else "auto",
        },
        user_agent_extra="stillframe",
    )
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=repository.endpoint,
            region_name=repository.region or (_REGION_DEFAULT if repository.endpoint else None),
            verify=repository.ca,
            config=config,
            aws_access_key_id=keys.access,
            aws_secret_access_key=keys.secret,
            aws_session_token=keys.token,
        )
    except exceptions.CredentialRetrievalError as error:
        raise _not_fetched(f"repository {repository.name!r}", error) from error
    except (ValueError, exceptions.BotoCoreError) as error:
        raise InvalidArgument(f"repository {repository.name!r}: {error}", "check its endpoint, region") from error


def _keys(repository: Repository) -> _Keys:
    """What the repository's credentials file holds; nothing without one, so that boto3 looks where it always does."""
    path = repository.credentials
    if path is None:
        return _Keys(None, None, None)
    if not os.path.isfile(path):
        raise AccessDenied(f"there is no credentials file {path}", f"repository {repository.name!r} names it: make it")
    try:
        found = SharedCredentialProvider(path, profile_name="default").load()
    except exceptions.BotoCoreError as error:
        raise AccessDenied(f"{path}: {error}", "it must be an AWS credentials file") from error
    if found is None:
        raise AccessDenied(
            f"{path} holds no credentials", "it needs [default] with aws_access_key_id and aws_secret_access_key"
        )
    return _Keys(found.access_key, found.secret_key, found.token)


def _read(answer: GetObjectOutputTypeDef, maximum_bytes: int) -> bytes:
    """The body of an answer, or its first bytes. Raises IncompleteReadError if it ends early, which botocore only notices of
    a body that is read to its end."""
    with contextlib.closing(answer["Body"]) as body:
        data: bytes = body.read(maximum_bytes)
    expected = min(answer.get("ContentLength", 0), maximum_bytes)
    if len(data) < expected:
        raise exceptions.IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
    return data


def _no_credentials(what: str) -> AccessDenied:
    return AccessDenied(
        f"{what}: there are no credentials",
        "set the repository's `credentials` to a file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the engine",
    )


def _not_fetched(what: str, error: exceptions.CredentialRetrievalError) -> RepositoryUnavailable:
    return RepositoryUnavailable(
        f"{what}: no credentials can be had: {error}",
        "look at what they come from: the host's metadata service, the service account, a program",
    )


def _failure(error: exceptions.ClientError) -> _Failure:
    fields = error.response.get("Error", {})
    code = str(fields.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return _Failure(code, status, f"HTTP {status} {code}: {fields.get('Message', '')}".rstrip(": ."))


def _date(headers: Any) -> float:
    """The store's clock, from the Date header of an answer; 0 without one."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
