# One image for web, beat and workers; compose.yaml names the command.
FROM python:3.11-slim

# git and ssh are for the workers alone; one image is worth more than the few megabytes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r requirements.txt

COPY manage.py ./
COPY fleetsync fleetsync
COPY repos repos
COPY workers workers

# The keys that a bare machine makes for itself stay out of the image: they go with the folder.
RUN DATA_DIR=/tmp/build python manage.py collectstatic --noinput \
    && rm -rf /tmp/build \
    && useradd --uid 10001 --create-home fleetsync \
    && install --directory --owner fleetsync --group fleetsync --mode 0700 /data

ENV DEBUG=off DATA_DIR=/data WEB_ADDRESS=0.0.0.0
USER fleetsync
VOLUME /data
EXPOSE 8000
CMD ["python", "manage.py", "web"]
