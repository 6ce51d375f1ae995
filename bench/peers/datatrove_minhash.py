"""datatrove's MinHash stages 1 to 3 on words parted by spaces: `python datatrove_minhash.py IN OUT FILES`.

FineWeb's settings with xxhash, its faster hash; clusters are written, documents are not filtered (Loom marks
duplicates and does not filter either).
"""

import sys

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

WORKERS = 2


class Spaces(WordTokenizer):
    """`str.split`."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def main() -> None:
    documents, out, files = sys.argv[1], sys.argv[2], int(sys.argv[3])
    norm = TextNormConfig(
        lowercase=False,
        norm_whitespace=False,
        remove_punctuation=False,
        norm_unicode_diacritics=False,
        norm_numbers=False,
        norm_weekdays=False,
        norm_monthnames=False,
    )
    config = MinhashConfig(
        n_grams=5,
        num_buckets=14,
        hashes_per_bucket=8,
        norm_config=norm,
        hash_config=HashConfig(precision=64, hash_fc="xxhash"),
    )
    stages = [
        (
            [
                JsonlReader(documents, glob_pattern="*.jsonl.gz"),
                MinhashDedupSignature(f"{out}/signatures", config, language=Spaces()),
            ],
            files,
        ),
        ([MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)], config.num_buckets),
        ([MinhashDedupCluster(f"{out}/buckets", f"{out}/clusters", config, save_cluster_id=True)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(stages, 1):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(WORKERS, tasks), logging_dir=f"{out}/logs/{number}"
        ).run()


if __name__ == "__main__":
    main()
