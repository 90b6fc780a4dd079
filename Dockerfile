# An image that runs the demo, and anything else of the repository:
#     docker build --tag samsg .
#     docker run --name demo samsg
#     docker cp demo:/home/samsg/repository/paper_figures/demo results
FROM python:3.11-slim

# git names the commit in each run's record. Debian's versions change below a tag, so none is named here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 samsg \
    && install --directory --owner=samsg /home/samsg/repository

USER 1000
WORKDIR /home/samsg/repository
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The pinned packages are a layer of their own, which is kept while the lock stays the same.
COPY --chown=1000 requirements.lock ./
RUN python -m venv .venv && .venv/bin/python -m pip install --quiet --requirement requirements.lock

COPY --chown=1000 . .
RUN make .venv/installed

CMD ["make", "reproduce"]
