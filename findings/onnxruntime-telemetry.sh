#!/usr/bin/env bash
# onnxruntime 1.31.1, PyPI's wheel for Linux: importing it is enough for it to write an identifier of the machine and a
# database of events under the user's home, which it sends to its makers where it can. ORT_DISABLE_TELEMETRY=1 in the
# environment before the first import prevents both. `disable_telemetry_events()` comes too late: the files are there
# once the module is imported.
# Seen, in an empty home: .cache/Microsoft/DeveloperTools/.onnxruntime/deviceid and onnxruntime.db; with the variable
# nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 numpy==2.4.6
mkdir "$folder/by-default" "$folder/disabled" "$folder/late"
unset ORT_DISABLE_TELEMETRY
HOME=$folder/by-default "$folder/venv/bin/python" -c 'import onnxruntime'
HOME=$folder/late "$folder/venv/bin/python" -c 'import onnxruntime; onnxruntime.disable_telemetry_events()'
HOME=$folder/disabled ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" -c 'import onnxruntime'
for home in by-default late disabled; do
    echo "$home: $(cd "$folder/$home" && find . -type f | sort | tr '\n' ' ')"
done
for home in by-default late; do
    test -s "$folder/$home/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid" ||
        { echo "importing it no longer leaves an identifier ($home)"; exit 1; }
done
test -z "$(find "$folder/disabled" -type f)" || { echo "the variable no longer prevents it"; exit 1; }
