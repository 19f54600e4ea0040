"""Small data sets, prepared for TFDS as array_record: one of tiny images, one like ImageNet."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lsgd_jax.data.grain_source import OfWorkers, of_worker
from lsgd_jax.data.images import Images, Preprocessing
from lsgd_jax.data.streamed import StreamedSource, streamed_splits

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 5, 7, 3), dtype=np.uint8)
IMAGE, LABEL = tfds.features.Image(shape=(5, 7, 3)), tfds.features.ClassLabel(num_classes=4)


def png(pixels: np.ndarray) -> bytes:
    """TFDS writes encoded images without TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def labelled(*numbers: int) -> list[dict[str, Any]]:
    """Examples with some of the images; the label is the number modulo 4."""
    return [{"image": png(PIXELS[number]), "label": number % 4} for number in numbers]


def write_set(folder: Path, splits: dict[str, list[Any]], *, image: Any = IMAGE, **more: Any) -> str:
    """Prepares the TFDS set "tiny" as array_record, and forgets its class, as if the folder came from elsewhere."""
    features = {"image": image, "label": LABEL} | more

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = folder

            def _info(self) -> Any:
                kept = {key: feature for key, feature in features.items() if feature is not None}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kept))

            def _split_generators(self, dl_manager: Any) -> Any:
                del dl_manager
                return {split: self._generate_examples(examples) for split, examples in splits.items()}

            def _generate_examples(self, examples: list[Any]) -> Iterator[Any]:
                yield from enumerate(examples)

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


TRAIN, HELD_OUT, TEST = 24, 2, 8
ANY_SIZE = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")


def jpeg(height: int, width: int, seed: int) -> bytes:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def decoded(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def examples(*numbers: int) -> list[dict[str, Any]]:
    """Images of different sizes; the label, one of 40, is the number."""
    return [{"image": jpeg(20 + 3 * (n % 7), 45 - 4 * (n % 9), n), "label": n} for n in numbers]


def write_imagenet(folder: Path, train: list[Any], **more: list[Any]) -> str:
    """Prepares a set that looks like ImageNet: the test split has no labels."""
    unlabelled = [example | {"label": -1} for example in examples(0, 1)]
    splits = {"train": train, "validation": examples(*range(TRAIN, TRAIN + TEST)), "test": unlabelled} | more
    return write_set(folder, splits, image=ANY_SIZE, label=tfds.features.ClassLabel(num_classes=40))


def minibatches(
    source: StreamedSource, *, workers: int = 3, batch_size: int = 3, sampling: str = "shard", seed: int = 0
) -> OfWorkers:
    train, *_ = streamed_splits(source, seed)
    return OfWorkers(tuple(of_worker(train, sampling, batch_size, workers, seed, rank) for rank in range(workers)))


def bytes_of(split: Images) -> list[bytes]:
    return [image.tobytes() for image in split.images]


WHOLE = Preprocessing(mean=(0.0,), std=(1.0,))


def numbered(count: int) -> Images:
    """Images that are constant, each as grey as its label, its number."""
    labels = np.arange(count, dtype=np.int32)
    return Images(np.broadcast_to(labels[:, None, None, None], (count, 3, 2, 1)).astype(np.uint8), labels)
