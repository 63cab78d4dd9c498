# starflow serve on the CPU. The bundles lie in a volume:
#   docker build -t starflow .
#   docker run --rm -p 8000:8000 -v "$PWD/bundles:/bundles:ro" starflow /bundles/digits.bundle
# On an NVIDIA GPU, with a driver for CUDA 13 (580 or newer) on the host:
#   docker build -t starflow-gpu --build-arg RUNTIME=gpu .
#   docker run --rm --gpus all -p 8000:8000 -v "$PWD/bundles:/bundles:ro" starflow-gpu /bundles/digits.bundle --provider cuda
FROM python:3.12-slim AS build
ARG RUNTIME=cpu
COPY . /source
RUN python -m venv /starflow && /starflow/bin/pip install --no-cache-dir "/source[$RUNTIME,serve,text]"

FROM python:3.12-slim
COPY --from=build /starflow /starflow
RUN useradd --create-home --uid 10001 starflow
USER starflow
ENV PATH="/starflow/bin:$PATH" PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["starflow", "serve", "--host", "0.0.0.0"]
