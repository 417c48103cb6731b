# README's two commands are `make demo` and `make test`; each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
INSTALL := -m pip install --quiet --constraint constraints.txt --editable
WORKERS ?= 2

.PHONY: demo test lint format clean

demo: $(DEMO_VENV)/installed
	$(DEMO_VENV)/bin/python examples/make_seeded_checkpoint.py demo/checkpoint
	$(DEMO_VENV)/bin/detr-export onnx demo/checkpoint --output demo/model.onnx --overwrite
	$(DEMO_VENV)/bin/python -c "import sklearn.datasets, shutil, pathlib; \
	    shutil.copy(pathlib.Path(sklearn.datasets.__file__).parent / 'images' / 'china.jpg', 'demo')"
	$(DEMO_VENV)/bin/detr-export predict demo/model.onnx demo/china.jpg --threshold 0.5 --output demo/pictures --overwrite

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS)  # more threads than cores would fight

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) '.[export,cpu,oracle,demo,dev]'
	touch $@

$(DEMO_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(INSTALL) '.[export,cpu,demo]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_VENV) demo
