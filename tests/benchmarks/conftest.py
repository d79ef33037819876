"""The benchmarks are scripts: their folder is on the path when they run, and so it is here."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))
