"""What no sound and no model has: beyond it a file is taken for damaged, or hostile."""

SAMPLE_RATES = (1_000, 768_000)  # Hz
MAX_BANK = 1 << 22  # n_mels * n_fft: of a larger mel bank the memory is full
MAX_WINDOW_SECONDS = 3600  # or a short sound, made as long, would fill the memory
MAX_PARAMETERS = 10**9  # of the students of a model folder: 4 GB
MAX_DEPTH = 100  # blocks of a transformer
MAX_KERNELS = 64  # that a dynamic convolution mixes, or lines of a dynamic ReLU
