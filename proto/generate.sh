#!/bin/sh
# Makes the Python code beside the .proto files. Run by `make proto`; CI checks that it is fresh.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I. \
    --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. galactica/v1/*.proto
