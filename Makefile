PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := stagevar_runtime stagevar_probe
EMOJI := checkpoints/scenes-emoji/scenes.safetensors

.PHONY: venv demo demo-t2i test lint pages clean bench-gpu profile-gpu train-gpu

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
	mkdir -p demo && cp -R checkpoints/scenes demo/
	$(BIN)/stagevar-probe calibrate demo/scenes/scenes.safetensors || test $$? = 5
	$(BIN)/stagevar-probe generate demo/scenes/scenes.safetensors --compare \
		--output demo/scenes_sheet.png
	@echo "profile   demo/scenes/scenes.stagevar.yaml"
	@echo "report    demo/scenes/scenes.stagevar.report.html"
	@echo "sheet     demo/scenes_sheet.png (exact above, accelerated below)"

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

# Needs a CUDA device and npm, half an hour: the larger model on scenes and emoji, and its scores.
train-gpu: venv
	$(BIN)/python -m pip install --quiet -e '.[training,metrics]' -c constraints.txt
	$(BIN)/python -m training.data.emoji --output runs/emoji.zip
	$(BIN)/python -m training.train_scenes --preset gpu
	$(BIN)/stagevar-probe calibrate $(EMOJI) --features effnet-64
	$(BIN)/stagevar-probe evaluate $(EMOJI) --features effnet-64 --output runs/scenes.html
	$(BIN)/stagevar-probe evaluate $(EMOJI) --features effnet-64 --output runs/emoji.html \
		--suite emoji --pictures runs/emoji.zip
