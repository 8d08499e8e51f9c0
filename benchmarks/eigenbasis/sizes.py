"""How large the network of the comparison is, up to 120 million weights, and what it learns."""

import sysconfig
from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.experiment import Size


class Scale(NamedTuple):
    """One size of the comparison.

    Attributes:
      size: the length of a run and the seeds.
      exponents: of the rates that are tried first.
      text: whether the model learns Python's own sources instead of its help topics, which are too short.
    """

    size: Size
    exponents: tuple[int, ...] = (-2, -1, 0)
    text: bool = False


SCALES = {
    "quick": Scale(
        Size(
            {"steps": 20, "batch": 2, "window": 16, "width": 16, "depth": 1},
            tuning_seeds=(0,),
            seeds=(10, 11),
        )
    ),
    "small": Scale(
        Size(
            {"steps": 200, "batch": 8, "window": 64, "width": 64, "depth": 2},
            tuning_seeds=(0,),
            seeds=tuple(range(10, 20)),
        )
    ),
    "full": Scale(  # the GPT of the leads: 0.65 million weights
        Size(
            {"steps": 600, "batch": 8, "window": 128, "width": 128, "depth": 3},
            tuning_seeds=(0, 1),
            seeds=tuple(range(10, 20)),
        )
    ),
    "long": Scale(  # the small network in fifty times as many steps
        Size(
            {"steps": 10_000, "batch": 8, "window": 64, "width": 64, "depth": 2},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        text=True,
    ),
    "full_long": Scale(  # the network of "full" in five times as many steps
        Size(
            {"steps": 3000, "batch": 8, "window": 128, "width": 128, "depth": 3},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-3, -2, -1),
        text=True,
    ),
    "20m_cpu": Scale(  # as many weights as the next, in a run that two cores finish: 0.16 million bytes
        Size(
            {"steps": 160, "batch": 8, "window": 128, "width": 512, "depth": 6},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-4, -3, -2),
    ),
    "20m": Scale(  # these two are for a GPU
        Size(
            {"steps": 1200, "batch": 64, "window": 512, "width": 512, "depth": 6},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-4, -3, -2),
        text=True,
    ),
    "120m": Scale(
        Size(
            {"steps": 2000, "batch": 32, "window": 512, "width": 896, "depth": 12},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-5, -4, -3),
        text=True,
    ),
}


# Vision Transformers of the same names and about as many weights, on synthetic textures.
VISION = {
    "quick": Scale(
        Size(
            {"steps": 20, "batch": 4, "image": 8, "patch": 4, "classes": 4, "width": 16, "depth": 1},
            tuning_seeds=(0,),
            seeds=(10, 11),
        )
    ),
    "small": Scale(
        Size(
            {"steps": 200, "batch": 32, "image": 16, "patch": 4, "classes": 10, "width": 64, "depth": 2},
            tuning_seeds=(0,),
            seeds=tuple(range(10, 20)),
        )
    ),
    "full": Scale(
        Size(
            {"steps": 600, "batch": 32, "image": 32, "patch": 4, "classes": 100, "width": 128, "depth": 3},
            tuning_seeds=(0, 1),
            seeds=tuple(range(10, 20)),
        )
    ),
    "long": Scale(
        Size(
            {"steps": 10_000, "batch": 32, "image": 16, "patch": 4, "classes": 10, "width": 64, "depth": 2},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        )
    ),
    "full_long": Scale(
        Size(
            {"steps": 3000, "batch": 32, "image": 32, "patch": 4, "classes": 100, "width": 128, "depth": 3},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-3, -2, -1),
    ),
    "20m_cpu": Scale(
        Size(
            {"steps": 160, "batch": 16, "image": 64, "patch": 8, "classes": 100, "width": 512, "depth": 6},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-4, -3, -2),
    ),
    "20m": Scale(
        Size(
            {"steps": 1500, "batch": 256, "image": 64, "patch": 8, "classes": 1000, "width": 512, "depth": 6},
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-4, -3, -2),
    ),
    "120m": Scale(
        Size(
            {
                "steps": 2000,
                "batch": 256,
                "image": 128,
                "patch": 16,
                "classes": 1000,
                "width": 896,
                "depth": 12,
            },
            tuning_seeds=(0,),
            seeds=(10, 11, 12),
        ),
        exponents=(-5, -4, -3),
    ),
}
MODELS = {"gpt": SCALES, "vit": VISION}


def python_sources(folder: Path) -> Path:
    """Write the sources of Python's standard library to one file, and return its path."""
    path = folder / "python_sources.txt"
    library = Path(sysconfig.get_path("stdlib"))
    files = (file for file in sorted(library.rglob("*.py")) if "site-packages" not in file.parts)
    path.write_bytes(b"\n".join(file.read_bytes() for file in files))
    return path
