#!/bin/sh
# From a base model to a tuned one, three seeds, and the table of what changed. Nothing but `loom` commands;
# killed and started again, it goes on where it stopped.
#
#   BASE=runs/chat/base TOKENS=runs/chat/tokens sh bench/chat-10m.sh
#
# BASE     a run of recipes/base-10m.yaml (docs/adaptation.md), or any model whose tokenizer TOKENS has
# TOKENS   the token folder it was trained on; its heldout/ is the pretraining text of the table
# DATA     chat/instructions.jsonl.gz, chat/hh-harmless.pairs.jsonl.gz, chat/alpaca_eval.reference.jsonl.gz and
#          eval/ with MMLU and TruthfulQA
# OUT      where everything goes; the table is OUT/table.md and OUT/table.json
# HELD_OUT prompts and pairs held out, by default 200
# SEEDS    by default 1 2 3; SFT and DPO take further settings from SFT_SETTINGS and DPO_SETTINGS
set -eu
BASE=${BASE:-runs/chat/base}
TOKENS=${TOKENS:-runs/chat/tokens}
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/chat}
SEEDS=${SEEDS:-1 2 3}
LOOM=${LOOM:-loom}
mkdir -p "$OUT"

# 805 instructions: 605 to train on and 200 held out by a keyed hash of the prompt; so with 1,200 pairs.
# A folder that is finished is left as it is.
$LOOM prepare sft --input "$DATA/chat/instructions.jsonl.gz" --tokenizer "$TOKENS/tokenizer.json" \
    --max-length 512 --over-long truncate --held-out "${HELD_OUT:-200}" --out "$OUT/sft-data"
$LOOM prepare dpo --input "$DATA/chat/hh-harmless.pairs.jsonl.gz" --tokenizer "$TOKENS/tokenizer.json" \
    --max-length 512 --over-long truncate --held-out "${HELD_OUT:-200}" --out "$OUT/dpo-data"

# Rows of the evaluations: MMLU, TruthfulQA, and AlpacaEval's prompts, which are what SFT trains on: the suite
# finds them in the tuned models' lineage and gives no figure.
mkdir -p "$OUT/rows"
for path in "$DATA"/eval/* "$DATA"/chat/alpaca_eval.reference.jsonl.gz; do
    ln -sf "$(realpath "$path")" "$OUT/rows/"
done

measure() { # MODEL NAME
    [ -f "$OUT/eval/$2/manifest.json" ] || $LOOM eval "$1" --suite adaptation --data "$OUT/rows" \
        --conversations "$OUT/sft-data" --pairs "$OUT/dpo-data" --text "$TOKENS/heldout" --chat \
        --max-new-tokens 128 ${EVAL_SETTINGS:-} --out "$OUT/eval/$2"
}

measure "$BASE" base
sft="" dpo=""
for seed in $SEEDS; do
    $LOOM train chat-10m-sft train.init="$BASE" data.sft="$OUT/sft-data" seed="$seed" \
        ${SFT_SETTINGS:-} --out "$OUT/sft-$seed"
    $LOOM train chat-10m-dpo train.init="$OUT/sft-$seed" data.pairs="$OUT/dpo-data" seed="$seed" \
        ${DPO_SETTINGS:-} --out "$OUT/dpo-$seed"
    measure "$OUT/sft-$seed" "sft-$seed"
    measure "$OUT/dpo-$seed" "dpo-$seed"
    sft="$sft,$OUT/eval/sft-$seed"
    dpo="$dpo,$OUT/eval/dpo-$seed"
done
$LOOM table base="$OUT/eval/base" sft="${sft#,}" dpo="${dpo#,}" --published --out "$OUT/table.md"
$LOOM table base="$OUT/eval/base" sft="${sft#,}" dpo="${dpo#,}" --out "$OUT/table.json"
