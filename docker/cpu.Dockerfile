# Serves an ONNX file on a CPU, without PyTorch. docker/README.md says how to build and run it.
FROM python:3.13-slim-trixie AS build
# Another package index, where the build machine needs one.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY . .
RUN python3 -m venv --without-pip /opt/detr-export \
    && pip --python /opt/detr-export install --no-cache-dir --constraint constraints.txt '.[cpu,serve]'

FROM python:3.13-slim-trixie
# A number, so that Kubernetes can see that it is not root; a name and a home, for libraries that ask for them.
RUN useradd --uid 10001 --create-home detr
COPY --from=build /opt/detr-export /opt/detr-export
ENV PATH=/opt/detr-export/bin:$PATH
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["detr-export"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0", "--port", "8000"]
