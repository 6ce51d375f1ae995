"""Dolma's own taggers with models from this machine: a module for `dolma tag --tagger_modules`."""

import os

from dolma.core.registry import TaggerRegistry
from dolma.taggers.jigsaw import FastTextJigsawHatespeechDocumentTagger
from dolma.taggers.language import FastTextEnglishLanguageDocumentTagger


@TaggerRegistry.add("bench_language")
class Language(FastTextEnglishLanguageDocumentTagger):
    MODEL_PATH = os.environ["BENCH_LANGUAGE_MODEL"]


@TaggerRegistry.add("bench_toxicity")
class Toxicity(FastTextJigsawHatespeechDocumentTagger):
    MODEL_PATH = os.environ["BENCH_TOXICITY_MODEL"]
