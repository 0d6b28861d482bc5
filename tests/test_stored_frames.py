"""Stored logits of frames follow a clip as its labels and an online teacher do."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from efficientat_plugin.contracts import Event, FrameOutput, Shift, TeacherInput
from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.event_reader import EventClipReader, EventClips
from efficientat_plugin.data.frame_mixing import FrameShift, shift_frames, shifted
from efficientat_plugin.data.labels import LabelTable, summarize_labels
from efficientat_plugin.data.mixing import Mixup, WaveformAugment, WaveformMix
from efficientat_plugin.data.parquet import encode_waveform
from efficientat_plugin.features import LogMel, SpecMask
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.teachers.online_frames import FrameTeacher
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.store.writer import StoreWriter
from efficientat_plugin.teachers.stored import StoredTeacher
from efficientat_plugin.teachers.stored_frames import StoredFrameTeacher
from efficientat_plugin.training.event_brain import EventLoss
