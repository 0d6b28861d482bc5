# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Fine-tune on a folder of your own
#
# You have a folder with a folder of clips for each class. This tutorial trains
# `mn04_as` on it, looks at what it has learnt, and uses it. `python
# docs/tutorials/fetch_sound.py` downloads some clips of ESC-50; put your own in their
# place.

# %%
from pathlib import Path

for folder in sorted(Path("sound/clips").iterdir()):
    print(f"{len(list(folder.iterdir())):3} clips  {folder.name}")

# %% [markdown]
# ## Train
#
# One command splits the clips, chooses the clip length and the number of epochs,
# trains, and tests. Nearly a third of the clips is held out for the test.

# %%
# !python ../../recipes/finetune.py ../../hparams/finetune.yaml --dataset sound/clips \
#     --pretrained mn04_as --test_share 0.3 --output_folder runs/fine_tune

# %% [markdown]
# So few clips are not worth training all layers for: the recipe fits a class layer in
# closed form, which takes seconds. With more clips it trains the network; [the
# guide](../../finetune/) says when.
#
# ## Look
#
# The test clips by true and predicted class:

# %%
from IPython.display import Image

Image("runs/fine_tune/confusion.png")

# %%
import csv

with open("runs/fine_tune/per_class.csv") as file:
    for row in csv.DictReader(file):
        print(row["name"], row["positives"], row["precision"], row["recall"], sep="\t")

# %% [markdown]
# A few test clips per class give a rough idea only. The recipe reports how many there
# are; do not trust a score without it.
#
# ## Use
#
# `runs/fine_tune/model` has weights, labels, settings and a model card. It loads in
# Python, on the command line, in SpeechBrain and, once uploaded, from the hub.

# %%
from efficientat_plugin import AudioTagger

tagger = AudioTagger.from_hparams("runs/fine_tune/model")
tagger

# %%
# !efficientat tag sound/metro.wav sound/clips/dog --model runs/fine_tune/model --top 2

# %% [markdown]
# The metro station shows a limit of every classifier: it has to choose among the
# classes that it knows.
#
# `efficientat evaluate` scores the model on the test clips again. The result is that
# of the run:

# %%
# !efficientat evaluate runs/fine_tune sound/clips --output runs/scores

# %% [markdown]
# Next: [distil a smaller model](../distil/), or [deploy this one](../../deploy/)
# without torch: `efficientat export runs/fine_tune/model`.
