# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Tag and scan a recording
#
# `mn04_as` is a published tagger with one million parameters. It knows the 527
# classes of AudioSet. This tutorial tags ten seconds that were recorded in a metro
# station, finds out when each class occurs, and compares two sounds by their
# embeddings.
#
# `python docs/tutorials/fetch_sound.py` downloads the sound of all tutorials. Any
# file of yours does as well.

# %% [markdown]
# ## On the command line

# %%
# !efficientat tag sound/metro.wav --model mn04_as --top 5

# %% [markdown]
# The numbers are probabilities. Several classes may be present at once, so they do
# not add up to one.
#
# `scan` tags a long recording window by window. Here, windows are two seconds long
# and overlap by half:

# %%
# !efficientat scan sound/metro.wav --model mn04_as --window 2 --top 2 --figure scan.png

# %%
from IPython.display import Image

Image("scan.png")

# %% [markdown]
# `--format audacity` writes a label track that Audacity opens beside the recording.
#
# ## In Python
#
# A tagger takes paths, bytes, open files, and arrays or tensors with their sample
# rate.

# %%
import matplotlib.pyplot as plt

from efficientat_plugin import AudioTagger

tagger = AudioTagger.from_student("mn04_as")
for tag in tagger.tag("sound/metro.wav", top_k=3):
    print(f"{tag.name:30} {tag.probability:.3f}")

# %% [markdown]
# `scan` yields windows one after another, in constant memory, so that a recording may
# last for days.

# %%
windows = list(tagger.scan("sound/metro.wav", window_seconds=1.0))
seconds = [(window.start_seconds + window.end_seconds) / 2 for window in windows]
for name in ("Train", "Subway, metro, underground", "Speech"):
    index = tagger.labels.names.index(name)
    plt.plot(seconds, [window.probabilities[index] for window in windows], label=name)
plt.xlabel("time in s")
plt.ylabel("probability")
plt.legend()
plt.show()

# %% [markdown]
# ## Which sounds are alike?
#
# `embed` gives a vector for each sound. Sounds that are alike have vectors of a
# similar direction.

# %%
from pathlib import Path

import numpy as np

folders = sorted(Path("sound/clips").iterdir())
files = [sorted(folder.iterdir())[0] for folder in folders]
dog = sorted(Path("sound/clips/dog").iterdir())[1]
embeddings = np.stack([tagger.embed(file) for file in [*files, dog]])
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
similarity = embeddings[:-1] @ embeddings[-1]
for index in np.argsort(-similarity):
    print(f"{similarity[index]:.2f}  {folders[index].name}")

# %% [markdown]
# Next: [fine-tune the tagger on classes of your own](../fine_tune/), or read the
# [guide to tagging](../../tagging/).
