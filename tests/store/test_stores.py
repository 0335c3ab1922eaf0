"""What every store does, against a folder and two real S3 servers; and how their failures are told."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from driver.core.errors import AccessDenied, InvalidArgument, NotFound, RepositoryUnavailable, StillframeError
from driver.core.settings import Repository
from driver.store.open import honours_conditions, open_store
from driver.store.port import DELETE_MAX, Body, ObjectStore, Options
from driver.store.retry import Policy
from tests.servers import ACCESS, SECRET, S3Server, credentials_file, serve_rclone

ONCE = Policy(0.0)
SHORT = Options(connect_seconds=0.5, read_seconds=0.5)
PATIENT = Options(connect_seconds=100, read_seconds=100)


def s3(server: S3Server, folder: Path, **changes: str | None) -> Repository:
    fields = {
        "name": "test", "url": "s3://no-such-bucket/a/prefix", "endpoint": server.endpoint,
        "credentials": str(credentials_file(folder)), **changes,
    }  # fmt: skip
    return Repository(**fields)  # type: ignore[arg-type]


@pytest.fixture(params=["folder", "rclone_s3", "versitygw"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    if request.param == "folder":
        return Repository("test", f"file://{tmp_path}")
    server = request.getfixturevalue(request.param)
    return s3(server, tmp_path, url=f"s3://{server.make_bucket()}/a/prefix")


@pytest.fixture
def store(repository: Repository) -> Iterator[ObjectStore]:
    opened = open_store(repository, ONCE)
    yield opened
    opened.close()


def test_an_object_comes_back(store: ObjectStore) -> None:
    pieces: list[bytes | memoryview] = [b"one ", memoryview(b"two "), b"", memoryview(os.urandom(200_000))]
    whole = b"".join(pieces)
    store.put("lineages/l/packs/p", pieces)
    assert store.get("lineages/l/packs/p", 1 << 20) == whole
    part = store.get_range("lineages/l/packs/p", 4, 100_000)
    assert part is not None
    assert (part.data, part.total_bytes) == (whole[4:100_004], len(whole))
    found = store.head("lineages/l/packs/p")
    assert found is not None
    assert found.size_bytes == len(whole)
    store.put("lineages/l/packs/p", [b"other"])
    assert store.get("lineages/l/packs/p", 1 << 20) == b"other"


def test_reading_is_bounded(store: ObjectStore) -> None:
    store.put("x", [bytes(1000)])
    assert len(store.get("x", 10) or b"") == 11
    part = store.get_range("x", 990, 100)
    assert part is not None
    assert (len(part.data), part.total_bytes) == (10, 1000)
    beyond = store.get_range("x", 5000, 100)
    assert beyond is not None
    assert beyond.data == b""


def test_what_is_not_there(store: ObjectStore) -> None:
    assert store.get("a/b", 10) is None
    assert store.get_range("a/b", 0, 10) is None
    assert store.head("a/b") is None
    store.delete("a/b")
    assert store.list("a/").objects == ()


def test_a_listing(store: ObjectStore) -> None:
    for number in range(5):
        store.put(f"snapshots/{number}/manifest.json", [bytes(number)])
    store.put("snapshots-not/x", [b""])
    store.delete("snapshots/3/manifest.json")
    listing = store.list("snapshots/")
    assert [(item.key, item.size_bytes) for item in listing.objects] == [
        (f"snapshots/{number}/manifest.json", number) for number in (0, 1, 2, 4)
    ]
    assert all(abs(listing.now - item.modified) < 600 for item in listing.objects)


def test_many_go_at_once(store: ObjectStore) -> None:
    for number in range(5):
        store.put(f"lineages/many/{number}", [b"x"])
    store.delete_many([f"lineages/many/{number}" for number in (0, 1, 3, 9)])  # 9 never was
    assert [item.key for item in store.list("lineages/many/").objects] == ["lineages/many/2", "lineages/many/4"]
    store.delete_many([])
    store.delete_many([f"lineages/many/{number}" for number in range(DELETE_MAX)])
    assert store.list("lineages/").objects == ()


def test_a_bucket_or_folder_that_is_missing_has_nothing_deleted(rclone_s3: S3Server, tmp_path: Path) -> None:
    for repository in (s3(rclone_s3, tmp_path), Repository("test", f"file://{tmp_path}/nonexistent")):
        with pytest.raises(NotFound):
            open_store(repository, ONCE).delete_many(["lineages/x"])


def test_a_folder_is_tidied_of_what_was_never_whole(tmp_path: Path) -> None:
    store = open_store(Repository("test", f"file://{tmp_path}"), ONCE)
    for key in ("lineages/a/packs/p", "lineages/b/packs/p"):
        store.put(key, [b"x"])
    old, new = tmp_path / "lineages/a/packs/.new-old", tmp_path / "lineages/a/packs/.new-new"
    above = tmp_path / ".new-above"
    for path in (old, new, above, tmp_path / "another's"):
        path.write_bytes(b"half")
    store.delete("lineages/b/packs/p")
    now = store.list("lineages/").now
    for path in (old, above, tmp_path / "another's", tmp_path / "lineages/b/packs", tmp_path / "lineages/b"):
        os.utime(path, (now - 100, now - 100))
    assert store.tidy(now - 200) == 0
    assert store.tidy(now - 50) == 2
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "another's", "lineages", "lineages/a", "lineages/a/packs", "lineages/a/packs/.new-new", "lineages/a/packs/p"
    ]  # fmt: skip
    assert now == pytest.approx(new.stat().st_mtime, abs=60)
    store.put("lineages/b/packs/p", [b"again"])


def test_a_folder_in_the_place_of_the_repository_s_is_left_alone(tmp_path: Path) -> None:
    """An empty one is what an unmounted file server leaves; the repository may come back as another inode."""
    place, away = tmp_path / "place", tmp_path / "away"
    place.mkdir()
    store = open_store(Repository("test", f"file://{place}"), ONCE)
    store.put("stillframe.json", [b"this one"])
    store.put("a", [b"x"])
    shutil.copytree(place, away)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
        place.rename(tmp_path / f"{name}-before")
        (tmp_path / name).rename(place)
        if name == "other":
            (place / "stillframe.json").write_bytes(b"another one")
        before = list(place.iterdir())
        for attempt in (
            lambda: store.put("a", [b"y"]), lambda: store.put_if_absent("b", b"y"), lambda: store.get("a", 10),
            lambda: store.head("a"), lambda: store.list(""), lambda: store.delete("a"), lambda: store.delete_many(["a"]),
        ):  # fmt: skip
            with pytest.raises(RepositoryUnavailable, match="is not the one that was there before"):
                attempt()
        assert list(place.iterdir()) == before
    place.rename(tmp_path / "last")
    away.rename(place)
    assert store.get("a", 10) == b"x"
    store.put("b", [b"y"])


def test_who_is_first_wins_where_the_store_can(store: ObjectStore, repository: Repository) -> None:
    conditions = honours_conditions(repository, store)
    assert conditions is ("rclone" not in type_of(repository))
    assert store.put_if_absent("m", b"first")
    assert store.put_if_absent("m", b"second") is not conditions
    assert store.get("m", 100) == (b"first" if conditions else b"second")
    assert honours_conditions(repository, store) is conditions


def type_of(repository: Repository) -> str:
    from tests.servers import rclone_server

    return "rclone" if repository.endpoint == rclone_server().endpoint else repository.url


def test_a_folder_is_left_whole(tmp_path: Path) -> None:
    store = open_store(Repository("test", f"file://{tmp_path}"), ONCE)
    store.put("a/b/c", [b"x"])
    store.put_if_absent("a/b/c", b"y")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c"]
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a/b/.new-left-by-a-dead-process").write_bytes(b"half")
    assert [item.key for item in store.list("a/").objects] == ["a/b/c"]


def failure(repository: Repository, options: Options = PATIENT) -> StillframeError:
    """What a first request fails with."""
    with pytest.raises(StillframeError) as caught:
        open_store(repository, ONCE, options).get("key", 10)
    assert caught.value.hint
    assert SECRET not in caught.value.message + caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", ["rclone_s3", "versitygw"])
def test_a_bucket_that_is_missing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server = request.getfixturevalue(kind)
    error = failure(s3(server, tmp_path))
    assert isinstance(error, NotFound)
    assert "no-such-bucket" in error.message
    assert server.endpoint in error.message


@pytest.mark.parametrize("kind", ["rclone_s3", "versitygw"])
@pytest.mark.parametrize("keys", [(ACCESS, "wrong"), ("nobody", SECRET)])
def test_credentials_that_are_refused(
    kind: str, keys: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue(kind)
    wrong = credentials_file(tmp_path, *keys)
    error = failure(s3(server, tmp_path, url=f"s3://{server.make_bucket()}", credentials=str(wrong)))
    assert isinstance(error, AccessDenied)
    assert "(repository 'test')" in error.message
    assert "credentials" in error.hint


def test_credentials_that_are_missing(rclone_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert isinstance(failure(s3(rclone_s3, tmp_path, credentials=None)), AccessDenied)
    assert "gone" in str(failure(s3(rclone_s3, tmp_path, credentials=str(tmp_path / "gone"))))
    empty = tmp_path / "empty"
    empty.write_text("[default]\n")
    assert isinstance(failure(s3(rclone_s3, tmp_path, credentials=str(empty))), AccessDenied)


def test_credentials_that_cannot_be_fetched_are_there_again_later(
    rclone_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    keys, away = tmp_path / "keys", tmp_path / "away"
    soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # so they are fetched anew for every request
    keys.write_text(json.dumps({"Version": 1, "AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Expiration": soon}))
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {keys}\n")
    repository = s3(rclone_s3, tmp_path, url=f"s3://{rclone_s3.make_bucket()}", credentials=None)
    store = open_store(repository, ONCE)
    store.put("x", [b"x"])
    keys.rename(away)
    for ask in (lambda: store.get("x", 10), lambda: open_store(repository, ONCE)):
        with pytest.raises(RepositoryUnavailable, match="no credentials can be had"):
            ask()
    away.rename(keys)
    assert store.get("x", 10) == b"x"
    keys.write_text(keys.read_text().replace(soon, (datetime.now(UTC) - timedelta(minutes=1)).isoformat()))
    with pytest.raises(RepositoryUnavailable, match="still expired"):  # a plain RuntimeError of botocore's
        open_store(repository, ONCE).get("x", 10)


def test_changed_keys_are_used_at_once(rclone_s3: S3Server, tmp_path: Path) -> None:
    keys = credentials_file(tmp_path, ACCESS, "revoked")
    repository = s3(rclone_s3, tmp_path, url=f"s3://{rclone_s3.make_bucket()}", credentials=str(keys))
    store = open_store(repository, Policy(20.0))
    with pytest.raises(AccessDenied):
        store.put("x", [b"x"])
    keys.write_text(credentials_file(tmp_path).read_text())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.put(f"x/{number}", [b"x"]), range(4)))
    assert len(store.list("x/").objects) == 4
    keys.unlink()
    assert store.get("x/1", 10) == b"x"


def test_nobody_answers(rclone_s3: S3Server, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert isinstance(failure(s3(rclone_s3, tmp_path, endpoint=endpoint), SHORT), RepositoryUnavailable)
        silent.listen()
        error = failure(s3(rclone_s3, tmp_path, endpoint=endpoint), SHORT)
        assert isinstance(error, RepositoryUnavailable)
        assert endpoint in error.message


def test_settings_that_are_wrong(rclone_s3: S3Server, tmp_path: Path) -> None:
    assert isinstance(failure(s3(rclone_s3, tmp_path, endpoint="not a url")), InvalidArgument)
    assert isinstance(failure(s3(rclone_s3, tmp_path, ca="/nonexistent/ca.pem")), InvalidArgument)
    assert isinstance(failure(s3(rclone_s3, tmp_path, url="s3://Not_A Bucket!")), InvalidArgument)
    assert isinstance(failure(s3(rclone_s3, tmp_path, url="s3:///prefix")), InvalidArgument)
    assert isinstance(failure(Repository("test", "ftp://x")), InvalidArgument)
    assert isinstance(failure(Repository("test", f"file://{tmp_path}/nonexistent")), NotFound)


def test_a_folder_that_cannot_be_looked_at_is_not_missing(tmp_path: Path) -> None:
    """As one on a file server that is away for a while; a link to itself is what every file system can make."""
    (tmp_path / "folder").symlink_to("folder")
    assert isinstance(failure(Repository("test", f"file://{tmp_path}/folder")), RepositoryUnavailable)
    with pytest.raises(RepositoryUnavailable):
        open_store(Repository("test", f"file://{tmp_path}/folder"), ONCE).list("snapshots/")


def test_an_error_of_a_folder_names_the_file(tmp_path: Path) -> None:
    store = open_store(Repository("test", f"file://{tmp_path}"), ONCE)
    store.put("snapshots/s/manifest.json", [b"x"])
    (tmp_path / "snapshots/s/a-loop").symlink_to("a-loop")
    with pytest.raises(RepositoryUnavailable, match=r"listing 'snapshots/' .*snapshots/s/a-loop"):
        store.list("snapshots/")
    (tmp_path / "snapshots/s/.new-loop").symlink_to(".new-loop")
    with pytest.raises(RepositoryUnavailable, match=r"half-written .*snapshots/s/\.new-loop"):
        store.tidy(0)


def test_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = serve_rclone("--cert", str(certificate), "--key", str(key))
    try:
        (server.root / "bucket").mkdir()
        endpoint = server.endpoint.replace("http:", "https:")
        distrusted = s3(server, tmp_path, url="s3://bucket", endpoint=endpoint)
        error = failure(distrusted)
        assert isinstance(error, RepositoryUnavailable)
        assert "TLS" in error.message
        assert "`ca`" in error.hint
        trusted = open_store(s3(server, tmp_path, url="s3://bucket", endpoint=endpoint, ca=str(certificate)), ONCE)
        trusted.put("x", [b"over ", b"TLS"])
        assert trusted.get("x", 100) == b"over TLS"
    finally:
        server.stop()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stillframe test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


def test_a_body_is_read_again_after_a_rewind() -> None:
    paced: list[int] = []
    body = Body([b"x" * 600_000, b"", b"y"], paced.append)
    first = [bytes(piece) for piece in iter(body.read, b"")]
    assert b"".join(first) == b"x" * 600_000 + b"y"
    assert (sum(paced), max(paced)) == (600_001, 256 * 1024)
    assert body.seek(0, 2) == len(body) == 600_001
    body.seek(0)
    assert [bytes(piece) for piece in iter(body.read, b"")] == first


def test_only_one_module_knows_boto3() -> None:
    code = "import sys, driver.store.open, driver.transfer.supervisor; assert 'boto3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
