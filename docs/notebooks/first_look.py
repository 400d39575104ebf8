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
# # A first look
# From pictures to scores, and back to pictures: draw faces, make a bank of features, train heads,
# judge them, and look at what they see.
#
# Faces are **drawn**, and the encoder is the small one that ships with raffect: scores here say
# nothing about photographs. With your own data and CLIP the calls are the same.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from PIL import Image as Picture

import raffect
from raffect.reporting.colors import color_of

folder = Path("drawn")  # the notebooks share it: what one has made another finds

# %% [markdown]
# ## Data
# A data set in Aff-Wild2's layout, as `raffect synth` draws it, and what `raffect prepare` makes of
# it: a manifest of frames and a label table for each task.

# %%
raffect.write_synthetic(folder / "faces", num_frames=1000, seed=0)
prepared = raffect.prepare(
    raffect.PrepareConfig(
        images=(folder / "faces" / "cropped_aligned",),
        annotations=folder / "faces" / "8th_ABAW_Annotations",
        out=folder / "data",
    )
)
print("\n".join(prepared.lines()))

# %%
manifest = raffect.read_manifest(prepared.manifest).to_pandas()
labels = raffect.read_labels(prepared.labels["expr"]).to_pandas()
labels = labels[labels.expression >= 0]  # -1: not labelled
frames = labels.merge(manifest, on=["video", "frame"])
names = raffect.EXPR.outputs


def show(rows, titles, colors):
    """Frames in a row, each with a title in a color."""
    size = (1.4 * len(rows), 2.2)
    figure, cells = plt.subplots(1, len(rows), figsize=size, layout="constrained")
    for axes, (_, row), title, color in zip(cells, rows.iterrows(), titles, colors, strict=True):
        axes.imshow(np.asarray(Picture.open(Path(row.root) / row.path)))
        axes.set_title(title, fontsize=10, color=color)
        axes.set_axis_off()
    figure.supxlabel("drawn faces", fontsize=9)


shown = frames.groupby("expression").sample(1, random_state=0)
show(shown, [names[k] for k in shown.expression], [color_of(k) for k in shown.expression])

# %% [markdown]
# ## Features
# Each frame is encoded once. After a stop the same call goes on, and a finished bank is kept.

# %%
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
# ## Heads
# The paper's recipe, CVaR with alpha 0.3 and SAM, with three seeds: they train side by side.

# %%
run = raffect.train(
    raffect.TrainConfig.from_recipe(
        "paper",
        task="expr",
        bank=folder / "bank",
        labels=folder / "data",
        out=folder / "expr",
        epochs=8,
        num_seeds=3,
    )
)
print("\n".join(run.lines()))

# %% [markdown]
# ## Scores
# A score stands beside its spread over seeds, its 95 % interval over videos, and the chance level.
# Of so few videos the interval is wide.

# %%
judged = raffect.evaluate(
    raffect.EvaluateConfig(run=(folder / "expr",), bank=folder / "bank", labels=folder / "data")
)
score = judged.settings[0].scores["last"]
print("macro F1", score.text())
print(f"chance   {run.chance.level:.3f} ({run.chance.name})")
print("caveat: ", run.data.caveat)

# %% [markdown]
# ## Pictures
# Frames of the validation split, drawn by lot: what the heads predict, in red with the label in
# brackets where it is wrong.

# %%
predicted = raffect.predict(
    raffect.PredictConfig(
        bank=folder / "bank", head=(folder / "expr",), out=folder / "predictions.parquet"
    )
)
found = frames[frames.split == "validation"].merge(
    predicted.to_pandas()[["video", "frame", "expr"]], on=["video", "frame"]
)
some = found.sample(8, random_state=1)
true = [names[k] for k in some.expression]
titles = [
    answer if answer == name else f"{answer}\n({name})"
    for answer, name in zip(some.expr, true, strict=True)
]
show(
    some,
    titles,
    ["black" if a == name else "crimson" for a, name in zip(some.expr, true, strict=True)],
)

# %% [markdown]
# The report has a page with all curves and tables; here is the confusion matrix.

# %%
page = raffect.report([folder / "expr"], folder / "report")
(confusion,) = [path for path in page.pictures if path.stem.endswith("confusion")]
print(page.html)
display(Image(confusion, width=600))

# %% [markdown]
# ## A video
# A drawn video of one person, with what the heads predict drawn into it, and a page with its
# curves. No detector knows drawn faces, so their boxes come from a table.

# %%
from raffect.datasets.synthetic.video import write_video
from raffect.faces.video import decode_frames, scan_video

clip, out = folder / "clip.mp4", folder / "predictions"
write_video(clip)
shown = raffect.predict(
    clip,
    head=folder / "expr",
    out=out,
    boxes=folder / "clip.mp4.boxes.csv",
    margin=0,
    allow_embedded=True,
)
print("\n".join(shown.lines()))

# %%
overlay = out / "overlay" / "clip.mp4"
((_, frame),) = decode_frames(overlay, scan_video(overlay), 125, 126)
display(Picture.fromarray(frame))

# %% [markdown]
# The page plays the video, its cursor runs with it, and a click in a curve moves it there. Its time
# course, as the list of inputs shows it:

# %%
print(out / "pages" / "clip.html")
display(Picture.open(out / "previews" / "clip.jpg"))
