# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Distil a model of your own
#
# A student learns to predict what a larger teacher predicts, from sound that nobody
# has labelled. The teacher may be any model. Here, it is the one of [the tutorial on
# fine-tuning](../fine_tune/), with one million parameters and eight classes, and the
# student has an eighth of them. To save time, only its class layer is fitted to these
# classes (`--number_of_epochs 0`). `python docs/tutorials/fetch_sound.py` downloads
# the sound.

# %%
# !python ../../recipes/finetune.py ../../hparams/finetune.yaml --dataset sound/clips \
#     --pretrained mn04_as --number_of_epochs 0 --test_share 0.3 \
#     --output_folder runs/teacher

# %% [markdown]
# ## Train
#
# The recipe computes the teacher's logits once and stores them. Then it trains the
# student on them alone; it does not look at the labels. Everything is small here, so
# that it takes less than a minute: few clips, few steps, few mel bins.

# %%
# !python ../../recipes/distil.py ../../hparams/distil.yaml --dataset sound/clips \
#     --teacher runs/teacher --target multiclass --clip_seconds 5.0 \
#     --short_clips repeat --n_mels 64 --hop_length 640 --lr 0.006 \
#     --clips_per_epoch 256 --number_of_epochs 4 --num_workers 0 --test_share 0.25 \
#     --output_folder runs/distil

# %% [markdown]
# ## Look
#
# `agreement` is the share of the test clips for which student and teacher have the
# same top class. `explained` says how much of what distinguishes the teacher's scores
# of one clip from those of another the student reproduces: 0 is no better than the
# average scores for every clip, 1 is the same as the teacher.

# %%
import csv

import matplotlib.pyplot as plt

with open("runs/distil/history.csv") as file:
    history = list(csv.DictReader(file))
for name in ("explained", "agreement"):
    plt.plot(
        [int(row["epoch"]) for row in history],
        [float(row[name]) for row in history],
        marker="o",
        label=f"{name}, validation clips",
    )
plt.xlabel("epoch")
plt.legend()
plt.show()

# %% [markdown]
# A few dozen clips and 64 steps are far too little to learn eight classes from scratch;
# guessing would agree on an eighth of the clips. More sound helps most, and needs no
# labels. [Distil your own model](../../distil_your_own/) has the scores of a longer
# run, and shows how to write a teacher of your own.
#
# ## Use
#
# The student is a model folder like any other. Beside its teacher:

# %%
from efficientat_plugin import AudioTagger

for folder in ("runs/teacher", "runs/distil"):
    tagger = AudioTagger.from_hparams(f"{folder}/model")
    num_parameters = sum(parameter.numel() for parameter in tagger.parameters())
    print(f"{folder}: {num_parameters:,} parameters")
    print(tagger.tag("sound/metro.wav", top_k=2))

# %% [markdown]
# Next: [deploy the student](../../deploy/) without torch: `efficientat export
# runs/distil/model`.
