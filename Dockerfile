# One image for every role: engine, transfer supervisor, node plugin, controller.
#
#     docker build -t stillframe:0.1.0 .
#
# Python packages are those of requirements-runtime.lock, checked by their hashes; Debian's are those of the day. With
# SOURCE_DATE_EPOCH given and timestamps rewritten (make image; BuildKit: --output type=image,rewrite-timestamp=true), two
# builds on the same Debian packages are the same, byte for byte.

FROM docker.io/library/debian:trixie-slim AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates python3 python3-pip python3-setuptools python3-venv python3-wheel
WORKDIR /build
COPY requirements-runtime.lock ./
RUN python3 -m venv --without-pip /opt/stillframe \
    && python3 -m pip --python /opt/stillframe/bin/python install --no-cache-dir --disable-pip-version-check --no-compile \
        --require-hashes --only-binary :all: -r requirements-runtime.lock
COPY . .
ARG SOURCE_DATE_EPOCH=1767225600
RUN python3 -m pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python3 -m pip --python /opt/stillframe/bin/python install --no-cache-dir --disable-pip-version-check --no-compile \
        --no-deps --no-index /wheels/*.whl \
    && find /opt/stillframe -name direct_url.json -delete \
    && PYTHONHASHSEED=0 python3 -m compileall -q -f -j 1 --invalidation-mode unchecked-hash /opt/stillframe/lib

FROM docker.io/library/debian:trixie-slim
# e2fsprogs: mkfs.ext4, e2fsck, resize2fs; xfsprogs: mkfs.xfs, xfs_growfs; util-linux: blkid.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates e2fsprogs mount python3 util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/log/* \
        /var/lib/dpkg/*-old /usr/share/doc/*/changelog* /usr/share/man /usr/share/locale /tmp/* \
    && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} + \
    && PYTHONHASHSEED=0 python3 -m compileall -q -f -j 1 --invalidation-mode unchecked-hash /usr/lib/python3.* \
    && useradd --system --uid 65532 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin stillframe \
    && rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- /var/log/*
COPY --from=build /opt/stillframe /opt/stillframe
ENV PATH=/opt/stillframe/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Stillframe" \
      org.opencontainers.image.description="Node-local block volumes whose snapshots go to an object store while they are written" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"
# The controller needs no root. The engine and the node plugin do, and their manifests ask for it.
USER 65532:65532
ENTRYPOINT ["/opt/stillframe/bin/stillframe"]
