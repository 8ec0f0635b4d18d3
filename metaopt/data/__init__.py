"""Pools of examples on the device: embedded sets, procedural sets and TFDS streams."""

from metaopt.data._class_pool import ClassPool, by_class
from metaopt.data._digits import digits
from metaopt.data._gaussian_mixture import gaussian_mixture
from metaopt.data._photographs import photographs
from metaopt.data._pool import Dataset, Pool, sample_batch
from metaopt.data._sinusoids import sinusoids
from metaopt.data._stream import Stream, stream
from metaopt.data._strokes import strokes
from metaopt.data._tabular import tabular
from metaopt.data._teacher_network import teacher_network
from metaopt.data._text import TextDataset, TextPool, sample_windows, text
from metaopt.data._tfds import tfds_class_pool, tfds_dataset, tfds_stream
from metaopt.data._warp import random_warp

__all__ = [
    "ClassPool",
    "Dataset",
    "Pool",
    "Stream",
    "TextDataset",
    "TextPool",
    "by_class",
    "digits",
    "gaussian_mixture",
    "photographs",
    "random_warp",
    "sample_batch",
    "sample_windows",
    "sinusoids",
    "stream",
    "strokes",
    "tabular",
    "teacher_network",
    "text",
    "tfds_class_pool",
    "tfds_dataset",
    "tfds_stream",
]
