"""Data: batches and masks, simulators and loaders."""

from __future__ import annotations

from pyro_seq.data.batch import Batch, check_batch, pad_sequences
from pyro_seq.data.crops import Augment, CropLoader, fixed_crops, random_crops
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.kth import KTH_PERSONS, load_kth
from pyro_seq.data.loaders import MNIST, RemoteFile, load_mnist, locate
from pyro_seq.data.masks import gap_mask, random_mask, training_mask
from pyro_seq.data.polyphonic import POLYPHONIC, Transpose, load_polyphonic
from pyro_seq.data.sampling import BatchLoader, BucketSampler, batches
from pyro_seq.data.simulators import ENVIRONMENTS, Environment, Simulation, simulate
from pyro_seq.data.speech import Speech, load_speech, load_timit
from pyro_seq.data.video import VIDEOS, load_video

__all__ = [
    "ENVIRONMENTS",
    "KTH_PERSONS",
    "MNIST",
    "POLYPHONIC",
    "VIDEOS",
    "Augment",
    "Batch",
    "BatchLoader",
    "BucketSampler",
    "CropLoader",
    "Environment",
    "RemoteFile",
    "SequenceDataset",
    "Simulation",
    "Speech",
    "Transpose",
    "batches",
    "check_batch",
    "fixed_crops",
    "gap_mask",
    "load_kth",
    "load_mnist",
    "load_polyphonic",
    "load_speech",
    "load_timit",
    "load_video",
    "locate",
    "pad_sequences",
    "random_crops",
    "random_mask",
    "simulate",
    "training_mask",
]
