#!/bin/sh
# Compile the locks: universal (3.11 to 3.14), with hashes, without addresses of an index.
set -eu
cd "$(dirname "$0")/.."
compile="uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url"
$compile pyproject.toml --extra all -o requirements/all.txt
for extra in serving operator pipelines; do
  $compile pyproject.toml --extra "$extra" -c requirements/all.txt -o "requirements/$extra.txt"
done
$compile pyproject.toml --extra all --group dev -c requirements/all.txt -o requirements/dev.txt
$compile --group build -o requirements/build.txt
for tool in requirements/tools/*.in; do
  # Complete as they are: what a tool does not load is not in its environment (README there).
  $compile --no-deps "$tool" -o "${tool%.in}.txt"
done
