"""Train a two-label bigram fastText model of Jigsaw's shape: `python train_classifier.py LINES MODEL.bin`."""

import sys

import fasttext

fasttext.train_supervised(
    input=sys.argv[1], dim=100, epoch=2, wordNgrams=2, minCount=2, bucket=200_000, thread=1, seed=1, verbose=0
).save_model(sys.argv[2])
