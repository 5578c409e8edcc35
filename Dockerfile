# One image for everything that runs in containers: Spark's master and workers, and the training ranks.
#
#   docker build -t headrace .            (BuildKit; engine 20.10 or newer, there with DOCKER_BUILDKIT=1)
#
# Build arguments: pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), HEADRACE_TORCH_INDEX_URL (setup/setup.sh
# tells what it is: an index of torch's CPU builds makes the image gigabytes smaller), and WHEELS: an image whose /wheels
# holds wheels to prefer and, if you like, folders of a Horovod that is built already (~/.cache/headrace/wheels/*).
# HEADRACE_PACKAGES: more of Debian's packages (an MPIJob wants "openssh-client openssh-server").
# Behind a proxy with a certificate authority of its own: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
ARG WHEELS=no-wheels

FROM scratch AS no-wheels
WORKDIR /wheels

FROM ${WHEELS} AS wheels

FROM python:3.11-slim-bookworm AS base
ARG HEADRACE_PACKAGES=
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless $HEADRACE_PACKAGES \
    && rm -rf /var/lib/apt/lists/*
# The system's certificates, also for the pip that a new environment begins with, so that there is one file to mount over.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt

FROM base AS environment
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/headrace
ARG HEADRACE_TORCH_INDEX_URL
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV HEADRACE_CACHE=/var/cache/headrace PIP_CACHE_DIR=/var/cache/pip PIP_FIND_LINKS=/wheels
COPY requirements.lock ./
COPY setup setup
# All but Headrace itself: Horovod compiles for minutes, so its layer is outdated by no more than the two above.
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    mkdir -p "$HEADRACE_CACHE/wheels" \
    && find /wheels -mindepth 1 -maxdepth 1 -type d -name 'horovod*' -exec cp -r {} "$HEADRACE_CACHE/wheels/" \; \
    && printf '[project]\nname = "headrace"\nversion = "0"\n[tool.setuptools]\npackages = []\n' >pyproject.toml \
    && setup/setup.sh
COPY pyproject.toml ./
COPY training/gather.c training/
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    setup/setup.sh

FROM base
# The volume takes its owner from this folder. It is also where relative paths lead, since the code is not writable.
RUN useradd --create-home --uid 1000 headrace && install --directory --owner headrace --group headrace /data
COPY --from=environment /opt/headrace/.venv /opt/headrace/.venv
COPY . /opt/headrace
COPY --from=environment /opt/headrace/training/_gather*.so /opt/headrace/training/
ENV PATH=/opt/headrace/.venv/bin:$PATH
WORKDIR /data
USER 1000
CMD ["headrace", "--help"]
