# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Zero-shot: classes and frames by words
# A bank holds CLIP's features, so it can be asked in words: which expression a frame shows, which
# action units are active, and which frames are nearest to a sentence. Nothing is trained.
#
# Faces are **drawn**, and the encoder is the small CLIP that ships with raffect, which has read
# descriptions of drawn faces alone: scores here say nothing about photographs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image as Picture

import raffect

folder = Path("drawn")  # the notebooks share it: what one has made another finds

# %%
raffect.write_synthetic(folder / "faces", num_frames=1000, seed=0)
prepared = raffect.prepare(
    raffect.PrepareConfig(
        images=(folder / "faces" / "cropped_aligned",),
        annotations=folder / "faces" / "8th_ABAW_Annotations",
        out=folder / "data",
    )
)
encoded = raffect.extract(
    raffect.ExtractConfig(
        manifest=prepared.manifest,
        bank=folder / "bank",
        encoder=raffect.EncoderConfig(model="raffect-faces"),
        shard_rows=256,
    )
)
print("\n".join(encoded.lines()))

# %% [markdown]
# ## Classes
# Each prompt set becomes a head. The set is chosen on folds of the training split, so its score on
# the validation split is one to quote; the line of chance says what it must beat.

# %%
(folder / "mine.toml").write_text("""\
title = "mine"
templates = ["a face with {}", "a drawing of {}"]
rest = ["relaxed brows and closed lips"]

[classes]
Neutral = ["relaxed brows and closed lips"]
Anger = ["brows lowered and drawn together, lips pressed together"]
Disgust = ["the upper lip raised and the nose wrinkled"]
Fear = ["inner brows raised, eyes wide open, lips stretched"]
Happiness = ["cheeks raised and lip corners pulled up"]
Sadness = ["inner brows raised and lip corners pulled down"]
Surprise = ["brows raised, eyes wide open and the jaw dropped"]
""")
found = raffect.zeroshot(
    raffect.ZeroshotConfig(
        bank=folder / "bank",
        labels=prepared.labels["expr"],
        out=folder / "zeroshot",
        prompts=("names", "facs", str(folder / "mine.toml")),
    )
)
print("\n".join(found.lines()))

# %% [markdown]
# ## Action units
# Labels are compared with texts of a face at rest.

# %%
units = raffect.zeroshot(
    raffect.ZeroshotConfig(
        bank=folder / "bank",
        labels=prepared.labels["au"],
        out=folder / "zeroshot-au",
        prompts=("facs",),
    )
)
print("\n".join(units.lines()))

# %% [markdown]
# ## Frames by a sentence
# The cosine between the vectors of a sentence and of each frame of the validation split; the frames
# with the highest are the answer. Of each video the best frame is shown.

# %%
from raffect.encoders.text import open_text_encoder

bank = raffect.Bank(folder / "bank")
labels = raffect.read_labels(prepared.labels["expr"])
split = raffect.read_features(bank, labels, raffect.EXPR, "validation")
features = split.x.astype(np.float32)
features /= np.linalg.norm(features, axis=1, keepdims=True)
encoder = open_text_encoder(raffect.describe_bank(bank).identity, bank.path)
manifest = raffect.read_manifest(prepared.manifest).to_pandas()
pictures = manifest.set_index(["video", "frame"])


def ask(sentence, count=4):
    """Show the frames that are nearest to a sentence, one a video."""
    vector = encoder.encode([sentence])[0]
    cosines = features @ (vector / np.linalg.norm(vector))
    order = np.argsort(-cosines)
    first = np.sort(np.unique(split.video[order], return_index=True)[1])[:count]
    figure, cells = plt.subplots(1, count, figsize=(1.6 * count, 2.4), layout="constrained")
    for axes in cells:
        axes.set_axis_off()
    for axes, place in zip(cells, order[first], strict=False):
        row = pictures.loc[split.videos[split.video[place]], split.frame[place]]
        axes.imshow(np.asarray(Picture.open(Path(row.root) / row.path)))
        axes.set_title(f"{cosines[place]:.2f}", fontsize=10)
    figure.suptitle(f"{sentence}  [drawn faces]", fontsize=11)
    plt.show()


ask("a face with cheeks raised and lip corners pulled up")
ask("a face with brows lowered and drawn together")
ask("a face with the jaw dropped and outer brows raised")
