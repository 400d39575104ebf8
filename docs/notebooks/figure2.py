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
# # Figure 2
# Macro F1 against alpha, the share of worst frames that CVaR trains on, drawn from a sweep's table
# of heads with polars and matplotlib. With a sweep of your own, set `sweep` to its folder and begin
# at "The table of heads".
#
# Faces are **drawn**, the encoder is the small one that ships with raffect, and the sweep is short:
# the curve says nothing about photographs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl

import raffect

folder = Path("drawn")  # the notebooks share it: what one has made another finds
sweep = folder / "figure2"

# %% [markdown]
# ## A sweep
# The paper's is `raffect tune paper --task expr --bank bank --labels data --out runs/figure2`: ten
# values of alpha, five seeds each, 32 epochs, and plain ERM beside them.

# %%
raffect.write_synthetic(folder / "faces", num_frames=1000, seed=0)
prepared = raffect.prepare(
    raffect.PrepareConfig(
        images=(folder / "faces" / "cropped_aligned",),
        annotations=folder / "faces" / "8th_ABAW_Annotations",
        out=folder / "data",
    )
)
raffect.extract(
    raffect.ExtractConfig(
        manifest=prepared.manifest,
        bank=folder / "bank",
        encoder=raffect.EncoderConfig(model="raffect-faces"),
        shard_rows=256,
    )
)
found = raffect.tune(
    raffect.TuneConfig.from_recipe(
        "paper",
        task="expr",
        bank=folder / "bank",
        labels=folder / "data",
        out=sweep,
        epochs=8,
        space=("loss.alpha=0.1,0.3,0.5,0.7,1", "seed=0:2"),
    )
)
print("\n".join(found.lines()))

# %% [markdown]
# ## The table of heads
# `heads.parquet` has a row a head: its settings, and of each snapshot the score with its interval
# over videos. `last` is the last epoch, on which nothing was chosen; `best` was chosen on the
# validation split itself, and is optimistic.

# %%
heads = pl.read_parquet(sweep / "heads.parquet")
heads.select("id", "loss.alpha", "sam.rho", "seed", "last.macro_f1", "last.low", "last.high")

# %%
# Plain ERM differs from alpha 1 by rho, which is 0
by_setting = (
    heads.group_by("loss.alpha", "sam.rho")
    .agg(
        pl.len().alias("seeds"),
        pl.col("last.macro_f1").mean().alias("mean"),
        pl.col("last.macro_f1").std().alias("sd"),
        pl.col("best.macro_f1").mean().alias("best"),
    )
    .sort("loss.alpha", "sam.rho")
)
by_setting

# %% [markdown]
# Spread over seeds is not all: with other videos the same heads would score otherwise. The interval
# over videos of a mean of heads needs the counts of each video, so it comes from raffect.

# %%
settings = pl.from_pandas(found.to_pandas()).select(
    pl.col("loss.alpha", "sam.rho"), low="last.low", high="last.high"
)
points = by_setting.join(settings, on=["loss.alpha", "sam.rho"]).sort("loss.alpha")
points

# %% [markdown]
# ## The figure

# %%
swept, erm = points.filter(pl.col("sam.rho") > 0), points.filter(pl.col("sam.rho") == 0)
alpha, mean = swept["loss.alpha"], swept["mean"]
figure, axes = plt.subplots(figsize=(7, 4.2))

# Two error bars: thin over videos, thick over seeds
over_videos = [mean - swept["low"], swept["high"] - mean]
axes.errorbar(
    alpha, mean, over_videos, fmt="none", ecolor="#8a94a0", capsize=4, label="95 % over videos"
)
seeds = f"mean ± sd of {swept['seeds'].max()} seeds, last epoch"
axes.errorbar(alpha, mean, swept["sd"], fmt="o-", color="#1f6feb", elinewidth=3, label=seeds)
axes.plot(
    alpha, swept["best"], "--", color="#8a94a0", label="epoch chosen on validation (optimistic)"
)

# What it has to be compared with
chance = heads["chance.prior"][0]
axes.axhline(erm["mean"][0], color="#d1495b", ls="-.", label=f"plain ERM {erm['mean'][0]:.3f}")
axes.axhline(chance, color="#1f2933", ls=":", label=f"chance {chance:.3f}")
axes.set(xlabel="alpha", ylabel="macro F1, validation", ylim=(0, 1))
axes.set_title(f"EXPR [{found.data.caveat}]", loc="left", fontsize=11)
axes.legend(fontsize=8, ncols=2, frameon=False)
plt.show()

# %% [markdown]
# Where intervals over videos overlap as here, compare settings by their paired difference to plain
# ERM, which takes what is common to both out:

# %%
for setting in found.settings:
    if setting.against_erm:
        print(f"alpha {setting.settings['loss.alpha']}: {setting.against_erm.text()} against ERM")
