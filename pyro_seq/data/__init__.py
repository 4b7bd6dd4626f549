"""Data: batches and masks, simulators and loaders."""

from __future__ import annotations

from pyro_seq.data.batch import Batch, as_batch, check_batch, pad_sequences
from pyro_seq.data.crops import Augment, CropLoader, fixed_crops, random_crops
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.fresh import FreshLoader
from pyro_seq.data.grid_maps import MOVES, grid_map
from pyro_seq.data.kth import KTH_PERSONS, load_kth
from pyro_seq.data.loaders import MNIST, RemoteFile, load_mnist, locate
from pyro_seq.data.masks import gap_mask, random_mask, training_mask
from pyro_seq.data.moving import SHAPES, ShapeSet, moving_digits, moving_shapes
from pyro_seq.data.occluded import occluded_digits, occluder
from pyro_seq.data.omniglot import ALPHABETS, load_omniglot
from pyro_seq.data.pictures import Pictures, Vectors, load_digits, load_small_digits
from pyro_seq.data.polyphonic import POLYPHONIC, Transpose, load_polyphonic
from pyro_seq.data.recall_tasks import RECALL_TASKS, Recall, RecallTask, recall
from pyro_seq.data.rotations import Rotations, render_rotations, rotation
from pyro_seq.data.sampling import BatchLoader, BucketSampler, batches
from pyro_seq.data.scenes import Scenes
from pyro_seq.data.simulators import ENVIRONMENTS, Environment, Simulation, simulate
from pyro_seq.data.speech import Speech, load_speech, load_timit
from pyro_seq.data.textured import textured_digits
from pyro_seq.data.textures import equalise, load_textures, procedural_textures, read_textures
from pyro_seq.data.video import VIDEOS, load_video

__all__ = [
    "ALPHABETS",
    "ENVIRONMENTS",
    "KTH_PERSONS",
    "MNIST",
    "MOVES",
    "POLYPHONIC",
    "RECALL_TASKS",
    "SHAPES",
    "VIDEOS",
    "Augment",
    "Batch",
    "BatchLoader",
    "BucketSampler",
    "CropLoader",
    "Environment",
    "FreshLoader",
    "Pictures",
    "Recall",
    "RecallTask",
    "RemoteFile",
    "Rotations",
    "Scenes",
    "SequenceDataset",
    "ShapeSet",
    "Simulation",
    "Speech",
    "Transpose",
    "Vectors",
    "as_batch",
    "batches",
    "check_batch",
    "equalise",
    "fixed_crops",
    "gap_mask",
    "grid_map",
    "load_digits",
    "load_kth",
    "load_mnist",
    "load_omniglot",
    "load_polyphonic",
    "load_small_digits",
    "load_speech",
    "load_textures",
    "load_timit",
    "load_video",
    "locate",
    "moving_digits",
    "moving_shapes",
    "occluded_digits",
    "occluder",
    "pad_sequences",
    "procedural_textures",
    "random_crops",
    "random_mask",
    "read_textures",
    "recall",
    "render_rotations",
    "rotation",
    "simulate",
    "textured_digits",
    "training_mask",
]
