# `make demo` shows the whole system; `make test` checks it; `make bench` measures it
# (DEVICE=cuda on a GPU). All set up what they need in .venv first. Use another
# interpreter with `make PYTHON=python3.12 ...`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEVICE ?= cpu
SIZE ?= base
# Two processes of one thread each take half the time of one process of two threads.
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow bench lint clean

demo: $(VENV)/.installed
	$(RUN) tools/demo.py

test: $(VENV)/.installed
	$(TEST) -m "not slow"

test-slow: $(VENV)/.installed
	$(TEST) -m slow

bench: $(VENV)/.installed
	$(RUN) tools/bench.py --device=$(DEVICE) --size=$(SIZE)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) data results

# Nothing is uninstalled here, so a torch of your own choice (README, "Other
# installations") stays when it fulfils pyproject.toml.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; assert (3, 11) <= v < (3, 14), "Python 3.11, 3.12 or 3.13 is needed; name it with make PYTHON=python3.12"'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade uv
	$(VENV)/bin/uv pip install --python $(RUN) --constraint constraints.txt \
	    --editable '.[demo,m4a,tensorboard,test]'
	touch $@
