#!/bin/sh
# Fills corpus/ with the fixtures and a line or two of each text: `sh seeds.sh` in this folder.
set -eu
fixtures=../models/shared/checkpoint/tests/fixtures
for target in safetensors pytorch numpy gguf onnx index matlab prices numbers settings journal manifest eeg text edf brainvision fif eeglab events; do
    mkdir -p corpus/$target
done
cp $fixtures/*.safetensors corpus/safetensors/
cp $fixtures/*.gguf corpus/gguf/
cp $fixtures/*.onnx corpus/onnx/
# The first byte says whether the rest is a whole file (odd) or what is to be wrapped in an archive (even).
for file in $fixtures/*.pt; do
    name=$(basename "$file")
    { printf '\001'; cat "$file"; } > "corpus/pytorch/$name"
    { printf '\000'; unzip -p "$file" '*/data.pkl' 2>/dev/null || true; } > "corpus/pytorch/$name.pkl"
done
for file in $fixtures/*.npz $fixtures/*.npy; do
    { printf '\001'; cat "$file"; } > "corpus/numpy/$(basename "$file")"
done
for file in $fixtures/*.npy; do
    { printf '\000'; cat "$file"; } > "corpus/numpy/$(basename "$file").wrapped"
done
printf '{"weight_map":{"a":"a.safetensors","b":"b.safetensors"},"metadata":{"total_size":2}}' > corpus/index/two
# A variable of one number: flags, dimensions, name, value.
printf '\000\016\000\000\000\060\000\000\000\006\000\000\000\010\000\000\000\006\000\000\000\000\000\000\000\005\000\000\000\010\000\000\000\001\000\000\000\001\000\000\000\001\000\001\000x\000\000\000\002\000\001\000\007\000\000\000' > corpus/matlab/number
printf '\000Date,Open,High,Low,Close,Adj Close,Volume\n2008-10-14,1,2,0.5,1.5,1.4,1000\n2008-10-15,"1,200.5",1300,1100,1250,1250,2M\n' > corpus/prices/daily
printf '\001date;close\n14.10.2008;1.5\n15.10.2008;x\n' > corpus/prices/semicolons
printf 'a,b,c\n1,2,3\n4,5e-1,-6\n' > corpus/numbers/three
printf 'train.lr=3e-4\n[train]\nsteps = 5\nbeta1 = 0.8\noptimizer = "sgd"\n[train.ppo]\nclip = 0.2\n' > corpus/settings/old
printf 'train.optimizer.kind=muon\n[train.optimizer]\nkind = "adamw"\nbeta1 = 0.9\n' > corpus/settings/new
printf '{"step":1,"loss":2,"lr":0.1,"grad_norm":1,"seconds":3}\n{"step":2,"loss":null,"refused":true}\n{"step":2,"valid":{"loss":1.5}}\n' > corpus/journal/metrics
printf '\000{"version":1,"step":1,"files":{},"best":{}}' > corpus/manifest/manifest
printf '\001{"version":1,"step":1,"best":[[1.0,1]]}' > corpus/manifest/state
printf '\002{"model":"mini","config":{},"data":""}' > corpus/manifest/record
printf 'a,b\n1,2\n3,4\n' > corpus/eeg/two
printf 'First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n' > corpus/text/dialogue
printf '\357\273\277\303\244\r\n\360\237\231\202 and so on, and so on, and so on' > corpus/text/mark
recordings=../models/deepsif/tests/recordings
cp $recordings/raw.edf $recordings/raw.bdf corpus/edf/
cp $recordings/*.fif corpus/fif/
{ cat $recordings/raw.vhdr; printf '\000'; cat $recordings/raw.vmrk; printf '\000'; cat $recordings/raw.eeg; } > corpus/brainvision/raw
# The length of the variables in two bytes, the lower one first, and then the samples.
for file in $recordings/*.set; do
    length=$(($(wc -c < "$file") - 128))
    { printf "\\$(printf %03o $((length % 256)))\\$(printf %03o $((length / 256)))"; tail -c +129 "$file"; cat $recordings/beside.fdt; } > "corpus/eeglab/$(basename "$file")"
done
printf '\001onset\tduration\ttrial_type\n0.05\t0\tspike\n' > corpus/events/bids
{ printf '\000'; cat $recordings/raw.vmrk; } > corpus/events/markers
