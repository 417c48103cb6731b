# Serves an ONNX file on an NVIDIA GPU, without PyTorch. docker/README.md says how to build and run it.
# The extra `gpu` brings CUDA and cuDNN as Python packages, in the versions that ONNX Runtime was built with. A base with CUDA would
# bring them a second time. The driver comes from the machine, through NVIDIA's container toolkit.
FROM python:3.13-slim-trixie AS build
# Another package index, where the build machine needs one.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /source
COPY . .
RUN python3 -m venv --without-pip /opt/detr-export \
    && pip --python /opt/detr-export install --no-cache-dir --constraint constraints.txt --constraint docker/cuda.txt \
        '.[gpu,serve]'

FROM python:3.13-slim-trixie
# A number, so that Kubernetes can see that it is not root; a name and a home, for libraries that ask for them.
RUN useradd --uid 10001 --create-home detr
COPY --from=build /opt/detr-export /opt/detr-export
# What NVIDIA's container toolkit gives to the container.
ENV PATH=/opt/detr-export/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["detr-export"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0", "--port", "8000", "--device", "cuda"]
