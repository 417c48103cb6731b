# Makes ONNX files from checkpoints, and verifies them, on a CPU. docker/README.md says how to build and run it.
FROM python:3.13-slim-trixie AS build
# Another package index. PyTorch's index of CPU builds saves gigabytes of CUDA.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY . .
RUN python3 -m venv --without-pip /opt/detr-export \
    && pip --python /opt/detr-export install --no-cache-dir --constraint constraints.txt '.[export,cpu]'

FROM python:3.13-slim-trixie
# A number, so that Kubernetes can see that it is not root; a name and a home, for libraries that ask for them.
RUN useradd --uid 10001 --create-home detr
COPY --from=build /opt/detr-export /opt/detr-export
ENV PATH=/opt/detr-export/bin:$PATH
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["detr-export"]
CMD ["--help"]
