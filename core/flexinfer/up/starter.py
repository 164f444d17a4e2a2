"""The starter model: what a first `up` builds, so that there is something to talk to."""

from __future__ import annotations

from pathlib import Path

from flexinfer.files import replace_file
from flexinfer.places import Home

MODEL = "smollm2-135m-instruct"
TARGET = "smollm2-135m-instruct/q8-0"
_MODEL_FILE = """\
# What shall be served. Edit this file while `flexinfer up` runs: a change acts within a second, a mistake is
# refused with its place and the old state stays. Delete it, and the model is gone; `flexinfer build` and
# `flexinfer run` bring others. Every field: docs/model.md
apiVersion: ai.flexinfer/v1alpha2
kind: Model
metadata:
  name: smollm2-135m-instruct
spec:
  source: catalog://smollm2-135m-instruct/q8-0
  backend: llamacpp
  aliases: [smol]
  config: {contextTokens: 4096, slots: 4}
  gpu: {vendor: cpu}
  serverless: {minReplicas: 0, maxReplicas: 1, idleTimeout: 5m, coldStartTimeout: 60s}
  quality: {require: attestation, minSameTop: 0.90, maxKlLowerBound: 0.10}
"""


def is_wanted(home: Home) -> bool:
    """Tell whether this home never had a starter and has no Model of its user's own."""
    return not _marker(home).exists() and not home.model_files()


def write(home: Home) -> Path:
    """Write the starter's Model file, durably, and remember that it was written. Return its path."""
    path = home.model_file(MODEL)
    replace_file(path, _MODEL_FILE.encode(), scratch=home.scratch("starter"))
    _marker(home).touch()
    return path


def _marker(home: Home) -> Path:
    # Beside the models, so that whoever deletes the starter's file does not get it back.
    return home.models / ".starter-written"
