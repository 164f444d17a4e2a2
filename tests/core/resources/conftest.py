"""The Model of the architecture page, as text to be broken."""

from __future__ import annotations

import pytest

MODEL = """\
apiVersion: ai.flexinfer/v1alpha2
kind: Model
metadata: {name: smollm2-135m-instruct}
spec:
  source: catalog://smollm2-135m-instruct/q8-0
  backend: llamacpp
  aliases: [smol]
  config: {contextTokens: 4096, slots: 4}            # what ONE request may use
  gpu: {vendor: cpu, count: 1, shared: "", priority: 100, vramEstimateMB: 0, swapCooldown: 5m}
  serverless: {enabled: true, minReplicas: 0, maxReplicas: 1, idleTimeout: 5m, coldStartTimeout: 60s,
               loadStallTimeout: 60s}
  cache: {strategy: Local, size: 50Gi, flashLoader: {tmpfs: false, concurrency: 4}}
  routing: {strategy: least-loaded}
  quality: {require: attestation, minSameTop: 0.90, maxKlLowerBound: 0.10, maxPerplexityRatio: 1.10}
status:
  phase: Ready
  artifact: {digest: "sha256:…", reference: "…", format: gguf, quantization: Q8_0, sizeBytes: 1}
  conditions: [{type: Cached}, {type: Loaded}, {type: Ready}, {type: Schedulable}, {type: ConfigValid},
               {type: Verified}]
  coldStart: {p50Seconds: 1.9, p95Seconds: 2.4, phases: {fetch: 0, verify: 0.0, start: 0.3, load: 1.2,
              firstToken: 0.4}}
"""


@pytest.fixture
def model_text() -> str:
    return MODEL
